"""The deployment package and the data in the object store, looked at with the standard library."""

import asyncio
import io
import json
import sys
import zipfile

import pytest

from smlt.control import artifact_manager
from smlt.control.artifact_manager import CodePackage, locate, pack_code, upload_data
from smlt.control.run_folder import RunFolder
from smlt.errors import ConfigError, TaskError
from smlt.io.memory_objects import MemoryObjectStore


@pytest.fixture
def project(tmp_path):
    (tmp_path / "train.py").write_text("class Task: ...\n")
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "__init__.py").write_text("")
    return tmp_path


def names_in(package):
    return set(zipfile.ZipFile(io.BytesIO(package)).namelist())


def user_names(package):
    return {name for name in names_in(package) if not name.startswith("smlt/")}


def test_package_holds_the_task_and_what_lies_beside_it(project):
    package = pack_code(locate("train.py:Task", project), skip=[]).data
    assert user_names(package) == {"train.py", "layers/__init__.py"}


def test_package_holds_the_worker_but_not_the_control_plane(project):
    package = pack_code(locate("train.py:Task", project), skip=[]).data
    names = names_in(package)
    assert "smlt/worker/handler.py" in names
    assert any(name.startswith("smlt/_core/codec.") and name.endswith(".so") for name in names)
    assert not any(
        name.startswith(("smlt/control/", "smlt/cli/", "smlt/embedded/")) for name in names
    )
    assert "smlt/session.py" not in names


def test_package_leaves_out_data_runs_environments_and_hidden_files(project):
    (project / "data").mkdir()
    (project / "data" / "x.npy").write_bytes(b"x")
    (project / ".secret").write_text("token")
    (project / "venv").mkdir()
    (project / "venv" / "pyvenv.cfg").write_text("")
    (project / "venv" / "big.py").write_text("")
    RunFolder.create(project / "runs", "job", "memory://x")
    package = pack_code(locate("train.py:Task", project), skip=[project / "data"]).data
    assert user_names(package) == {"train.py", "layers/__init__.py"}


def test_package_leaves_out_what_git_ignores(project):
    (project / ".gitignore").write_text("*.log\n/scratch/\nlayers/*\n!layers/__init__.py\n")
    (project / "train.log").write_text("")
    (project / "scratch").mkdir()
    (project / "scratch" / "big.py").write_text("")
    (project / "layers" / "old.py").write_text("")
    (project / "layers" / "scratch").mkdir()
    package = pack_code(locate("train.py:Task", project), skip=[]).data
    assert user_names(package) == {"train.py", "layers/__init__.py"}


def test_smltignore_has_the_last_word_in_its_folder(project):
    (project / ".gitignore").write_text("made.py\n")
    (project / ".smltignore").write_text("!made.py\nnotes.txt\n")
    (project / "made.py").write_text("")
    (project / "notes.txt").write_text("")
    package = pack_code(locate("train.py:Task", project), skip=[]).data
    assert user_names(package) == {"train.py", "layers/__init__.py", "made.py"}


def test_deeper_patterns_outweigh_higher_ones(project):
    (project / ".gitignore").write_text("*.bin\n")
    (project / "layers" / ".gitignore").write_text("!keep.bin\n")
    for name in ("keep.bin", "drop.bin", "layers/keep.bin", "layers/drop.bin"):
        (project / name).write_text("")
    package = pack_code(locate("train.py:Task", project), skip=[]).data
    assert user_names(package) == {"train.py", "layers/__init__.py", "layers/keep.bin"}


@pytest.mark.parametrize("target", ["train.py:Task", "layers.conv:Task"])
def test_patterns_of_the_repository_above_count(tmp_path, target):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("secret*.py\n")
    layers = tmp_path / "job" / "layers"
    layers.mkdir(parents=True)
    for path in (layers / "__init__.py", layers / "secret_key.py", tmp_path / "job" / "train.py"):
        path.write_text("")
    package = pack_code(locate(target, tmp_path / "job"), skip=[]).data
    assert user_names(package) - {"train.py"} == {"layers/__init__.py"}


