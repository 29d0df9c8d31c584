"""Deploying a container image: what it is built from, by whom, and what is said if it cannot be."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from smlt.aws.image import dockerfile, image_tag, write_context
from smlt.aws.machine import Machine
from smlt.aws.package import Package
from tests.io.servers import ValkeyServer
from tests.jobs.harness import SMALL, until

FAKE = Path(__file__).with_name("fake_docker.py")


@pytest.fixture
def docker(tmp_path, shell, account):
    """A folder that keeps what Docker is asked; ``smlt`` finds that Docker on its PATH."""
    home = tmp_path / "docker"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "docker"
    program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    program.chmod(0o755)
    account.images = home / "images"
    shell.variables |= {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "FAKE_DOCKER": str(home),
    }
    return home


def calls(home):
    path = home / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def packed(**settings):
    values = {"user": {}, "smlt": {}, "wheels": [], "asked_by": {}, "is_image": True}
    return Package(Machine("3.12", "arm64"), **values | settings)


def test_a_dockerfile_has_what_lambda_lacks():
    package = packed(
        missing={"libGL.so.1": "cv2.so (opencv)", "libX11.so.6": "a"}, system_packages=("ffmpeg",)
    )
    assert dockerfile(package) == (
        "FROM public.ecr.aws/lambda/python:3.12\n"
        "RUN dnf install -y 'libGL.so.1()(64bit)' 'libX11.so.6()(64bit)' ffmpeg && dnf clean all\n"
        "COPY packages/ ${LAMBDA_TASK_ROOT}/\n"
        "COPY code/ ${LAMBDA_TASK_ROOT}/\n"
        'CMD ["smlt.worker.handler.handler"]\n'
    )
    assert "RUN" not in dockerfile(packed())
    assert image_tag(package) != image_tag(packed())


def test_code_lies_above_packages_and_the_same_input_has_the_same_tag(tmp_path):
    (tmp_path / "train.py").write_text("x = 1\n")
    package = packed(user={"train.py": tmp_path / "train.py"})
    write_context(package, tmp_path)
    assert (tmp_path / "code" / "train.py").read_text() == "x = 1\n"
    assert image_tag(package) == image_tag(packed(user={"train.py": tmp_path / "train.py"}))
    (tmp_path / "other.py").write_text("x = 2\n")
    assert image_tag(package) != image_tag(packed(user={"train.py": tmp_path / "other.py"}))


@pytest.mark.slow
def test_without_docker_one_sentence_says_so(shell, bucket, tmp_path):
    (tmp_path / "bin").mkdir()
    ended = shell.smlt(
        *("deploy", SMALL, "--objects", bucket, "--parameters", bucket, "--image"),
        PATH=str(tmp_path / "bin"),
    ).check(2)
    assert "no docker on PATH" in ended.sentence
    assert "without --image" in ended.sentence
    shell.smlt("destroy", "--objects", bucket).check(0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_life_of_an_image(shell, account, bucket, docker, tmp_path):
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        stores = ("--objects", bucket, "--parameters", f"redis://127.0.0.1:{server.port}")
        planned = shell.smlt("deploy", SMALL, *stores, "--image", "--dry-run").check(0)
        assert "build and push it" in planned.out
        assert calls(docker) == []
        shown = shell.smlt("package", SMALL, "--image").check(0).out
        assert "FROM public.ecr.aws/lambda/python:3." in shown

        deployed = shell.smlt("deploy", SMALL, *stores, "--image").check(0)
        build, login, push = calls(docker)
        assert [build["verb"], login["verb"], push["verb"]] == ["build", "login", "push"]
        assert build["words"][:2] == ["--platform", "linux/amd64"]
        assert build["plain"] == "1"
        # The password is on no command line and in no output.
        assert login["stdin"]
        assert login["stdin"] not in json.dumps([build, push, login["words"]])
        assert login["stdin"] not in deployed.out + deployed.err
        uri = push["words"][0]
        [function] = account.client("lambda").list_functions()["Functions"]
        found = account.client("lambda").get_function(FunctionName=function["FunctionName"])
        assert found["Code"]["ImageUri"] == uri
        assert found["Configuration"]["PackageType"] == "Image"

        again = shell.smlt("deploy", SMALL, *stores, "--image").check(0)
        assert "changed 0 of 5 things" in again.out
        assert len(calls(docker)) == 3
        job = ("--workers", "2", "--steps", "10", "--json", "--quiet")
        aws = ("--platform", "aws", "--yes")
        trained = shell.smlt("train", SMALL, *stores, *aws, *job, SMLT_AWS_IMAGE="true").check(0)
        local = shell.smlt("train", SMALL, *job).check(0)
        assert local.summary["weights_digest"] == trained.summary["weights_digest"]
        assert len(calls(docker)) == 3
    removed = shell.smlt("destroy", "--objects", bucket).check(0)
    assert "repository smlt-here-" in removed.out
    assert account.client("ecr").describe_repositories()["repositories"] == []


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["build", "login", "push"])
def test_what_docker_says_of_a_failure_is_repeated(shell, bucket, docker, verb):
    (docker / "fault").write_text(f"{verb} no space left on device")
    job = ("deploy", SMALL, "--objects", bucket, "--parameters", bucket, "--image")
    ended = shell.smlt(*job).check(1)
    assert f"docker {verb} failed: no space left on device" in ended.sentence
    (docker / "fault").unlink()
    shell.smlt(*job).check(0)
    shell.smlt("destroy", "--objects", bucket).check(0)


@pytest.mark.slow
def test_ctrl_c_ends_docker_too(shell, bucket, docker):
    (docker / "fault").write_text("build hang")
    job = ("deploy", SMALL, "--objects", bucket, "--parameters", bucket, "--image")
    process = shell.start(*job)
    pid = int(until(lambda: (docker / "pid").exists() and (docker / "pid").read_text(), "Docker"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    until(lambda: not Path(f"/proc/{pid}").exists(), "Docker's end")
    shell.smlt("destroy", "--objects", bucket).check(0)
