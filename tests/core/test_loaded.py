"""A silent fallback would be a bill nobody sees: the extensions must really be there."""

import ast
import importlib
import inspect
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


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((ROOT / "smlt/_core").glob("*.pyx"))]
)
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


def signature(function):
    """Return names and defaults of a stub's arguments, or of a function's."""
    if isinstance(function, ast.FunctionDef):
        arguments = function.args
        names = [a.arg for a in arguments.args + arguments.kwonlyargs]
        defaults = [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]
        return names, [ast.literal_eval(default) for default in defaults]
    parameters = inspect.signature(function).parameters.values()
    return (
        [p.name for p in parameters],
        [p.default for p in parameters if p.default is not p.empty],
    )


@pytest.mark.parametrize("name", ["shard_reduce", "codec"])
def test_twins_have_the_names_and_signatures_of_the_stubs(name):
    stub = ast.parse((ROOT / f"smlt/_core/{name}.pyi").read_text())
    twin = importlib.import_module(f"smlt._core._reference.{name}")
    declared = [(twin, node) for node in stub.body]
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            declared += [(getattr(twin, node.name), method) for method in node.body]
    for owner, node in declared:
        if not isinstance(node, ast.FunctionDef):
            continue
        theirs = getattr(owner, node.name)
        if isinstance(theirs, property):
            continue
        names, defaults = signature(theirs)
        if "overload" in ast.unparse(node):
            assert names == signature(node)[0]
        else:
            assert (names, defaults) == signature(node), node.name
