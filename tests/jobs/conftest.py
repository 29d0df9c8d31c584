import shutil
import tempfile
from pathlib import Path

import pytest

from jobs.harness import Place


@pytest.fixture
def place():
    """A place for jobs; whatever a test did, nothing of it may be running at its end."""
    # Short: the path of a unix socket may have 107 bytes.
    path = Path(tempfile.mkdtemp(prefix="jobs-"))
    place = Place(path)
    assert place.left() == []
    yield place
    try:
        place.check_nothing_is_left()
    finally:
        shutil.rmtree(path, ignore_errors=True)
