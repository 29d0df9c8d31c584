"""Every kernel test runs on each implementation: AVX2, the baseline, and the NumPy twin."""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from smlt import _core
from smlt._core._reference import codec as reference_codec
from smlt._core._reference import shard_reduce as reference_shard_reduce


def _implementations() -> tuple[str, ...]:
    if not _core.COMPILED:
        return ("reference",)
    best = _core.shard_reduce.instruction_set()
    return (*dict.fromkeys((best, "baseline")), "reference")


@pytest.fixture(params=_implementations())
def kernels(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """The two modules of one implementation, as .shard_reduce and .codec."""
    if request.param == "reference":
        yield SimpleNamespace(shard_reduce=reference_shard_reduce, codec=reference_codec)
        return
    best = _core.shard_reduce.instruction_set()
    _core.shard_reduce.use_instruction_set(request.param)
    yield SimpleNamespace(shard_reduce=_core.shard_reduce, codec=_core.codec)
    _core.shard_reduce.use_instruction_set(best)


@pytest.fixture
def shard_reduce(kernels: SimpleNamespace) -> ModuleType:
    return kernels.shard_reduce


@pytest.fixture
def codec(kernels: SimpleNamespace) -> ModuleType:
    return kernels.codec


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
