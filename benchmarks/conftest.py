"""`pytest benchmarks/bench_*.py` measures: what addopts turn off for the tests is on here."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.interleaved import Comparison, Function, compare

OURS = "smlt"
LIMIT = "limit"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_functions", "bench_*")
    if not config.getoption("--collect-only"):
        config.option.benchmark_disable = False


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Peers are measured on one thread, as the kernels are by default."""
    torch.set_num_threads(1)


Measure = Callable[..., Comparison]


@pytest.fixture
def measure(benchmark) -> Measure:
    """Return a function that compares ours with its peers and records what came out.

    Its first argument maps names to functions; "smlt" is ours, "limit" the machine's. `targets`
    maps a peer to the least speedup over it ("limit": the least fraction of it).
    """

    def run(
        functions: dict[str, Function], nbytes: int, targets: dict[str, float] | None = None
    ) -> Comparison:
        result = compare(functions)
        info = benchmark.extra_info
        info["gb_per_s"] = nbytes / result.median(OURS) / 1e9
        info["milliseconds"] = 1e3 * result.median(OURS)
        info["peers_gb_per_s"] = {
            name: nbytes / result.median(name) / 1e9 for name in functions if name != OURS
        }
        for name in functions:
            if name not in (OURS, LIMIT):
                info[f"ratio_to_{name}"] = result.speedup(OURS, over=name)
        if LIMIT in functions:
            info["fraction_of_limit"] = result.speedup(OURS, over=LIMIT)
            for name in targets or {}:
                if name != LIMIT:
                    info[f"ratio_of_limit_to_{name}"] = result.speedup(LIMIT, over=name)
        info["targets"] = targets or {}
        benchmark.pedantic(functions[OURS], rounds=3, iterations=1)
        return result

    return run
