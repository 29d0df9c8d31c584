"""The step beside its peers, its limits and its targets, interleaved (`step_schemes.py`).

    python -m benchmarks.bench_step [-k EXPRESSION]   # measures, and writes STEP.md and its charts

Ratios are of neighbouring steps: their median with a 95 % confidence interval by bootstrap. With
``-k`` some cases are measured, and STEP.md is written anew from them and what was measured before.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import step_overlap
from benchmarks.step_ranks import Options, measure, median_ms, ratio

FOLDER = Path(__file__).parent
MEASURED = FOLDER / ".cache" / "step.json"
"""The newest result of each case, by its name."""
LARGE_SHARD_MB = 16.0
"""What the trials of a job's first steps choose here (decision 0061)."""
LINK_MBPS, LINK_MB = 20.0, 20.0
SCALING_MBPS, SCALING_MB = 4.0, 4.0


def record(benchmark, options, steps, **figures):
    """Keep times, CPU seconds and what else is told, and show them."""
    info = benchmark.extra_info
    for name, taken in steps.items():
        info[f"{name} ms"] = median_ms(taken)
        info[f"{name} CPU ms"] = round(
            1e3 * float(np.median([step.ranks_cpu_s + step.server_cpu_s for step in taken]))
        )
    info |= {"ranks": options.ranks, "MB": options.megabytes, "pairs": options.pairs, **figures}
    print(f"\n{benchmark.name}", json.dumps({k: v for k, v in info.items() if k != "spans"}))


def seconds(steps):
    return [step.seconds for step in steps]


def cpu(steps):
    return [step.ranks_cpu_s + step.server_cpu_s for step in steps]


def run(benchmark, options):
    return benchmark.pedantic(lambda: measure(options), rounds=1)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize(("ranks", "megabytes"), [(4, 100), (8, 44)])
@pytest.mark.parametrize("peers", [("gloo", "relay", "store"), ("paper", "lambdaml")], ids="-".join)
def bench_large(benchmark, peers, ranks, megabytes, tcp):
    schemes = ("smlt", *peers)
    options = Options(schemes=schemes, ranks=ranks, megabytes=megabytes, tcp=tcp, trace=True)
    options.shard_mb = LARGE_SHARD_MB
    steps = run(benchmark, options)
    ours = steps["smlt"]
    counted = [name for name in peers if name != "relay"]  # a process of its own takes part in that
    typical = min(ours, key=lambda step: abs(step.seconds - np.median(seconds(ours))))
    limit = {}
    if "store" in peers:  # what no client of a server can beat
        limit["store / gloo"] = ratio(seconds(steps["store"]), seconds(steps["gloo"]))
    record(
        benchmark,
        options,
        steps,
        **{f"time / {name}": ratio(seconds(ours), seconds(steps[name])) for name in schemes[1:]},
        **{f"CPU / {name}": ratio(cpu(ours), cpu(steps[name])) for name in counted},
        **limit,
        spans=typical.told[0]["spans"],
        phases=typical.told[0]["phases"],
    )


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def bench_small(benchmark, tcp):
    options = Options(schemes=("smlt", "floor", "paper"), ranks=4, megabytes=0.1, tcp=tcp)
    options.pairs = 200
    steps = run(benchmark, options)
    over = np.subtract(seconds(steps["smlt"]), seconds(steps["floor"]))
    record(benchmark, options, steps, **{"over the floor, ms": round(1e3 * np.median(over), 2)})


def bench_link(benchmark):
    options = Options(schemes=("smlt", "bf16"), ranks=4, megabytes=LINK_MB)
    options.link_mbps, options.pairs = LINK_MBPS, 20
    options.shard_mb = 0.5
    steps = run(benchmark, options)

    def floor_s(step):
        return max(max(rank["passed"]) for rank in step.told) / (LINK_MBPS * 1e6)

    figures = {
        f"{name} / floor": ratio(seconds(steps[name]), [floor_s(step) for step in steps[name]])
        for name in steps
    }
    up, down = np.median([[r["passed"] for r in s.told] for s in steps["smlt"]], axis=(0, 1)) / 1e6
    record(
        benchmark,
        options,
        steps,
        **figures,
        **{"bf16 / smlt": ratio(seconds(steps["bf16"]), seconds(steps["smlt"]))},
        **{"MB up": round(up, 2), "MB down": round(down, 2)},
    )


def bench_overlap(benchmark):
    link_mbps = 20.0
    megabytes = 4e-6 * step_overlap.elements()
    options = Options(schemes=tuple(step_overlap.SCHEMES), ranks=2, megabytes=megabytes)
    options.link_mbps, options.trace, options.shard_mb = link_mbps, True, 0.5
    options.pairs = 20
    options.samples = step_overlap.samples_for(megabytes / link_mbps)
    steps = run(benchmark, options)
    apart = np.add(seconds(steps["compute"]), seconds(steps["communicate"]))
    last = steps["overlapped"][-1].told[0]
    record(
        benchmark,
        options,
        steps,
        **{"overlapped / (compute + communicate)": ratio(seconds(steps["overlapped"]), apart)},
        spans=last["spans"],
        phases=last["phases"],
    )


@pytest.mark.parametrize(("ranks", "megabytes"), [(2, 100), (4, 100), (8, 44)])
def bench_memory(benchmark, ranks, megabytes):
    options = Options(schemes=("smlt",), ranks=ranks, megabytes=megabytes, pairs=3)
    options.shard_mb = LARGE_SHARD_MB
    steps = run(benchmark, options)
    most = max(rank["memory_mb"] for rank in steps["smlt"][-1].told)
    allowed = 64 + (math.log2(ranks) + 8) * options.shard_mb
    record(benchmark, options, steps, **{"peak MB": round(most), "allowed MB": round(allowed)})


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def bench_scaling(benchmark, ranks):
    options = Options(schemes=("smlt",), ranks=ranks, megabytes=SCALING_MB, pairs=5)
    # Four or more for each owner: the next are on their way while one is reduced.
    options.link_mbps, options.shard_mb = SCALING_MBPS, SCALING_MB / 4 / max(ranks, 4)
    steps = run(benchmark, options)
    up = SCALING_MB if ranks > 1 else 0.0
    down = 2 * SCALING_MB * (ranks - 1) / ranks
    record(benchmark, options, steps, **{"floor ms": round(1e3 * max(up, down) / SCALING_MBPS)})


def main(arguments) -> int:
    from benchmarks.step_report import write_report  # noqa: PLC0415

    MEASURED.parent.mkdir(exist_ok=True)
    new = MEASURED.with_suffix(".new.json")
    command = [
        sys.executable, "-m", "pytest", "-q", "-s", "--timeout=900", "--benchmark-columns=median",
        f"--benchmark-json={new}", __file__, *arguments,
    ]  # fmt: skip
    code = subprocess.run(command, check=False).returncode
    if not code:
        write_report(merged(new), FOLDER)
    return code


def merged(new: Path) -> dict[str, dict]:
    """Put new results to those kept, and return what is kept of each case, in order of cases."""
    kept = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    measured = json.loads(new.read_text())
    for bench in measured["benchmarks"]:
        kept[bench["name"]] = bench["extra_info"] | {"commit": measured["commit_info"]["id"][:12]}
    MEASURED.write_text(json.dumps(kept, indent=1))
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
