"""A silent fallback would be a bill nobody sees: the extensions must really be there."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smlt import _core

ROOT = Path(__file__).parents[2]


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", ["shard_reduce", "codec", "_frame"])
def test_compiled_kernels_are_loaded(name):
    if not _core.COMPILED:
        pytest.skip("SMLT_PURE_PYTHON=1 asks for the twins only")
    module = importlib.import_module(f"smlt._core.{name}")

    assert module.__spec__.origin.endswith((".so", ".pyd"))


def test_twins_load_on_request_under_both_import_forms():
    code = (
        "from smlt import _core; from smlt._core.codec import encode; import smlt._core.codec as c;"
        "assert not _core.COMPILED; assert encode.__module__ == 'smlt._core._reference.codec';"
        "assert c is _core.codec"
    )

    assert run_python(code, SMLT_PURE_PYTHON="1").returncode == 0


def test_missing_extension_is_an_error_that_says_what_to_do():
    code = (
        "import sys; sys.modules['smlt._core.codec'] = None\n"
        "try:\n    import smlt._core\n"
        "except ImportError as exc:\n    print(exc)\n"
        "else:\n    print('silently imported')"
    )

    assert "make build" in run_python(code, SMLT_PURE_PYTHON="0").stdout


def test_twins_have_the_names_and_signatures_of_the_stubs():
    import ast

    for name in ("shard_reduce", "codec"):
        stub = ast.parse((ROOT / f"smlt/_core/{name}.pyi").read_text())
        twin = importlib.import_module(f"smlt._core._reference.{name}")
        twin_source = ast.parse(Path(twin.__file__).read_text())
        functions = {node.name: node for node in twin_source.body if hasattr(node, "args")}
        for node in stub.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = [a.arg for a in node.args.args + node.args.kwonlyargs]
            defaults = [ast.unparse(d) for d in node.args.kw_defaults if d is not None]
            theirs = functions[node.name].args
            assert arguments == [a.arg for a in theirs.args + theirs.kwonlyargs], node.name
            if "overload" not in ast.unparse(node):
                assert defaults == [ast.unparse(d) for d in theirs.kw_defaults if d is not None]
