import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from smlt.errors import TaskError
from smlt.io.tensor import as_tensor
from smlt.worker.task import Metric
from smlt.worker.torch_task import TorchTask

SHARES = {1: [(0, 24)], 2: [(0, 12), (12, 24)], 3: [(0, 5), (5, 16), (16, 24)], 4: None}


def shared_out(samples, ranks):
    cuts = SHARES[ranks] or [(0, 1), (1, 1), (1, 20), (20, 24)]
    return [samples[a:b] for a, b in cuts]


def plain_loop(task, samples, steps, **clip):
    """What a user would write without smlt."""
    torch.manual_seed(7)
    model = task.model()
    optimizer = task.optimizer(model)
    x, y = (torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True))
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, [x, y]).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), **clip)
        optimizer.step()
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_close(got, wanted, **tolerance):
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_with_unequal_shares_end_where_one_process_does(lockstep, regression, samples, ranks):
    class Clipped(regression):
        clip_norm = 0.5

        def optimizer(self, model):
            return torch.optim.AdamW(model.parameters(), lr=0.01)

    run = lockstep(Clipped, ranks)
    for _ in range(5):
        run.step(shared_out(samples, ranks))
    run.assert_ranks_agree()
    wanted = plain_loop(Clipped(), samples, 5, max_norm=0.5)
    assert_close(run.weights(), wanted, rtol=2e-5, atol=1e-6)


def test_a_parameter_without_gradient_anywhere_is_left_alone(lockstep, regression, samples):
    class Unused(regression):
        def model(self):
            return nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(4, 2)})

        def optimizer(self, model):
            # A gradient of zero instead of None would let the decay move it.
            return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)

        def loss(self, model, batch):
            return super().loss(model["used"], batch)

    run = lockstep(Unused, 2)
    before = run.weights()
    run.step([samples[:8], samples[8:12]])
    after = run.weights()
    assert run.present == {"used.weight", "used.bias"}
    assert np.array_equal(after["unused.weight"], before["unused.weight"])
    assert not np.array_equal(after["used.weight"], before["used.weight"])


def test_a_gradient_on_one_rank_only_counts_with_its_weight(lockstep, regression, samples):
    class Gated(regression):
        def model(self):
            return nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})

        def loss(self, model, batch):
            branch = model["a"] if len(batch[0]) == 8 else model["b"]
            return super().loss(branch, batch)

    run = lockstep(Gated, 2)
    model = Gated().model()
    model.load_state_dict({n: torch.from_numpy(w) for n, w in run.weights().items()})
    run.step([samples[:8], samples[8:12]])
    batch = [torch.from_numpy(np.stack(c)) for c in zip(*samples[:8], strict=True)]
    (Gated().loss(model, batch) * 8 / 12).backward()
    wanted = model["a"].weight - 0.1 * model["a"].weight.grad
    np.testing.assert_allclose(run.weights()["a.weight"], wanted.detach(), rtol=1e-5)
    run.assert_ranks_agree()


def test_zero_grad_in_the_users_loss_loses_nothing(lockstep, regression, samples):
    class Zeroing(regression):
        def model(self):
            self.built = super().model()
            return self.built

        def loss(self, model, batch):
            self.built.zero_grad(set_to_none=True)
            return super().loss(model, batch)

    zeroing, plain = lockstep(Zeroing, 2), lockstep(regression, 2)
    for run in (zeroing, plain):
        run.step([samples[:8], samples[8:]])
    assert_close(zeroing.weights(), plain.weights(), rtol=0)


def test_gradients_are_written_into_the_views_while_backward_runs(
    regression, samples, zeroed_views
):
    task = regression()
    task.initialize(0, None)
    views, seen = zeroed_views(task), []

    def ready(name):
        seen.append((name, views[name].copy()))

    task.gradients(samples, views, ready)
    assert [name for name, _ in seen] == ["2.bias", "2.weight", "0.bias", "0.weight"]
    assert list(task.averaged()) == ["2.bias", "2.weight", "0.bias", "0.weight"]
    for name, array in seen:
        assert array.any()
        assert np.array_equal(array, views[name])


def test_micro_batches_add_up_and_each_view_is_ready_once(regression, samples, zeroed_views):
    results = []
    for parts in (1, 3, 50):
        task = regression()
        task.accumulate = parts
        task.initialize(0, None)
        views, seen = zeroed_views(task), []
        contribution = task.gradients(samples, views, seen.append)
        assert sorted(seen) == sorted(views)
        results.append((contribution.loss_sum, views))
    for loss_sum, views in results[1:]:
        assert loss_sum == pytest.approx(results[0][0], rel=1e-5)
        assert_close(views, results[0][1], rtol=1e-4, atol=1e-5)


