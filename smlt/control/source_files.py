"""Which files below a folder are the user's code: not hidden, generated, installed or ignored.

``.gitignore`` and ``.smltignore`` count as in git: a deeper file outweighs a higher one. Within a
folder ``.smltignore`` has the last word, so that ``!generated.py`` there brings a file back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from smlt.control.run_folder import MARKER
from smlt.errors import ConfigError

IGNORE_FILES = (".gitignore", ".smltignore")
_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "build", "dist"}


@dataclass(frozen=True, slots=True)
class _Rules:
    """The patterns that one folder lays down for all below it."""

    folder: Path
    spec: GitIgnoreSpec

    def verdict(self, path: Path, *, is_folder: bool) -> bool | None:
        """Whether the path is ignored; None where no pattern speaks of it."""
        name = path.relative_to(self.folder).as_posix()
        return self.spec.check_file(f"{name}/" if is_folder else name).include


def code_files(root: Path, below: Path, skip: set[Path]) -> Iterator[Path]:
    """Walk the files of ``below``, a folder in ``root``, in order.

    Args:
        root: what the user named; rules of the folders that it lies in count too, up to the top of
            its git repository, unless they ignore the root itself.
        below: the folder to walk.
        skip: resolved folders that are no code.

    Raises:
        ConfigError: a file of patterns cannot be read.
    """
    rules = _rules_above(root)
    if _is_ignored(root, rules, is_folder=True):
        rules = []
    depth = len(below.relative_to(root).parts)
    for folder in reversed(below.parents[:depth]):
        rules = [*rules, *_rules_of(folder)]
    return _walk(below, skip, rules)


def all_files(folder: Path) -> Iterator[Path]:
    """Walk the files of a folder of data, whatever the patterns say of them."""
    return _walk(folder, set(), None)


def _walk(folder: Path, skip: set[Path], rules: list[_Rules] | None) -> Iterator[Path]:
    if rules is not None:
        rules = [*rules, *_rules_of(folder)]
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() in skip:
            continue
        is_folder = path.is_dir()
        if rules is not None and _is_ignored(path, rules, is_folder=is_folder):
            continue
        if path.is_file():
            if path.suffix not in (".pyc", ".pyo"):
                yield path
        elif is_folder and not _is_generated(path):
            yield from _walk(path, skip, rules)


def _is_ignored(path: Path, rules: list[_Rules], *, is_folder: bool) -> bool:
    verdicts = (one.verdict(path, is_folder=is_folder) for one in reversed(rules))
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _rules_above(root: Path) -> list[_Rules]:
    """The rules of the folders above, where they belong to the repository that root lies in."""
    if (root / ".git").exists():
        return []
    above = []
    for folder in root.parents:
        above.append(folder)
        if (folder / ".git").exists():
            return [rules for folder in reversed(above) for rules in _rules_of(folder)]
    return []


def _rules_of(folder: Path) -> list[_Rules]:
    lines: list[str] = []
    for name in IGNORE_FILES:
        file = folder / name
        try:
            lines += file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{file} cannot be read: {exc}; mend it or remove it") from exc
    return [_Rules(folder, GitIgnoreSpec.from_lines(lines))] if lines else []


def _is_generated(folder: Path) -> bool:
    if folder.name in _SKIPPED_FOLDERS or folder.name.endswith(".egg-info"):
        return True
    return (folder / "pyvenv.cfg").exists() or (folder / MARKER).exists()
