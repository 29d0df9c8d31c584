"""The published curves that come with the tests."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "published"


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
