"""What `import smlt` gives, and what it does not load."""

import importlib.util
import json
import subprocess
import sys

import pytest

import smlt

HEAVY = ["torch", "boto3", "botocore", "aioboto3", "redis", "aiohttp", "skopt", "numpy", "typer"]


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy():
    assert not modules_after("import smlt") & set(HEAVY)


def test_the_command_line_loads_nothing_heavy():
    assert not modules_after("import smlt.cli") & (set(HEAVY) - {"typer"})


def test_there_are_at_most_twelve_public_names():
    assert len(smlt.__all__) <= 13
    assert dir(smlt) == sorted(smlt.__all__)


@pytest.mark.parametrize("name", smlt.__all__)
def test_every_public_name_resolves(name):
    if name == "TorchTask" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    assert getattr(smlt, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Trainer"):
        smlt.Trainer  # noqa: B018


def test_without_torch_it_says_how_to_get_it():
    script = "import sys; sys.modules['torch'] = None\nimport smlt\nsmlt.TorchTask"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert "ImportError: smlt.TorchTask needs PyTorch: pip install 'smlt[torch]'." in done.stderr


def test_public_names_can_be_imported_from_the_package():
    from smlt import SmltError, TrainConfig
    from smlt.config import TrainConfig as FromHome

    assert TrainConfig is FromHome
    assert issubclass(SmltError, Exception)
