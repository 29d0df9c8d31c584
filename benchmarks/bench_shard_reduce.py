"""n shards into one: fp32, halves, orders, weights, optimizers, threads."""

import numpy as np
import pytest
import torch

from benchmarks.limits import read_limit
from smlt._core import shard_reduce

KB, MB = 1024, 1024 * 1024

IN_DRAM = [(8, 25 * MB), (32, 4 * MB), (32, 25 * MB), (100, MB), (100, 4 * MB)]
IN_CACHE = [(8, 64 * KB), (32, 64 * KB)]
CHART = [(n, size) for n in (2, 4, 16, 64) for size in (64 * KB, MB, 4 * MB)] + [
    (8, MB),
    (8, 4 * MB),
]


def name(case):
    n, size = case
    return f"{n}x{size // MB}MB" if size >= MB else f"{n}x{size // KB}KB"


def shards(n, nbytes):
    rng = np.random.default_rng(n)
    one = rng.standard_normal(nbytes // 4, dtype=np.float32)
    return [np.roll(one, i) for i in range(n)]


def numpy_loop(arrays, out):
    def run():
        np.copyto(out, arrays[0])
        for array in arrays[1:]:
            np.add(out, array, out=out)
        np.multiply(out, 1 / len(arrays), out=out)

    return run


def torch_loop(arrays, out, convert=lambda tensor: tensor, alpha=None):
    tensors, total = [torch.as_tensor(a) for a in arrays], torch.from_numpy(out)

    def run():
        total.copy_(tensors[0])
        for i, tensor in enumerate(tensors[1:], 1):
            total.add_(convert(tensor), alpha=1 if alpha is None else alpha[i])
        total.mul_(1 / len(tensors))

    return run


def ours(arrays, out, **options):
    scale = 1 / len(arrays)
    return lambda: shard_reduce.reduce(arrays, out, scale=scale, **options)


def stacks(arrays):
    tensors = [torch.from_numpy(a) for a in arrays]
    return {
        "np_mean_stack": lambda: np.mean(np.stack(arrays), axis=0),
        "torch_mean_stack": lambda: torch.stack(tensors).mean(0),
    }


@pytest.mark.parametrize("case", IN_DRAM, ids=name)
def bench_reduce_in_dram(measure, case):
    arrays = shards(*case)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    peers = {"np_add": numpy_loop(arrays, other), "torch_add": torch_loop(arrays, other)}
    # Stacks of gigabytes are a second each and prove nothing more.
    if case[0] * case[1] <= 512 * MB:
        peers |= stacks(arrays)
    measure(
        {"smlt": ours(arrays, out, order="fold"), "limit": read_limit(arrays), **peers},
        case[0] * case[1],
        {"limit": 0.9, "np_add": 1.4}
        | ({"np_mean_stack": 5.0} if "np_mean_stack" in peers else {}),
    )


@pytest.mark.parametrize("case", IN_CACHE, ids=name)
def bench_reduce_in_cache(measure, case):
    arrays = shards(*case)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    peers = {"np_add": numpy_loop(arrays, other), "torch_add": torch_loop(arrays, other)}
    measure(
        {
            "smlt": ours(arrays, out, order="fold"),
            "limit": read_limit(arrays),
            **peers,
            **stacks(arrays),
        },
        case[0] * case[1],
        {"np_add": 2.0, "torch_add": 3.0},
    )


@pytest.mark.parametrize("case", CHART, ids=name)
def bench_reduce_for_the_chart(measure, case):
    arrays = shards(*case)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    measure(
        {
            "smlt": ours(arrays, out, order="fold"),
            "limit": read_limit(arrays),
            "np_add": numpy_loop(arrays, other),
        },
        case[0] * case[1],
    )


def bench_reduce_small_call_overhead(measure):
    arrays = shards(8, 4 * KB)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    measure(
        {
            "smlt": ours(arrays, out),
            "np_add": numpy_loop(arrays, other),
            "torch_add": torch_loop(arrays, other),
        },
        8 * 4 * KB,
        {"np_add": 5.0},
    )


@pytest.mark.parametrize("case", [(8, MB), (32, 4 * MB), (100, 64 * KB)], ids=name)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def bench_reduce_halves(measure, case, dtype):
    n, size = case
    wide = shards(n, size)
    if dtype == "fp16":
        arrays = [array.astype(np.float16) for array in wide]
        tensors = [torch.from_numpy(array) for array in arrays]
    else:
        tensors = [torch.from_numpy(array).bfloat16() for array in wide]
        arrays = [tensor.view(torch.int16).numpy().view(np.uint16) for tensor in tensors]
    out, other = np.zeros((2, size // 4), np.float32)
    measure(
        {
            "smlt": ours(arrays, out, dtype=dtype),
            "limit": read_limit(arrays),
            "torch_add_float": torch_loop(tensors, other, torch.Tensor.float),
            "torch_add": torch_loop(tensors, other),
        },
        n * size // 2,
        {"torch_add": 2.5, "torch_add_float": 2.5},
    )


@pytest.mark.parametrize("case", [(32, 4 * MB), (100, 4 * MB)], ids=name)
@pytest.mark.parametrize("order", ["tree", "fp64"])
def bench_reduce_order(measure, case, order):
    arrays = shards(*case)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    measure(
        {
            "smlt": ours(arrays, out, order=order),
            "limit": read_limit(arrays),
            "fold": ours(arrays, other, order="fold"),
            "np_add": numpy_loop(arrays, other),
        },
        case[0] * case[1],
        {"fold": 0.8} if order == "tree" else {},
    )


@pytest.mark.parametrize("case", [(8, MB), (32, 4 * MB)], ids=name)
def bench_reduce_weighted(measure, case):
    arrays = shards(*case)
    weights = [1 + i / 7 for i in range(case[0])]
    out, other = np.zeros((2, arrays[0].size), np.float32)
    measure(
        {
            "smlt": ours(arrays, out, weights=weights),
            "limit": read_limit(arrays),
            "torch_add_alpha": torch_loop(arrays, other, alpha=weights),
        },
        case[0] * case[1],
    )


@pytest.mark.parametrize("case", [(8, MB), (32, 4 * MB)], ids=name)
def bench_reduce_with_norm(measure, case):
    """The squared norm and the check for non-finite values, from the same pass."""
    arrays = shards(*case)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    plain = ours(arrays, other)

    def reduce_then_norm():
        plain()
        return float(np.dot(other, other)), bool(np.isfinite(other).all())

    measure(
        {
            "smlt": ours(arrays, out, norm=True),
            "reduce_alone": plain,
            "reduce_then_numpy": reduce_then_norm,
        },
        case[0] * case[1],
    )


def optimizer_case(n, size, make):
    arrays = shards(n, size)
    count = arrays[0].size
    param = torch.nn.Parameter(torch.zeros(count))
    param.grad = torch.zeros(count)
    gradient = torch_loop(arrays, param.grad.numpy())
    optimizer = make([param])

    def torch_step():
        gradient()
        optimizer.step()

    return arrays, np.zeros((3, count), np.float32), torch_step


@pytest.mark.parametrize("case", [(8, MB), (32, 4 * MB), (100, 64 * KB)], ids=name)
def bench_reduce_adamw(measure, case):
    arrays, state, torch_step = optimizer_case(*case, lambda p: torch.optim.AdamW(p, fused=True))
    scale = 1 / case[0]
    measure(
        {
            "smlt": lambda: shard_reduce.reduce_adamw(arrays, *state, step=10, scale=scale),
            "limit": read_limit(arrays),
            "torch_fused": torch_step,
        },
        case[0] * case[1],
        {"torch_fused": 1.5},
    )


@pytest.mark.parametrize("case", [(8, MB), (32, 4 * MB), (100, 64 * KB)], ids=name)
def bench_reduce_sgd_momentum(measure, case):
    arrays, state, torch_step = optimizer_case(
        *case, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True)
    )
    scale = 1 / case[0]

    def step():
        shard_reduce.reduce_sgd(arrays, state[0], state[1], lr=0.1, momentum=0.9, scale=scale)

    measure(
        {"smlt": step, "limit": read_limit(arrays), "torch_fused": torch_step}, case[0] * case[1]
    )


@pytest.mark.parametrize("wire_dtype", ["fp16", "bf16"])
def bench_reduce_cast_with_error_feedback(measure, wire_dtype):
    arrays = shards(8, 4 * MB)
    tensors = [torch.from_numpy(array) for array in arrays]
    residual, total = np.zeros((2, arrays[0].size), np.float32)
    wire = np.zeros(arrays[0].size, np.uint16)
    kind = torch.float16 if wire_dtype == "fp16" else torch.bfloat16
    loss, mean = torch.zeros(arrays[0].size), torch_loop(tensors, total)

    def torch_cast():
        mean()
        loss.add_(torch.from_numpy(total))
        sent = loss.to(kind)
        loss.sub_(sent.float())

    def cast():
        shard_reduce.reduce_cast(
            arrays, wire, wire_dtype=wire_dtype, residual=residual, scale=1 / 8
        )

    measure({"smlt": cast, "limit": read_limit(arrays), "torch": torch_cast}, 32 * MB)


@pytest.mark.parametrize("case", [(8, 25 * MB), (32, 4 * MB)], ids=name)
def bench_reduce_two_threads(measure, case):
    arrays = shards(*case)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    torch.set_num_threads(2)
    measure(
        {
            "smlt": ours(arrays, out, threads=2),
            "one_thread": ours(arrays, other),
            "torch_add_two_threads": torch_loop(arrays, other),
        },
        case[0] * case[1],
    )


@pytest.mark.parametrize("case", [(8, 4 * MB), (32, 4 * MB)], ids=name)
def bench_reduce_as_a_stream(measure, case):
    """One shard at a time in rank order, as an owner receives them."""
    arrays = shards(*case)
    out, other = np.zeros((2, arrays[0].size), np.float32)
    stream = shard_reduce.StreamReducer(arrays[0].size, case[0])

    def feed():
        for index, array in enumerate(arrays):
            stream.add(index, array)
        stream.finish(out, 1 / case[0])

    measure(
        {
            "smlt": feed,
            "limit": read_limit(arrays),
            "batch": ours(arrays, other),
            "np_add": numpy_loop(arrays, other),
        },
        case[0] * case[1],
    )
