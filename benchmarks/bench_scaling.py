"""Play whole jobs on simulated time, from 10 to 10,000 workers; docs/scaling.md reads the result.

    python benchmarks/bench_scaling.py [--part fleets|schemes|plans|doubling|machines] \\
        [--chart PNG] [--json]

Scheduler, supervisor and resource manager are the real ones; functions are simulated, at Lambda's
prices, with cold starts, stragglers, deaths and the limit of 15 minutes (`scaling/fleet.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scaling.fleet import Law, Weather
from benchmarks.scaling.simulated_job import Played, play
from smlt.control.plan_grid import plan_grid, plans_of
from smlt.control.prices import read_prices
from smlt.messages.job import JobSpec, Limits, ResourcePlan

PUBLISHED = Path(__file__).resolve().parents[1] / "tests" / "data" / "published" / "resnet18.json"
SERIAL = 0.2  # of a worker's computation, the part that more vCPUs do not speed up
GB_SECOND = 0.0000166667
BOOT_S = 120.0  # of a virtual machine, until it trains
HIDDEN = 2 / 3  # of the computation is backward, behind which gradients travel


def speed(memory_mb: int) -> float:
    """How much faster than one vCPU a function of this size computes."""
    vcpus = memory_mb / 1769
    return vcpus if vcpus < 1 else 1 / (SERIAL + (1 - SERIAL) / vcpus)


def workload(work_s: float, link_s: float = 0.6, store_s: float = 0.004, pieces: int = 1024) -> Law:
    """A step of so many vCPU-seconds, cut into pieces.

    The exchange takes link_s, and store_s for each other worker; it overlaps with backward.
    """

    def law(plan: ResourcePlan, step: int) -> float:
        compute = work_s * -(-pieces // plan.workers) / pieces / speed(plan.memory_mb)
        exchange = link_s * (plan.workers - 1) / plan.workers + store_s * (plan.workers - 1)
        return compute + max(0.0, exchange - HIDDEN * compute)

    return law


def fleets(sizes: tuple[int, ...] = (10, 100, 1000, 10_000)) -> list[dict[str, Any]]:
    """Play one job on ever more workers, each with an equal share: weak scaling."""
    rows = []
    for workers in sizes:
        pieces = 1 << max(10, (workers - 1).bit_length())
        law = workload(2.0 * pieces, pieces=pieces, store_s=0.0005)
        plan = ResourcePlan(workers=workers, memory_mb=1769)
        played = play(
            law,
            plan,
            steps=max(4, min(100, round(1500 / law(plan, 0)))),
            weather=Weather(concurrency=10_000),
            virtual_workers=pieces,
        )
        rows.append({"workers": workers, **_figures(played)})
    return rows


def schemes(sizes: tuple[int, ...] = (10, 50, 100, 150, 200), steps: int = 40) -> dict[str, Any]:
    """Play the published ResNet-18 job by SMLT's scheme, and by ours on the same links.

    SMLT's exchange is three gradients over the link, one after the other, and a time by worker at
    the shared store; both are fitted to the published exchanges. Ours moves the same bytes, up and
    down at once and behind backward. The published batch is 200 pieces, the remainder dropped.
    """
    curves = json.loads(PUBLISHED.read_text())
    exchange, step = curves["communication_s_per_step"]["SMLT"], curves["step_s"]["SMLT"]
    by_worker, at_once = np.polyfit(exchange["workers"], exchange["seconds"], 1)
    published = dict(zip(step["workers"], step["seconds"], strict=True))
    computed = 10 * (published[10] - exchange["seconds"][0])

    def compute(workers: int) -> float:
        return computed * (200 // workers) / 200

    def smlt(plan: ResourcePlan, step: int) -> float:
        return compute(plan.workers) + at_once + by_worker * plan.workers

    def ours(plan: ResourcePlan, step: int) -> float:
        local = compute(plan.workers)
        moved = 2 / 3 * at_once * (plan.workers - 1) / plan.workers + by_worker * plan.workers
        return local + max(0.0, moved - HIDDEN * local)

    rows = []
    for workers in sizes:
        plan, calm = ResourcePlan(workers=workers, memory_mb=1769), Weather(deaths_per_hour=0)
        theirs, own = (
            play(law, plan, steps, weather=calm, virtual_workers=256) for law in (smlt, ours)
        )
        rows.append(
            {
                "workers": workers,
                "published_s": published[workers],
                "smlt_s": smlt(plan, 0),
                "ours_s": ours(plan, 0),
                "smlt_job_s": theirs.time_s,
                "ours_job_s": own.time_s,
                "smlt_usd": theirs.cost_usd,
                "ours_usd": own.cost_usd,
            }
        )
    return {"link_s": float(at_once), "by_worker_s": float(by_worker), "rows": rows}


DOUBLING = ((1500, 1024), (750, 2048), (375, 4096))


def doubling(seeds: int = 3, deadline_s: float = 3600.0) -> dict[str, Any]:
    """Compare likewise a job whose batch doubles twice: its work does, its exchange does not."""
    sizes = [size for count, size in DOUBLING for _ in range(count)]
    laws = {size: workload(size / 1024 * 30.0) for _, size in DOUBLING}
    first = ResourcePlan(workers=8, memory_mb=1769)

    def law(plan: ResourcePlan, step: int) -> float:
        return laws[sizes[min(step, len(sizes) - 1)]](plan, step)

    spec = JobSpec(target="t:T", virtual_workers=1024, most_workers=256)
    fixed = {}
    for plan in plans_of(plan_grid(spec, first)):
        parts = [_by_hand(laws[size], plan, count) for count, size in DOUBLING]
        fixed[plan] = sum(time for time, _ in parts), sum(usd for _, usd in parts)
    best = min((p for p in fixed if fixed[p][0] <= deadline_s), key=lambda p: fixed[p][1])
    played = [
        play(
            law, first, len(sizes), seed=seed, batches=DOUBLING, adapt=True, most_workers=256,
            deadline_s=deadline_s,
        )
        for seed in range(seeds)
    ]  # fmt: skip
    return {
        "deadline_s": deadline_s,
        "best_fixed": {**best.to_dict(), "time_s": fixed[best][0], "usd": fixed[best][1]},
        "arbitrary": {"time_s": fixed[first][0], "usd": fixed[first][1]},
        "adaptive": [{**_figures(p), **p.plan.to_dict(), "decisions": p.decisions} for p in played],
    }


def plans(steps: int = 3000, seeds: int = 3) -> dict[str, Any]:
    """Compare the adaptive job with the best fixed plan of a grid, and with an arbitrary one."""
    law, first = workload(30.0), ResourcePlan(workers=8, memory_mb=1769)
    spec = JobSpec(target="t:T", virtual_workers=1024, most_workers=256)
    fixed = {plan: _by_hand(law, plan, steps) for plan in plans_of(plan_grid(spec, first))}
    deadline_s = 3600.0
    budget = 1.5 * min(usd for _, usd in fixed.values())
    result: dict[str, Any] = {"steps": steps, "first": first.to_dict(), "goals": []}
    for goal, limit in (("deadline_s", deadline_s), ("budget_usd", budget)):
        allowed = {p: f for p, f in fixed.items() if f[goal == "budget_usd"] <= limit}
        best = min(allowed, key=lambda p: fixed[p][goal == "deadline_s"])
        played = [
            play(law, first, steps, seed=seed, adapt=True, most_workers=256, **{goal: limit})
            for seed in range(seeds)
        ]
        result["goals"].append(
            {
                "goal": goal,
                "limit": limit,
                "best_fixed": {**best.to_dict(), "time_s": fixed[best][0], "usd": fixed[best][1]},
                "arbitrary": {"time_s": fixed[first][0], "usd": fixed[first][1]},
                "adaptive": [
                    {**_figures(p), **p.plan.to_dict(), "decisions": p.decisions} for p in played
                ],
            }
        )
    return result


def machines(hours: tuple[float, ...] = (0.1, 0.3, 1, 3, 10, 30, 100, 300)) -> dict[str, Any]:
    """Price jobs of so many vCPU-hours on Lambda and on one on-demand machine of 16 vCPUs."""
    prices = read_prices()
    vcpus = int(prices.rate("machines", "c5.4xlarge", "vcpus"))
    per_second = prices.rate("machines", "c5.4xlarge", "per_hour") / 3600
    function_second = 1769 / 1024 * GB_SECOND
    rows = []
    for amount in hours:
        vm_s = BOOT_S + 3600 * amount / vcpus
        row = {"vcpu_hours": amount, "vm_s": vm_s, "vm_usd": per_second * max(60.0, vm_s)}
        for workers in (16, 128):
            # Efficiency as that of `workload`: what each worker waits for is paid for, too.
            step = workload(30.0)(ResourcePlan(workers=workers, memory_mb=1769), 0)
            efficiency = 30.0 / workers / step
            seconds = 8.0 + 3600 * amount / workers / efficiency
            row |= {
                f"lambda{workers}_s": seconds,
                f"lambda{workers}_usd": seconds * workers * function_second,
            }
        rows.append(row)
    return {
        "break_even_utilisation": per_second / (vcpus * function_second),
        "rows": rows,
    }


def _by_hand(law: Law, plan: ResourcePlan, steps: int) -> tuple[float, float]:
    """Time and cost of a fixed plan: 5 s to start, and again whenever functions hand over."""
    limits = Limits()
    work_s = steps * law(plan, 0)
    in_one_s = limits.function_s - limits.handover_margin_s - 5.0
    seconds = work_s + 5.0 * math.ceil(work_s / in_one_s)
    return seconds, seconds * plan.workers * plan.memory_mb / 1024 * GB_SECOND


def _figures(played: Played) -> dict[str, Any]:
    return {
        "status": played.status,
        "steps": played.steps,
        "time_s": played.time_s,
        "usd": played.cost_usd,
        "generations": played.generations,
        "deaths": played.deaths,
        "client_cpu_share": played.client_cpu_s / played.time_s,
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the schemes over the published curve, and Lambda beside a machine."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    rows = results["schemes"]["rows"]
    workers = [row["workers"] for row in rows]
    left.plot(workers, [row["published_s"] for row in rows], "kx", label="published (SMLT)")
    left.plot(workers, [row["smlt_s"] for row in rows], label="SMLT's scheme, simulated")
    left.plot(workers, [row["ours_s"] for row in rows], label="ours, same links")
    left.set(xlabel="workers", ylabel="seconds per step", yscale="log", title="ResNet-18")
    left.legend()
    rows = results["machines"]["rows"]
    hours = [row["vcpu_hours"] for row in rows]
    right.plot(hours, [row["vm_usd"] for row in rows], label="c5.4xlarge, on demand")
    for count in (16, 128):
        right.plot(hours, [row[f"lambda{count}_usd"] for row in rows], label=f"{count} functions")
    right.set(xlabel="vCPU-hours of work", ylabel="US dollars", xscale="log", yscale="log")
    right.set_title("Cost of one job")
    right.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


PARTS = {
    "fleets": fleets,
    "schemes": schemes,
    "plans": plans,
    "doubling": doubling,
    "machines": machines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.chart is not None and not {"schemes", "machines"} <= set(given.part or PARTS):
        parser.error("--chart draws the parts schemes and machines: give both")
    results: dict[str, Any] = {name: PARTS[name]() for name in given.part or PARTS}
    if given.chart is not None:
        draw(results, given.chart)
    print(json.dumps(results, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
