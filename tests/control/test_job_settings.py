"""What of a user's settings depends on where the functions run."""

from __future__ import annotations

import pytest

from smlt.config import TrainConfig
from smlt.control.job_settings import training_settings


@pytest.mark.parametrize(
    ("cores", "asked_for", "most"),
    [(2, None, 4), (2, 32, 32), (None, None, 64), (None, 32, 32)],
    ids=["two cores", "two cores, asked for more", "a cloud", "a cloud, with a limit"],
)
def test_only_cores_that_functions_share_limit_the_workers(cores, asked_for, most):
    config = TrainConfig(
        target="t.py:T", workers=3, virtual_workers=64, deadline=60.0, max_workers=asked_for
    )
    assert training_settings(config, cores)["most_workers"] == most
