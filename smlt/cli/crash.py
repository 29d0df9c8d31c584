"""What becomes of an exception that nobody expected: a file for us, a sentence for the user."""

from __future__ import annotations

import tempfile
import time
import traceback
from pathlib import Path


def keep_traceback(exc: BaseException, folder: Path) -> str:
    """Write the traceback into the folder, else a temporary one, and say where it is."""
    text = "".join(traceback.format_exception(exc))
    name = time.strftime("crash-%Y%m%d-%H%M%S.txt")
    for place in (folder, Path(tempfile.gettempdir())):
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return f"An error inside smlt, {exc!r}: the full traceback is in {place / name}."
    return f"An error inside smlt, and no disk has room for its traceback:\n{text}"
