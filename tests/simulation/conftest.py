"""A simulated process that is killed closes nothing, and redis-py complains of that."""

import gc
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(
                pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            )


@pytest.fixture(autouse=True, scope="module")
def _freed_here():
    """Not in the middle of another file's tests."""
    yield
    gc.collect()
