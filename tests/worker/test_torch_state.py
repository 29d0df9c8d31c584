import copy
import json
import math
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim import lr_scheduler

from smlt.errors import CheckpointError, TaskError
from smlt.io.tensor import Tensor, as_tensor
from smlt.worker.plain_state import decode, encode

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd_plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, betas=(0.8, 0.9)),
    "adam_fused": lambda p: torch.optim.Adam(p, fused=True),
    "adam_tensor_lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "adamax": lambda p: torch.optim.Adamax(p),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p, t0=2),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2]),
    "groups": lambda p: torch.optim.SGD(
        [{"params": p[:2], "lr": 0.2}, {"params": p[2:], "weight_decay": 0.1}], lr=0.1, momentum=0.9
    ),
}
SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 4, 4]),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 10)],
        milestones=[4],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=5),
}


REFUSED = {"LBFGS", "SparseAdam", "ReduceLROnPlateau"}
"""``test_torch_task.py`` looks at how."""


@pytest.mark.parametrize(
    ("place", "base", "cases"),
    [
        (torch.optim, torch.optim.Optimizer, OPTIMIZERS),
        (lr_scheduler, lr_scheduler.LRScheduler, SCHEDULERS),
    ],
    ids=["optimizers", "schedulers"],
)
def test_none_that_torch_has_is_left_out(place, base, cases):
    parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(4)]
    given = parameters if cases is OPTIMIZERS else torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    looked_at = {type(make(given)).__name__ for make in cases.values()}
    there = {
        name
        for name, kind in vars(place).items()
        if isinstance(kind, type) and issubclass(kind, base) and not name.startswith("_")
    }
    assert there - {base.__name__} - REFUSED == looked_at & there


def as_saved(task):
    """Through bytes and strict JSON, as a checkpoint does it."""
    tensors = {
        name: Tensor(t.dtype, t.shape, t.data.copy())
        for name, t in ((n, as_tensor(t)) for n, t in task.state().items())
    }
    for tensor in tensors.values():
        tensor.data.flags.writeable = False
    return tensors, json.loads(json.dumps(task.scalars(), allow_nan=False, sort_keys=True))


def resumed_equals_straight(lockstep, make, samples, state_digest):
    straight = lockstep(make, 1)
    for _ in range(3):
        straight.step([samples])
    tensors, scalars = as_saved(straight.tasks[0])
    later = lockstep(make, 1)
    # What a fresh task has, or what it did before, must not show through.
    later.step([samples[:4]])
    later.tasks[0].load_state(tensors, scalars)
    assert state_digest(later.tasks[0]) == state_digest(straight.tasks[0])
    for run in (straight, later):
        for _ in range(3):
            run.step([samples])
    assert state_digest(later.tasks[0]) == state_digest(straight.tasks[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_takes_the_same_steps(
    lockstep, regression, samples, state_digest, name
):
    class Case(regression):
        def optimizer(self, model):
            return OPTIMIZERS[name](list(model.parameters()))

    resumed_equals_straight(lockstep, Case, samples, state_digest)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_scheduler_takes_the_same_steps(
    lockstep, regression, samples, state_digest, name
):
    class Case(regression):
        def optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def scheduler(self, optimizer, total_steps):
            return SCHEDULERS[name](optimizer)

    resumed_equals_straight(lockstep, Case, samples, state_digest)


PLANNED = {
    "one_cycle": lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, total_steps=n),
    "cosine": lr_scheduler.CosineAnnealingLR,
    "linear": lambda o, n: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n),
    "lambda": lambda o, n: lr_scheduler.LambdaLR(o, lambda step: 1 - step / n),
    "sequential": lambda o, n: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.CosineAnnealingLR(o, n - 2)],
        milestones=[2],
    ),
    "chained": lambda o, n: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=2), lr_scheduler.PolynomialLR(o, n)]
    ),
}


@pytest.mark.parametrize("before", [4, None])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
@pytest.mark.parametrize("name", PLANNED)
def test_a_longer_job_goes_on_as_if_it_had_always_been_so_long(
    lockstep, regression, samples, name, lr, before
):
    class Case(regression):
        def optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=copy.copy(lr), momentum=0.9)

        def scheduler(self, optimizer, total_steps):
            return None if total_steps is None else PLANNED[name](optimizer, total_steps)

    def groups(run):
        return run.tasks[0].scalars()["optimizer"]["groups"], run.tasks[0].scalars()["scheduler"]

    short, longer, always = (lockstep(Case, 1, total_steps) for total_steps in (before, 9, 9))
    for _ in range(4):
        short.step([samples])
        always.step([samples])
    longer.tasks[0].load_state(*as_saved(short.tasks[0]))
    for _ in range(5):
        assert groups(longer) == groups(always)
        assert longer.weights()["0.weight"].any()
        longer.step([samples])
        always.step([samples])


def test_a_tensor_learning_rate_follows_its_scheduler_after_a_resume(
    lockstep, regression, samples, state_digest
):
    class Case(regression):
        def optimizer(self, model):
            return torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)

        def scheduler(self, optimizer, total_steps):
            return lr_scheduler.ExponentialLR(optimizer, 0.9)

    resumed_equals_straight(lockstep, Case, samples, state_digest)


