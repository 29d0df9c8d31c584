"""Finding out what the host permits."""

import json
import shutil
import subprocess
import sys

import pytest

from embedded.conftest import Client
from smlt.embedded.isolation import detect
from smlt.errors import ConfigError


def test_unknown_mode_is_refused_with_the_choice():
    with pytest.raises(ConfigError, match="choose one of auto, cgroup2, cgroup1, watchdog, none"):
        detect("jail", "x", [])


def test_tmp_that_holds_what_functions_need_stays_shared_with_a_notice():
    found = detect("watchdog", "x", ["/tmp"])
    assert found.namespace is None
    assert any("/tmp itself holds what functions need" in notice for notice in found.notices)


def test_watchdog_says_what_it_cannot_do():
    found = detect("watchdog", "x", [])
    assert found.as_json()["mode"] == "watchdog"
    assert not found.limits_cpu
    assert any("instead of by the kernel" in notice for notice in found.notices)
    assert any("CPU share" in notice for notice in found.notices)


def finish(process):
    process.stdin.close()
    process.stdout.close()
    return process.wait(timeout=10)


@pytest.mark.isolation
@pytest.mark.parametrize(
    ("dropped", "namespace"),
    [("-sys_admin", "user"), ("-sys_admin,-setfcap", None)],
)
def test_without_privileges_it_degrades_and_says_so(tmp_path, dropped, namespace):
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    command = [
        *("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"),
        *(sys.executable, "-m", "smlt.embedded"),
        *("--run-dir", str(tmp_path / "run"), "--no-parameter-store"),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line:
        finish(process)
        pytest.skip("privileges can be dropped by root only")
    ready = json.loads(line)
    assert ready["isolation"]["namespace"] == namespace
    assert ready["isolation"]["private_tmp"] == (namespace is not None)
    client = Client(ready["endpoint"])
    name = client.create()
    found = client.invoke(name, {"do": "environ"})["result"]
    assert client.invoke(name)["error"] is None
    assert ("TMPDIR" in found) == (namespace is None)
    if namespace is None:
        assert any("named by TMPDIR" in notice for notice in ready["notices"])
    process.terminate()
    assert finish(process) == 0
