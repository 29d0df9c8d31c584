import sys
import textwrap
from typing import Literal

import numpy as np
import pytest

from smlt.errors import TaskError
from smlt.worker.task import Task
from smlt.worker.task_loader import load_task
from smlt.worker.task_params import bind_params, parse_params

NEUTRAL = """
    import smlt

    class Small(smlt.Task):
        def __init__(self, lr: float = 0.1, *, name: str = "x"):
            self.lr, self.name = lr, name
        def dataset(self, data, split): return [1, 2]
        def initialize(self, seed, total_steps): pass
        def state(self): return {}
        def gradients(self, samples, into, ready): return smlt.Contribution(0.0)
        def apply(self, mean, present): pass
"""


@pytest.fixture(autouse=True)
def clean_imports():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        # Only what user files brought: libraries do not survive being imported twice.
        if name.startswith(("smlt_task_", "task", "train", "user_")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path):
    def write(text, name="task.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return tmp_path

    return write


def test_a_file_and_class_make_a_task(write):
    task = load_task("task.py:Small", {"lr": "0.02"}, write(NEUTRAL))
    assert task.lr == 0.02
    assert not task.evaluates
    assert task.scalars() == {}


def test_a_module_and_class_make_a_task(write):
    write("", "user_package/__init__.py")
    root = write(NEUTRAL, "user_package/tasks.py")
    assert load_task("user_package.tasks:Small", {}, root).lr == 0.1


def test_siblings_and_packages_can_be_imported(write):
    write("WIDTH = 3", "code/user_sizes.py")
    root = write("from user_sizes import WIDTH\n" + textwrap.dedent(NEUTRAL), "code/task.py")
    load_task("code/task.py:Small", {}, root)
    write("", "user_lib/__init__.py")
    write("DEPTH = 4", "user_lib/sizes.py")
    write("from .sizes import DEPTH\n" + textwrap.dedent(NEUTRAL), "user_lib/train.py")
    assert type(load_task("user_lib/train.py:Small", {}, root)).__module__ == "user_lib.train"


def test_files_of_one_name_do_not_meet(write):
    root = write(NEUTRAL, "a/train.py")
    write(NEUTRAL.replace("0.1", "0.7"), "b/train.py")
    write(NEUTRAL.replace("0.1", "0.9"), "json.py")
    assert load_task("a/train.py:Small", {}, root).lr == 0.1
    assert load_task("b/train.py:Small", {}, root).lr == 0.7
    assert load_task("json.py:Small", {}, root).lr == 0.9


def test_a_class_with_the_methods_is_a_task_without_deriving_from_it(write):
    root = write(NEUTRAL.replace("(smlt.Task)", ""))
    task = load_task("task.py:Small", {"name": "y"}, root)
    assert task.name == "y"
    assert task.drain_metrics() == {}
    assert task.weights() == {}


TORCH = """
    import smlt

    class Base(smlt.TorchTask):
        def dataset(self, data, split): ...
        def model(self): ...

    class Whole(Base):
        def optimizer(self, model): ...
        def loss(self, model, batch): ...
"""


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        (TORCH, "none.py:X", r"^there is no file none\.py in "),
        (TORCH, "user_none.deep:X", r"^there is no module user_none in "),
        (TORCH, "task.py", r"^'task\.py' is no target: say file\.py:Class or module:Class$"),
        (TORCH, "task.py:Hole", r"^there is no class Hole in task\.py: it has Whole, Base$"),
        ("x = 1", "task.py:X", "it has no task; write a subclass of smlt.TorchTask$"),
        (
            TORCH,
            "task.py:Base",
            r"^Base in task\.py has no loss\(\) and optimizer\(\): a task must",
        ),
        ("class X: pass", "task.py:X", r"has no apply\(\) and dataset\(\) and gradients\(\)"),
        (
            "import smlt\n\nimport user_gone",
            "task.py:X",
            r"importing task\.py failed: ModuleNotFoundError: .*'user_gone' \(task\.py:3\)$",
        ),
        ("x = 1\nx = = 2", "task.py:X", r"SyntaxError: invalid syntax \(task\.py:2\)$"),
        ("def f():\n    return 1 / 0\n\nf()", "task.py:X", r"ZeroDivisionError.*\(task\.py:2\)$"),
        ("import sys\nsys.exit(3)", "task.py:X", r"SystemExit: 3 \(task\.py:2\)$"),
        (
            NEUTRAL.replace("self.lr, ", "1 / 0; self.lr, "),
            "task.py:Small",
            r"^Small\(\) raised ZeroDivisionError: division by zero \(task\.py:6\)$",
        ),
        (
            NEUTRAL.replace("self.lr, ", "self.weights = 3; self.lr, "),
            "task.py:Small",
            r"sets self\.weights, which hides the method weights\(\)",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(write, text, target, message):
    with pytest.raises(TaskError, match=message) as error:
        load_task(target, {}, write(text))
    assert "\n" not in str(error.value)


def test_the_users_own_traceback_is_kept(write):
    with pytest.raises(TaskError) as error:
        load_task("task.py:X", {}, write("def f():\n    return 1 / 0\n\nf()"))
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_file_that_failed_can_be_imported_again(write):
    root = write("1 / 0")
    for _ in range(2):
        with pytest.raises(TaskError, match="ZeroDivisionError"):
            load_task("task.py:Small", {}, root)
    write(NEUTRAL)
    assert load_task("task.py:Small", {}, root).lr == 0.1


class Typed:
    def __init__(
        self,
        lr: float,
        width: int = 3,
        deep: bool = False,
        name: str = "x",
        kind: Literal["small", "large", 3] = "small",
        limit: int | None = None,
        label: str | None = "a",
        sizes: list[int] = (),
        pair: tuple[float, ...] = (),
        model: np.ndarray | None = None,
        plain=4,
    ):
        pass


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("lr=0.02", 0.02),
        ("lr=1", 1.0),
        ("width=1_000", 1000),
        ("deep=true", True),
        ("deep=NO", False),
        ("name=a=b", "a=b"),
        ("name=none", "none"),
        ("kind=large", "large"),
        ("kind=3", 3),
        ("limit=none", None),
        ("limit=7", 7),
        ("label=none", None),
        ("label=b", "b"),
        ("sizes=1, 2,3", [1, 2, 3]),
        ("sizes=", []),
        ("pair=1,2.5", (1.0, 2.5)),
        ("plain=5", 5),
    ],
)
def test_texts_are_typed_by_the_annotations(assignment, value):
    key = assignment.partition("=")[0]
    bound = parse_params(Typed, ["lr=1", assignment] if key != "lr" else [assignment])
    assert bound[key] == value
    assert type(bound[key]) is type(value)
    # What was typed at the client travels as JSON and is checked again by the worker.
    assert bind_params(Typed, bound) == bound


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["lr"], "^--param lr is not of the form KEY=VALUE$"),
        (["=3"], "not of the form"),
        (["lr=1", "lr=2"], "given twice"),
        (["width=3"], r"^Typed needs --param lr=… \(float\)$"),
        (["lr=fast"], "^--param lr=fast: Typed takes lr as float$"),
        (["lr=nan"], "takes lr as float"),
        (["lr=1", "width=3.5"], "takes width as int"),
        (["lr=1", "deep=2"], "takes deep as bool"),
        (["lr=1", "kind=huge"], "takes kind as one of small, large, 3"),
        (["lr=1", "limit=x"], "takes limit as int or none"),
        (["lr=1", "sizes=1,x"], "takes sizes as list of int"),
        (["lr=1", "model=x"], "takes model as ndarray"),
        (["lr=1", "widht=3"], "has no parameter widht: did you mean width\\? it takes lr, width"),
    ],
)
def test_params_that_do_not_fit_are_refused(assignments, message):
    with pytest.raises(TaskError, match=message):
        parse_params(Typed, assignments)


@pytest.mark.parametrize("value", [True, None, 1.5, [1]])
def test_values_of_another_type_are_refused(value):
    with pytest.raises(TaskError, match="takes width as int"):
        bind_params(Typed, {"lr": 1, "width": value})


def test_a_task_without_constructor_takes_no_params():
    class Bare(Task):
        pass

    assert bind_params(Bare, {}) == {}
    with pytest.raises(TaskError, match="it takes none"):
        bind_params(Bare, {"lr": "1"})


def test_a_dataclass_with_postponed_annotations_is_typed(write):
    text = """
        from __future__ import annotations
        from dataclasses import dataclass
        import smlt

        @dataclass
        class Small(smlt.Task):
            lr: float = 0.1
            sizes: tuple[int, ...] = (1, 2)
            def dataset(self, data, split): return [1, 2]
            def initialize(self, seed, total_steps): pass
            def state(self): return {}
            def gradients(self, samples, into, ready): return smlt.Contribution(0.0)
            def apply(self, mean, present): pass
    """
    task = load_task("task.py:Small", {"sizes": "3,4"}, write(text))
    assert task.sizes == (3, 4)