def test_code_that_was_named_is_packed_although_its_folder_is_ignored(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("trial/\ntrain.py\n")
    (tmp_path / "trial").mkdir()
    for name in ("train.py", "net.py"):
        (tmp_path / "trial" / name).write_text("")
    package = pack_code(locate("train.py:Task", tmp_path / "trial"), skip=[]).data
    assert user_names(package) == {"train.py", "net.py"}


def test_patterns_leave_data_alone(tmp_path):
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / "x.npy").write_bytes(b"x")
    objects = MemoryObjectStore("ignored-data")

    async def upload():
        await upload_data(objects, tmp_path)
        return [info.key async for info in objects.list("data/")]

    assert len(asyncio.run(upload())) == 1


def test_patterns_that_cannot_be_read_are_refused_by_name(project):
    (project / ".smltignore").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"\.smltignore cannot be read"):
        pack_code(locate("train.py:Task", project), skip=[])


def test_same_content_gives_the_same_bytes_whenever_it_is_packed(project):
    first = pack_code(locate("train.py:Task", project), skip=[])
    (project / "train.py").touch()
    assert pack_code(locate("train.py:Task", project), skip=[]) == first


def test_changed_content_gives_another_hash(project):
    before = pack_code(locate("train.py:Task", project), skip=[]).code
    (project / "train.py").write_text("class Task: x = 1\n")
    after = pack_code(locate("train.py:Task", project), skip=[]).code
    assert before != after


def test_code_that_is_too_large_is_refused_with_its_largest_file(project, monkeypatch):
    monkeypatch.setattr(artifact_manager, "ZIP_LIMIT", 1 << 18)
    (project / "weights.bin").write_bytes(bytes(range(256)) * 80_000)
    with pytest.raises(ConfigError, match=r"weights\.bin \(20 MB\)"):
        pack_code(locate("train.py:Task", project), skip=[])


def test_module_target_packs_only_that_package(project):
    target = locate("layers.conv:Task", project)
    package = pack_code(target, skip=[]).data
    assert user_names(package) == {"layers/__init__.py"}
    assert target.reference == "layers.conv:Task"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("train.py", "not of the form"),
        ("train.py:not a class", "not of the form"),
        ("missing.py:Task", "there is no file"),
        ("no_such_module:Task", "there is no module 'no_such_module'"),
    ],
)
def test_target_that_is_not_there_is_refused(project, target, words):
    with pytest.raises(TaskError, match=words):
        locate(target, project)


def test_data_is_stored_by_content_and_once(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"same")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.npy").write_bytes(b"same")
    objects = MemoryObjectStore("data-by-content")

    async def upload():
        key = await upload_data(objects, tmp_path)
        manifest, _ = await objects.get(key)
        blobs = [info.key async for info in objects.list("data/")]
        return json.loads(manifest)["files"], blobs

    files, blobs = asyncio.run(upload())
    digest = "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5"
    assert files == {
        "a.npy": {"sha256": digest, "size": 4},
        "sub/b.npy": {"sha256": digest, "size": 4},
    }
    assert blobs == [f"data/{digest}"]


def test_empty_data_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no file"):
        asyncio.run(upload_data(MemoryObjectStore("no-data"), tmp_path))


def test_unchanged_code_is_not_sent_again():
    class CountingStore(MemoryObjectStore):
        puts = 0

        async def put(self, key, data, **conditions):
            self.puts += 1
            return await super().put(key, data, **conditions)

    objects = CountingStore("code-once")

    async def upload_twice():
        await CodePackage(b"zip", "abc").upload(objects)
        await CodePackage(b"zip", "abc").upload(objects)

    asyncio.run(upload_twice())
    assert objects.puts == 1


def test_runtime_is_named_as_lambda_does():
    assert artifact_manager.python_runtime() == f"python3.{sys.version_info.minor}"
