"""Steps whose gradients come from a real backward of torch, with communication or without."""

import asyncio
import time
from functools import partial

import numpy as np

from benchmarks.step_schemes import Smlt
from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.aggregation.phases import COMPUTE

WIDTH, LAYERS, SAMPLES = 512, 20, 2048


def elements():
    return LAYERS * WIDTH * WIDTH


class Backward(Smlt):
    """Layers of a perceptron; each one's gradient is sent when backward has passed it."""

    def __init__(self, options, rank, flat, *, computes, sends) -> None:
        import torch  # noqa: PLC0415

        torch.set_num_threads(1)
        self._torch, self._computes, self._sends = torch, computes, sends
        torch.manual_seed(0)
        self._weights = [
            torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(LAYERS)
        ]
        self._input = torch.randn(options.samples, WIDTH)
        # In the order of backward.
        shapes = {str(layer): (WIDTH, WIDTH) for layer in reversed(range(LAYERS))}
        self._buffer = GradientBuffer(shapes)
        super().__init__(options, rank, self._buffer.flat, job=f"{computes}-{sends}")
        self._buffer.partition(self._plan)
        # Without backward: what is all zeros would not travel.
        self._random = np.random.default_rng(rank).standard_normal(elements(), np.float32)

    def _compute(self, ready) -> None:
        value = self._input
        for weight in self._weights:
            value = self._torch.relu(value @ weight)
        handles = [
            weight.register_post_accumulate_grad_hook(partial(self._accumulated, str(layer), ready))
            for layer, weight in enumerate(self._weights)
        ]
        value.square().mean().backward()
        for handle, weight in zip(handles, self._weights, strict=True):
            handle.remove()
            weight.grad = None

    def _accumulated(self, name, ready, weight) -> None:
        np.copyto(self._buffer.views[name], weight.grad.numpy())
        ready(name)

    async def _all_reduce(self):
        loop = asyncio.get_running_loop()
        self._buffer.begin()
        reduction = self._begin()
        if self._sends:
            reducing = asyncio.create_task(reduction.run())

            def ready(name):
                loop.call_soon_threadsafe(self._buffer.ready, name, reduction.ready)

        else:

            def ready(name):
                pass

        if self._computes:
            with reduction.phases.during(COMPUTE):
                await asyncio.to_thread(self._compute, ready)
        else:
            np.copyto(self._buffer.flat, self._random)
        if self._sends:
            self._buffer.finish(reduction.ready)
            await reducing
        reduction.phases.stop()
        return reduction.phases


SCHEMES = {
    "overlapped": partial(Backward, computes=True, sends=True),
    "compute": partial(Backward, computes=True, sends=False),
    "communicate": partial(Backward, computes=False, sends=True),
}


def samples_for(seconds):
    """How many samples take so long, forward and backward, on this machine alone."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    weights = [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(LAYERS)]

    def once():
        value = torch.randn(SAMPLES, WIDTH)
        for weight in weights:
            value = torch.relu(value @ weight)
        value.square().mean().backward()

    once()
    begun = time.perf_counter()
    once()
    return max(1, round(SAMPLES * seconds / (time.perf_counter() - begun)))
