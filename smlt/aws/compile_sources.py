"""A program for the Python that functions run: compile sources, so that no function has to.

Lambda unpacks them where no function can write, so what is not compiled beforehand is compiled at
every cold start. It stands alone, for that Python need not have smlt.

Reads a JSON list of ``{"out": zip to write, "sources": {name: [zip or "", path]}}``. The bytes
depend on the sources alone: modules are not checked against their files, and are written without
the sharing that marshal does by who happens to refer to what.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import sys
import warnings
import zipfile
from pathlib import Path, PurePosixPath

_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNCHECKED = (1).to_bytes(4, "little")
_WITHOUT_SHARING = 2


def compiled_name(name: str) -> str:
    """Where Python looks for the compiled form of a module's file."""
    path = PurePosixPath(name)
    return str(path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc")


def compiled(name: str, source: bytes) -> bytes | None:
    """Return the module as Python's cache holds it; None for what is no module of this version."""
    try:
        code = compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return None
    digest = importlib.util.source_hash(source)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED + digest
    return header + marshal.dumps(code, _WITHOUT_SHARING)


def write(out: Path, sources: dict[str, tuple[str, str]]) -> None:
    """Compile sources into a zip."""
    draft = out.with_suffix(".part")
    archives: dict[str, zipfile.ZipFile] = {}
    with zipfile.ZipFile(draft, "w") as made:
        for name, (archive, path) in sorted(sources.items()):
            if archive and archive not in archives:
                archives[archive] = zipfile.ZipFile(archive)
            source = archives[archive].read(path) if archive else Path(path).read_bytes()
            module = compiled(name, source)
            if module is not None:
                made.writestr(zipfile.ZipInfo(compiled_name(name), _EPOCH), module)
    for opened in archives.values():
        opened.close()
    draft.replace(out)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # a package's own escapes are not this user's concern
    for task in json.load(sys.stdin):
        write(Path(task["out"]), task["sources"])