def test_gradients_may_be_asked_for_in_several_parts(lockstep, regression, samples, zeroed_views):
    task = regression()
    task.initialize(0, None)
    whole, first, second = (zeroed_views(task) for _ in range(3))
    task.gradients(samples, whole, lambda name: None)
    task.gradients(samples[:10], first, lambda name: None)
    task.gradients(samples[10:], second, lambda name: None)
    added = {name: first[name] + second[name] for name in whole}
    assert_close(added, whole, rtol=1e-4, atol=1e-5)


def test_no_samples_are_a_contribution_of_nothing(regression, zeroed_views):
    task = regression()
    task.initialize(0, None)
    contribution = task.gradients([], zeroed_views(task), lambda name: None)
    assert contribution.loss_sum == 0
    assert contribution.absent == set(task.averaged())


def test_tied_weights_are_averaged_once_and_saved_under_both_names(lockstep, regression, samples):
    class Tied(regression):
        def model(self):
            model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
            model[2].weight = model[0].weight
            return model

    run = lockstep(Tied, 2)
    run.step([samples[:12], samples[12:]])
    assert_close(run.weights(), plain_loop(Tied(), samples, 1), rtol=1e-5, atol=1e-6)
    assert "2.weight" not in run.tasks[0].averaged()
    fresh = Tied().model()
    fresh.load_state_dict({n: torch.from_numpy(w) for n, w in run.weights().items()})


def test_frozen_parameters_are_not_averaged(lockstep, regression, samples):
    class Frozen(regression):
        def model(self):
            model = super().model()
            model[0].requires_grad_(False)
            return model

        def optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    run = lockstep(Frozen, 2)
    before = run.weights()
    run.step([samples[:12], samples[12:]])
    assert list(run.tasks[0].averaged()) == ["2.bias", "2.weight"]
    assert np.array_equal(run.weights()["0.weight"], before["0.weight"])
    assert not np.array_equal(run.weights()["2.weight"], before["2.weight"])


def test_a_parameter_that_is_unfrozen_later_is_refused(lockstep, regression, samples):
    class Unfreezing(regression):
        def model(self):
            model = super().model()
            model[0].requires_grad_(False)
            return model

        def loss(self, model, batch):
            model[0].requires_grad_(True)
            return super().loss(model, batch)

    with pytest.raises(TaskError, match=r"parameter 0\.weight was frozen in model\(\)"):
        lockstep(Unfreezing, 1).step([samples])


def test_a_parameter_that_is_frozen_later_stays(lockstep, regression, samples):
    class Freezing(regression):
        def loss(self, model, batch):
            model[0].requires_grad_(False)
            return super().loss(model, batch)

    run = lockstep(Freezing, 2)
    before = run.weights()
    run.step([samples[:5], samples[5:]])
    assert run.present == {"2.weight", "2.bias"}
    assert np.array_equal(run.weights()["0.weight"], before["0.weight"])


class Words(TorchTask):
    sparse = True

    def dataset(self, data, split):
        return []

    def model(self):
        return nn.Sequential(
            nn.Embedding(50, 6, sparse=self.sparse), nn.Flatten(), nn.Linear(18, 1)
        )

    def optimizer(self, model):
        return torch.optim.Adagrad(model.parameters(), lr=0.1)

    def loss(self, model, batch):
        return model(batch).square().mean()


class DenseWords(Words):
    sparse = False


