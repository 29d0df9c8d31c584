"""Finds the user's task by its target, ``file.py:Class`` or ``module:Class``, and makes one."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from smlt.errors import SmltError, TaskError
from smlt.worker.task import Task
from smlt.worker.task_params import bind_params


def load_task(target: str, params: Mapping[str, Any], code_root: Path) -> Task:
    """Import the target and make its task with the given constructor arguments.

    Args:
        target: ``file.py:Class``, the file relative to ``code_root``, or ``module:Class``.
        params: constructor arguments, each a value or the text given to ``--param``.
        code_root: folder from which the user's modules are imported.

    Raises:
        TaskError: the file, the module, the class or a method is missing, an argument does not
            fit, or the user's code raised (it is the ``__cause__``).
    """
    cls = find_class(target, code_root)
    arguments = bind_params(cls, params)
    try:
        task = cls(**arguments)
    except SmltError:
        raise
    except Exception as exc:
        raise TaskError(f"{cls.__name__}() raised {describe(exc, code_root)}") from exc
    _check_attributes(task)
    return cast(Task, task)


def find_class(target: str, code_root: Path) -> type[Any]:
    """Import the target and return its class, which has every method that a task needs.

    A class that has a task's methods without being derived from ``smlt.Task`` gets its defaults.

    Raises:
        TaskError: as ``load_task``.
    """
    place, _, class_name = target.rpartition(":")
    if not place or not class_name:
        raise TaskError(f"{target!r} is no target: say file.py:Class or module:Class")
    module = _import(place, code_root)
    cls = getattr(module, class_name, None)
    if not inspect.isclass(cls):
        raise TaskError(f"there is no class {class_name} in {place}{_offer(module, class_name)}")
    if Task not in cls.__mro__:
        cls = type(cls.__name__, (cls, Task), {"__module__": cls.__module__})
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        names = " and ".join(f"{name}()" for name in missing)
        raise TaskError(
            f"{class_name} in {place} has no {names}: a task must be a subclass of smlt.TorchTask "
            "or smlt.Task that writes them"
        )
    return cls


def _import(place: str, code_root: Path) -> ModuleType:
    is_file = place.endswith(".py")
    path = (code_root / place).resolve()
    if is_file and not path.is_file():
        raise TaskError(f"there is no file {place} in {code_root}")
    _put_first(code_root.resolve())
    try:
        return _import_file(path) if is_file else importlib.import_module(place)
    except ModuleNotFoundError as exc:
        if (
            not is_file
            and exc.name
            and place.split(".")[: exc.name.count(".") + 1] == (exc.name.split("."))
        ):
            raise TaskError(f"there is no module {exc.name} in {code_root}") from exc
        raise TaskError(f"importing {place} failed: {describe(exc, code_root)}") from exc
    # A script may call sys.exit(), or parse a command line that is not its own.
    except (Exception, SystemExit) as exc:
        raise TaskError(f"importing {place} failed: {describe(exc, code_root)}") from exc


def _import_file(path: Path) -> ModuleType:
    """Import a file as Python would run it: its folder first, or within its package."""
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    _put_first(root)
    if len(parts) > 1:
        return importlib.import_module(".".join(parts))
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        # The name is taken, by a library or by another user file called train.py.
        name = f"smlt_task_{abs(hash(path)):x}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} cannot be imported as Python code")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _put_first(folder: Path) -> None:
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _offer(module: ModuleType, wanted: str) -> str:
    """Name the task classes that the module has, the closest one first."""
    names = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and (Task in value.__mro__ or hasattr(value, "dataset"))
    ]
    if not names:
        return ": it has no task; write a subclass of smlt.TorchTask"
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    names.sort(key=lambda name: name not in close)
    return f": it has {', '.join(names)}"


def describe(exc: BaseException, code_root: Path) -> str:
    """The exception in one line, with the last place in the user's own code."""
    reason = " ".join(str(exc).split())
    text = f"{type(exc).__name__}: {reason}" if reason else type(exc).__name__
    if isinstance(exc, SyntaxError) and exc.filename:
        return f"{text.rsplit(' (', 1)[0]} ({_relative(exc.filename, code_root)}:{exc.lineno})"
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(code_root.resolve())]
    if not own:
        return text
    return f"{text} ({_relative(own[-1].filename, code_root)}:{own[-1].lineno})"


def _relative(filename: str, code_root: Path) -> str:
    path, root = Path(filename), code_root.resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else filename


def _check_attributes(task: object) -> None:
    cls = type(task)
    ours = [vars(base) for base in cls.__mro__ if base.__module__.startswith("smlt.")]
    for name in vars(task):
        if any(callable(names.get(name)) for names in ours):
            raise TaskError(
                f"{cls.__name__}.__init__ sets self.{name}, which hides the method {name}() of "
                "every task: give the attribute another name"
            )
