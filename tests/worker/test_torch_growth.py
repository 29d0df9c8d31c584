"""Models that grow between epochs: what optimizer and scheduler keep, and what they do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from smlt.errors import TaskError
from smlt.io.tensor import as_tensor


@pytest.fixture
def growing(regression):
    class Growing(regression):
        grow_at = (1,)

        def grown(self, model, epoch):
            model.insert(2, nn.Linear(8, 8))
            return model

        def optimizer(self, model):
            return torch.optim.AdamW(model.parameters(), lr=0.01)

        def scheduler(self, optimizer, total_steps):
            return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    return Growing


def plain_loop(task, samples, before, after):
    """The same by hand: the optimizer's state of what stays is moved to a new one."""
    torch.manual_seed(7)
    x, y = (torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    rate = 0.01
    first = torch.optim.AdamW(model.parameters(), lr=rate)

    def steps(optimizer, count, rate):
        for _ in range(count):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            rate *= 0.9
        return rate

    rate = steps(first, before, rate)
    torch.manual_seed(11)
    # "2" was the last layer, of 8 x 2: what is called "2" now has another shape and begins anew.
    model.insert(2, nn.Linear(8, 8))
    second = torch.optim.AdamW(model.parameters(), lr=rate)
    for parameter in model[0].parameters():
        second.state[parameter] = first.state[parameter]
    steps(second, after, rate)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_what_keeps_its_name_and_shape_goes_on_where_it_was(lockstep, growing, samples):
    run = lockstep(growing, 2)
    shares = [samples[:10], samples[10:]]
    for _ in range(4):
        run.step(shares)
    for task in run.tasks:
        torch.manual_seed(11)
        task.grow(1)
    run.assert_ranks_agree()
    for _ in range(4):
        run.step(shares)
    run.assert_ranks_agree()
    wanted = plain_loop(growing(), samples, 4, 4)
    got = run.weights()
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_a_later_state_is_loaded_into_a_task_that_grew_as_often(
    lockstep, growing, samples, state_digest
):
    run = lockstep(growing, 1)
    run.step([samples])
    run.tasks[0].grow(1)
    run.step([samples])
    state = {
        n: replace(as_tensor(t), data=as_tensor(t).data.copy())
        for n, t in run.tasks[0].state().items()
    }
    scalars = run.tasks[0].scalars()
    other = lockstep(growing, 1)
    other.tasks[0].grow(1)
    other.tasks[0].load_state(state, scalars)
    assert state_digest(other.tasks[0]) == state_digest(run.tasks[0])
    for each in (run, other):
        each.step([samples])
    assert state_digest(other.tasks[0]) == state_digest(run.tasks[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grown": lambda self, model, epoch: None}, "grown.. returned NoneType"),
        (
            {"scheduler": lambda self, o, n: None if len(o.param_groups[0]["params"]) > 4 else
             torch.optim.lr_scheduler.ExponentialLR(o, 0.9)},
            "have to return as many parameter groups",
        ),
    ],
)  # fmt: skip
def test_what_cannot_grow_is_refused(lockstep, growing, samples, change, said):
    task = lockstep(type("Wrong", (growing,), change), 1).tasks[0]
    with pytest.raises(TaskError, match=said):
        task.grow(1)


def test_growth_that_was_named_but_not_written_is_said(lockstep, regression):
    task = lockstep(type("Named", (regression,), {"grow_at": (1,)}), 1).tasks[0]
    with pytest.raises(TaskError, match=r"grow_at names epochs, but grown\(\) is not written"):
        task.grow(1)