def test_a_sparse_embedding_is_made_dense_with_one_notice(lockstep, caplog):
    words = [np.array([i % 50, 3, 7]) for i in range(10)]
    with caplog.at_level(logging.WARNING):
        sparse = lockstep(Words, 1)
    dense = lockstep(DenseWords, 1)
    for run in (sparse, dense):
        for _ in range(3):
            run.step([words])
    assert_close(sparse.weights(), dense.weights(), rtol=1e-6, atol=1e-7)
    assert len([r for r in caplog.records if "sparse" in r.getMessage()]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_of_other_dtypes_keep_them(lockstep, regression, samples, dtype):
    class Other(regression):
        def model(self):
            return super().model().to(dtype)

        def loss(self, model, batch):
            return super().loss(model, [part.to(dtype) for part in batch])

    run = lockstep(Other, 2)
    before = {n: as_tensor(t).data.copy() for n, t in run.tasks[0].weights().items()}
    for _ in range(3):
        run.step([samples[:12], samples[12:]])
    run.assert_ranks_agree()
    name = {torch.bfloat16: "BF16", torch.float64: "F64"}[dtype]
    for key, tensor in run.tasks[0].weights().items():
        assert tensor.dtype == name
        assert not np.array_equal(tensor.data, before[key])
    if dtype == torch.float64:
        torch.manual_seed(7)
        model = Other().model()
        batch = [torch.from_numpy(np.stack(c)) for c in zip(*samples, strict=True)]
        for _ in range(3):
            model.zero_grad()
            Other().loss(model, batch).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
        wanted = {n: v.numpy() for n, v in model.state_dict().items()}
        assert_close(run.weights(), wanted, rtol=1e-5, atol=1e-7)


def test_complex_parameters_are_averaged_as_pairs(lockstep, samples):
    class Complex(TorchTask):
        def dataset(self, data, split):
            return []

        def model(self):
            module = nn.Module()
            module.w = nn.Parameter(torch.randn(4, dtype=torch.complex64))
            return module

        def optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=0.1)

        def loss(self, model, batch):
            return (batch[0].to(torch.complex64) @ model.w).abs().square().mean()

    one, two = lockstep(Complex, 1), lockstep(Complex, 2)
    one.step([samples])
    two.step([samples[:5], samples[5:]])
    assert one.tasks[0].averaged() == {"w": (4, 2)}
    assert_close(two.weights(), one.weights(), rtol=1e-5)
    wanted = plain_loop(Complex(), samples, 1)
    assert_close(one.weights(), wanted, rtol=1e-5)


def test_bf16_precision_runs_the_loss_under_autocast(regression, samples, zeroed_views):
    dtypes = []

    class Autocast(regression):
        precision = "bf16"

        def loss(self, model, batch):
            out = model(batch[0])
            dtypes.append(out.dtype)
            return (out - batch[1]).square().mean()

    task = Autocast()
    task.initialize(0, None)
    views = zeroed_views(task)
    task.gradients(samples, views, lambda name: None)
    assert dtypes == [torch.bfloat16]
    assert all(as_tensor(t).dtype == "F32" for t in task.weights().values())


def test_reentrant_checkpointing_of_shared_weights_is_refused(regression, samples, zeroed_views):
    class Reentrant(regression):
        def model(self):
            return nn.Linear(4, 4)

        def loss(self, model, batch):
            x = batch[0].requires_grad_()
            for _ in range(2):
                x = checkpoint(model, x, use_reentrant=True)
            return x.square().mean()

    task = Reentrant()
    task.initialize(0, None)
    with pytest.raises(TaskError, match="use_reentrant=False"):
        task.gradients(samples, zeroed_views(task), lambda name: None)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_gradients_have_the_same_bits_with_several_threads(regression, zeroed_views, two_threads):
    class Gather(regression):
        def model(self):
            return nn.Embedding(50, 64)

        def loss(self, model, batch):
            # The backward of plain indexing is what torch parallelises with atomics.
            return (model.weight[batch[0].flatten()] * factors).sum()

    torch.manual_seed(0)
    factors = torch.randn(100_000, 64)
    samples = [(torch.randint(0, 50, (100_000,)),)]
    task = Gather()
    task.initialize(0, None)
    results = []
    for _ in range(4):
        views = zeroed_views(task)
        task.gradients(samples, views, lambda name: None)
        results.append(views["weight"].tobytes())
    assert len(set(results)) == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_logged_values_are_weighted_and_drained(regression, samples, zeroed_views):
    class Logging(regression):
        accumulate = 2

        def loss(self, model, batch):
            self.log("size", len(batch[0]), weight=len(batch[0]))
            self.log("one", torch.tensor(1.0))
            return super().loss(model, batch)

    task = Logging()
    task.initialize(0, None)
    task.gradients(samples[:10], zeroed_views(task), lambda name: None)
    assert task.drain_metrics() == {"size": Metric(50.0, 10.0), "one": Metric(2.0, 2.0)}
    assert task.drain_metrics() == {}


def test_collate_can_be_overridden(regression, samples, zeroed_views):
    class Own(regression):
        def collate(self, samples):
            return tuple(torch.from_numpy(np.stack(c)) for c in zip(*samples, strict=True))

        def loss(self, model, batch):
            assert isinstance(batch, tuple)
            return super().loss(model, batch)

    task = Own()
    task.initialize(0, None)
    task.gradients(samples, zeroed_views(task), lambda name: None)