class WideMomentum(torch.optim.Optimizer):
    """Keeps float32 momentum for bfloat16 parameters, and odd numbers beside it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "best": math.inf, "pair": (1, 2.5)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p, dtype=torch.float32)
                    state["history"] = {1: -math.inf, 2: [True, None]}
                state["momentum"].mul_(0.9).add_(p.grad.float())
                state["steps"] = state.get("steps", 0) + 1
                p.sub_((group["lr"] * state["momentum"]).to(p.dtype))


def test_state_of_another_dtype_than_its_parameter_keeps_its_bits(
    lockstep, regression, samples, state_digest
):
    class Case(regression):
        def model(self):
            return super().model().to(torch.bfloat16)

        def optimizer(self, model):
            return WideMomentum(model.parameters())

        def loss(self, model, batch):
            return super().loss(model, [part.bfloat16() for part in batch])

    resumed_equals_straight(lockstep, Case, samples, state_digest)
    run = lockstep(Case, 1)
    run.step([samples])
    assert as_tensor(run.tasks[0].state()["optimizer:0.weight:momentum"]).dtype == "F32"


class Remembering(nn.Linear):
    """A module with state that is no tensor, and a buffer that is not saved with the weights."""

    def __init__(self):
        super().__init__(4, 2)
        self.seen = 0
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x):
        self.scratch += 1
        return super().forward(x)

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_extra_state_and_unsaved_buffers_are_part_of_the_state(
    lockstep, regression, samples, state_digest
):
    class Case(regression):
        def model(self):
            return Remembering()

    resumed_equals_straight(lockstep, Case, samples, state_digest)
    run = lockstep(Case, 1)
    run.tasks[0]._run.model.seen = 5
    fresh = lockstep(Case, 1)
    fresh.tasks[0].load_state(*as_saved(run.tasks[0]))
    assert fresh.tasks[0]._run.model.seen == 5
    assert "scratch" not in run.tasks[0].weights()


def test_channels_last_weights_are_saved_and_loaded(lockstep, regression, state_digest):
    class Case(regression):
        def model(self):
            model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
            return model.to(memory_format=torch.channels_last)

        def optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def loss(self, model, batch):
            return model(batch).square().mean()

    rng = np.random.default_rng(0)
    images = [rng.standard_normal((3, 5, 5)).astype(np.float32) for _ in range(6)]
    resumed_equals_straight(lockstep, Case, images, state_digest)


def test_weights_are_what_torch_loads(lockstep, regression, samples, tmp_path):
    run = lockstep(regression, 1)
    run.step([samples])
    path = tmp_path / "model.safetensors"
    tensors = {n: torch.from_numpy(w) for n, w in run.weights().items()}
    safetensors.torch.save_file(tensors, path)
    model = regression().model()
    model.load_state_dict(safetensors.torch.load_file(path))
    assert torch.equal(model[0].weight, torch.from_numpy(run.weights()["0.weight"]))


def test_given_weights_are_taken_over(lockstep, regression, samples):
    run, fresh = lockstep(regression, 1), lockstep(regression, 1)
    run.step([samples])
    given = {name: as_tensor(array) for name, array in run.weights().items()}
    given["0.bias"] = as_tensor(run.weights()["0.bias"].astype(np.float64))
    fresh.tasks[0].load_weights(given)
    assert all(np.array_equal(fresh.weights()[n], w) for n, w in run.weights().items())


def test_weights_of_another_model_are_refused_and_change_nothing(lockstep, regression):
    run = lockstep(regression, 1)
    before = run.weights()
    given = {name: as_tensor(array + 1) for name, array in run.weights().items()}
    del given["0.bias"]
    given["4.bias"] = given["2.bias"]
    given["2.weight"] = as_tensor(np.zeros((3, 3), np.float32))
    with pytest.raises(TaskError) as error:
        run.tasks[0].load_weights(given)
    assert str(error.value) == (
        "the weights do not fit model(): missing 0.bias; unexpected 4.bias; "
        "2.weight has shape (3, 3), not (2, 8)"
    )
    assert all(np.array_equal(run.weights()[n], w) for n, w in before.items())


def test_the_state_of_another_task_is_refused(lockstep, regression):
    class Other(regression):
        def model(self):
            return nn.Linear(4, 2)

    class Scheduled(regression):
        def scheduler(self, optimizer, total_steps):
            return lr_scheduler.ExponentialLR(optimizer, 0.9)

    class Grouped(regression):
        def optimizer(self, model):
            return OPTIMIZERS["groups"](list(model.parameters()))

    saved = as_saved(lockstep(regression, 1).tasks[0])
    for case, message in [
        (Other, "another model: missing"),
        (Scheduled, "had no scheduler, but"),
        (Grouped, "has 1 parameter groups, but"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            lockstep(case, 1).tasks[0].load_state(*saved)


def test_state_that_cannot_be_saved_is_refused(lockstep, regression):
    class Case(regression):
        def optimizer(self, model):
            return torch.optim.SGD([{"params": list(model.parameters()), "odd": object()}], lr=0.1)

    with pytest.raises(TaskError, match=r"groups\.0\.odd is a object, which a checkpoint"):
        lockstep(Case, 1).tasks[0].scalars()


def test_plain_state_survives_json_exactly():
    value = {
        "floats": [0.1, -0.0, math.inf, -math.inf, 1e-320],
        "pair": (1, (2, "x")),
        "by_step": {3: 1.5, (1, 2): None},
        "$dollar": True,
        "big": 2**80,
        "numpy": np.float32(0.1),
        "tensor": [torch.arange(3, dtype=torch.int8)],
    }
    tensors = {}
    plain = json.loads(json.dumps(encode(value, "v", tensors), allow_nan=False))
    back = decode(plain, tensors)
    assert math.copysign(1, back["floats"][1]) == -1
    assert back.pop("tensor")[0].tolist() == [0, 1, 2]
    del value["tensor"]
    assert back == value
    assert math.isnan(decode(encode(math.nan, "n", {}), {}))


def test_no_scheduler_warning_is_raised_in_a_usual_step(lockstep, regression, samples):
    class Case(regression):
        def scheduler(self, optimizer, total_steps):
            return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total_steps)

    run = lockstep(Case, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            run.step([samples[:2]])
