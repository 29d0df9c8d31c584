"""What goes into a package: for the machine of the function, the same for the same input."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import smlt
from smlt.aws import bytecode, machine
from smlt.aws import package as package_of_smlt
from smlt.aws.bundles import make_bundle
from smlt.aws.elf import read_library
from smlt.aws.image import dockerfile
from smlt.aws.machine import Machine
from smlt.aws.package import build_package
from smlt.aws.wheels import WORKER_NEEDS
from smlt.config.aws import AwsConfig, cache_dir
from smlt.control.artifact_manager import locate
from smlt.errors import ConfigError
from tests.aws.conftest import write_wheel

CORE = Path(smlt.__file__).parent / "_core"
HOST = f"3.{sys.version_info.minor}"
EXAMPLES = Path(__file__).parents[2] / "examples" / "mnist"


@pytest.fixture
def project(tmp_path, monkeypatch, wheelhouse, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "train.py").write_text("class Task: pass\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    _, version = platform.libc_ver()
    monkeypatch.setitem(machine.GLIBC, HOST, tuple(map(int, version.split("."))))
    return tmp_path / "job"


def build(project, cache=None, **settings):
    aws = AwsConfig(**{"python": HOST, "core": CORE, **settings})
    target = locate(f"{project / 'train.py'}:Task", project)
    return build_package(target, [], aws, cache or cache_dir(), torch=False)


def test_the_same_input_gives_the_same_names_and_a_change_of_code_leaves_the_layer(project):
    first, second = build(project), build(project)
    assert (first.code_digest, first.layer_digest) == (second.code_digest, second.layer_digest)
    (project / "train.py").write_text("class Task:\n    x = 1\n")
    third = build(project)
    assert third.code_digest != first.code_digest
    assert third.layer_digest == first.layer_digest


def test_two_trees_and_two_caches_give_the_same_names(project, tmp_path, wheelhouse):
    wheel = write_wheel(project, "private", "1.0", {"private/__init__.py": "x = {1, 2, 'a'}\n"})
    (project / "requirements.txt").write_text("--find-links .\nprivate\n")
    (project / "more").mkdir()
    (project / "more" / "deep.py").write_text("def f(a, *, b=('x', 2.5)): return f'{a}{b}'\n")
    other = tmp_path / "elsewhere" / "copy"
    other.mkdir(parents=True)
    for path in sorted(project.rglob("*"), reverse=True):
        target = other / path.relative_to(project)
        if path.is_file():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
            os.utime(target, (1, 1))
    (other / "__pycache__").mkdir()
    (other / "__pycache__" / "train.cpython-39.pyc").write_bytes(b"not ours")
    first, second = build(project), build(other, tmp_path / "another-cache")
    assert first.code_zip == second.code_zip
    assert first.layer_digest == second.layer_digest
    layers = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for package, path in zip((first, second), layers, strict=True):
        package.write_layer(path)
    assert layers[0].read_bytes() == layers[1].read_bytes()
    (bundled,) = [one for one in first.wheels if one.path.name == wheel.name]
    (again,) = [one for one in second.wheels if one.path.name == wheel.name]
    packed = [make_bundle(bundled, tmp_path / "1"), make_bundle(again, tmp_path / "2")]
    assert packed[0][0] == packed[1][0]


def test_modules_are_deployed_compiled_where_that_python_is_here(project, tmp_path):
    package = build(project)
    (tmp_path / "code.zip").write_bytes(package.code_zip)
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        archive.extractall(tmp_path / "root")
    # Sources that differ from what was compiled are not noticed, so nothing has read them.
    (tmp_path / "root" / "train.py").write_text("raise SystemExit('compiled again')\n")
    program = "import sys; sys.path[:0] = sys.argv[1:]; import train; print(train.Task)"
    command = [sys.executable, "-I", "-S", "-c", program, str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "train.Task" in done.stdout
    parts = {part.name: part for part in package.parts()}
    assert parts["compiled modules"].files > 50
    assert bytecode.interpreter("3.99") is None


def test_a_package_for_a_python_that_is_not_here_is_deployed_as_source(project, monkeypatch):
    monkeypatch.setattr(package_of_smlt, "interpreter", lambda python: None)
    package = build(project)
    assert not any("__pycache__" in name for name in zip_names(package.code_zip))
    assert "compiled modules" not in {part.name for part in package.parts()}


def zip_names(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()


def test_private_wheels_and_hashes_are_taken_from_the_requirements(project):
    wheel = write_wheel(project, "private", "1.0", {"private/__init__.py": ""})
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (project / "requirements.txt").write_text(
        f"--find-links .\n# ours\nprivate==1.0 --hash=sha256:{digest}\n"
    )
    package = build(project)
    [part] = [part for part in package.parts() if part.name == "private 1.0"]
    assert part.why == "requirements.txt line 3"
    (project / "requirements.txt").write_text(
        f"--find-links .\nprivate==1.0 --hash=sha256:{'0' * 64}\n"
    )
    with pytest.raises(ConfigError, match="cannot be had as wheels"):
        build(project)


def test_what_was_compiled_for_another_machine_is_refused(project, monkeypatch):
    with pytest.raises(ConfigError, match="compiled for another processor than arm64"):
        build(project, architecture="arm64")
    monkeypatch.setitem(machine.GLIBC, HOST, (2, 2))
    with pytest.raises(ConfigError, match=r"needs glibc 2\.\d+, and Python .* has 2\.2"):
        build(project)


def test_a_system_library_that_lambda_has_not_is_named(project):
    library = bytearray(next(CORE.glob("codec*.so")).read_bytes())
    # The name of the C library in its list of needed ones, made that of another.
    at = library.index(b"\0libc.so.6\0")
    library[at : at + 11] = b"\0libG.so.1\0"
    (project / "drawing.so").write_bytes(library)
    assert read_library(bytes(library)).needed == ("libG.so.1",)
    with pytest.raises(ConfigError, match=r"drawing\.so .* library libG\.so\.1.* with --image"):
        build(project)
    image = build(project, image=True)
    assert list(image.missing) == ["libG.so.1"]
    assert "'libG.so.1()(64bit)'" in dockerfile(image)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ["x86_64", "arm64"])
def test_the_numpy_example_with_real_wheels_and_a_core_built_for_lambda(
    tmp_path, architecture, monkeypatch
):
    """From the package index; small, for the function's machine, and complete by itself."""
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    aws = AwsConfig(python="3.12", architecture=architecture)
    target = locate(f"{EXAMPLES / 'softmax.py'}:Softmax", EXAMPLES)
    package = build_package(target, [EXAMPLES / "data"], aws, tmp_path, torch=False)
    layer = tmp_path / "layer.zip"
    package.write_layer(layer)
    assert layer.stat().st_size + len(package.code_zip) <= 60e6
    assert {wheel.name for wheel in package.wheels} >= set(WORKER_NEEDS)
    with zipfile.ZipFile(layer) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        libraries = [read_library(archive.read(name)) for name in names]
    assert {library.machine for library in libraries} == {Machine("3.12", architecture).elf_machine}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_runs_by_itself(tmp_path):
    """Without this Python's packages the handler imports from the package alone, and soon."""
    own = Machine(HOST, platform.machine())
    _, version = platform.libc_ver()
    before = machine.GLIBC[HOST]
    machine.GLIBC[HOST] = tuple(map(int, version.split(".")))
    try:
        aws = AwsConfig(python=HOST, architecture=own.architecture)
        target = locate(f"{EXAMPLES / 'softmax.py'}:Softmax", EXAMPLES)
        package = build_package(target, [EXAMPLES / "data"], aws, tmp_path / "c", torch=False)
    finally:
        machine.GLIBC[HOST] = before
    root, layer = tmp_path / "root", tmp_path / "layer.zip"
    package.write_layer(layer)
    (tmp_path / "code.zip").write_bytes(package.code_zip)
    for name in ("layer.zip", "code.zip"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            archive.extractall(root)
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; import smlt.worker.handler as h; "
        "import smlt.io.s3, smlt._core.codec as c; print(h.__file__, c.__file__); "
        "print(*[m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None) and "
        "m.__file__.startswith(sys.argv[1]) and m.__file__.endswith('.py') "
        "and not __import__('os').path.exists(m.__cached__)], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program, str(root), str(root / "python")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(root)) for path in done.stdout.split())
    assert not done.stderr.strip(), "compiled at the start of a function"


def test_settings_about_aws_have_three_sources(tmp_path):
    (tmp_path / "smlt.toml").write_text('[aws]\nsubnets = ["a", "b"]\nsecurity_groups = "c"\n')
    variables = {"SMLT_AWS_LOG_DAYS": "30", "SMLT_AWS_NAME": "theirs"}
    found = AwsConfig.load({"name": "mine"}, environment=variables, folder=tmp_path)
    assert (found.name, found.subnets, found.security_groups) == ("mine", ("a", "b"), ("c",))
    assert found.log_days == 30
    again = AwsConfig(**found.to_dict())
    assert dataclasses.asdict(again) | {"sources": {}} == dataclasses.asdict(found) | {
        "sources": {}
    }
    for name, value in [("python", "2.7"), ("sizes", "64"), ("name", "No"), ("log_days", "2")]:
        with pytest.raises(ConfigError, match=name.replace("_", "[-_]")):
            AwsConfig.load({name: value}, environment={}, folder=tmp_path)