def test_read_only_rows_are_collated_without_a_warning(regression, samples, zeroed_views):
    rows = [np.array(x) for x, _ in samples]
    for row in rows:
        row.flags.writeable = False
    batch = regression().collate([(row, {"label": [row]}) for row in rows])
    assert torch.equal(batch[0], torch.from_numpy(np.stack([np.array(row) for row in rows])))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda out: out.mean().item(), "returned float.*without .item"),
        (lambda out: out.mean(1), r"shape \(24,\).*mean"),
        (lambda out: out.mean().detach(), "without gradient"),
        (lambda out: None, "returned NoneType"),
    ],
)
def test_a_loss_that_is_none_says_what_to_return(
    regression, samples, zeroed_views, returned, message
):
    class Odd(regression):
        def loss(self, model, batch):
            return returned(model(batch[0]))

    task = Odd()
    task.initialize(0, None)
    with pytest.raises(TaskError, match=message):
        task.gradients(samples, zeroed_views(task), lambda name: None)


def hooks(base, **overrides):
    return type("Odd", (base,), overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": lambda self: 3}, "must return an nn.Module"),
        ({"model": lambda self: nn.Linear(2, 2).requires_grad_(False)}, "nothing to train"),
        ({"model": lambda self: nn.LazyLinear(2)}, "has no shape yet"),
        ({"model": lambda self: nn.Embedding(5, 2, max_norm=1.0)}, "max_norm, which changes"),
        ({"optimizer": lambda self, m: None}, "must return a torch.optim.Optimizer"),
        ({"optimizer": lambda self, m: torch.optim.LBFGS(m.parameters())}, "needs closure"),
        ({"optimizer": lambda self, m: torch.optim.SparseAdam(list(m.parameters()))}, "take Adam"),
        (
            {"optimizer": lambda self, m: torch.optim.SGD(nn.Linear(3, 5).parameters())},
            r"shape \(5, 3\) that is not in model",
        ),
        ({"scheduler": lambda self, o, total: 3}, "LRScheduler or None"),
        (
            {"scheduler": lambda self, o, t: torch.optim.lr_scheduler.ReduceLROnPlateau(o)},
            "needs metrics",
        ),
        ({"precision": "fp8"}, 'say "fp32" or "bf16"'),
        ({"accumulate": 0}, "whole number from 1"),
        ({"clip_norm": -1.0}, "above 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_trained_is_refused_in_a_sentence(regression, overrides, message):
    with pytest.raises(TaskError, match=message):
        hooks(regression, **overrides)().initialize(0, None)


def test_initialisation_depends_on_the_seed_alone(regression, state_digest):
    tasks = [regression() for _ in range(3)]
    for task, seed in zip(tasks, (1, 1, 2), strict=True):
        torch.rand(3)
        task.initialize(seed, None)
    assert state_digest(tasks[0]) == state_digest(tasks[1])
    assert state_digest(tasks[0]) != state_digest(tasks[2])


class Classifier(TorchTask):
    def dataset(self, data, split):
        return []

    def model(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8))
        model[2].eval()
        return model

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, model, batch):
        self.log("seen", 1.0)
        return model(batch[0]).square().mean()

    def evaluate(self, model, batch):
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        model[1].running_mean += 1
        return {"loss": (self.loss(model, batch) * len(batch[0]), len(batch[0]))}


def test_evaluation_leaves_no_trace(samples, state_digest):
    task = Classifier()
    task.initialize(0, None)
    before = state_digest(task)
    measured = task.measure(samples)
    assert measured["loss"].weight == 24
    assert state_digest(task) == before
    assert task.drain_metrics() == {}
    assert [m.training for m in task._run.model] == [True, True, False]


def test_a_task_evaluates_if_the_hook_is_written(regression):
    assert Classifier().evaluates
    assert not regression().evaluates


@pytest.mark.parametrize("returned", [3.0, {"accuracy": 3}, {"accuracy": ("a", 1)}])
def test_an_evaluation_that_returns_no_sums_and_counts_is_refused(regression, samples, returned):
    task = hooks(regression, evaluate=lambda self, model, batch: returned)()
    task.initialize(0, None)
    with pytest.raises(TaskError, match=r"dict of \(sum, count\)"):
        task.measure(samples)
