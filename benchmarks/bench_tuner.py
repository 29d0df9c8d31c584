"""Regret of our optimiser and its peers, on a published curve and on surfaces with limits.

    python benchmarks/bench_tuner.py --curve FILE --seeds 50 [--noise 0.05] [--json]

Regret is how far the best plan found is behind the best there is, in per cent; with noise, that of
the plan which the optimiser takes for the best. FILE has the form of bert_small_utility.json. The
surfaces are drawn: least cost before a deadline and least time within a budget, over workers ×
memory, some plans failing for want of memory, always with 5 % of noise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

# One core per optimiser, or the small matrices spend their time in waking threads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from benchmarks.tuner_peers import OPTIMIZERS, installed, regrets  # noqa: E402
from benchmarks.tuner_surfaces import Surface, make_surfaces, read_curve  # noqa: E402

AFTER = (4, 5, 8, 12)
SURFACE_NOISE = 0.05


def compare(surfaces: list[Surface], names: list[str], seeds: int, noise: float) -> dict:
    """Return mean and largest regret in per cent after AFTER evaluations, by optimiser."""
    table = {}
    for name in names:
        if not installed(name):
            table[name] = {"not_installed": OPTIMIZERS[name][0]}
            continue
        start = time.process_time()
        # On a family every seed is another surface; on a single curve all seeds share it.
        runs = [
            regrets(name, surfaces[seed % len(surfaces)], noise, seed, max(AFTER))
            for seed in range(seeds)
        ]
        at = 100 * np.array(runs)[:, np.array(AFTER) - 1]
        table[name] = {
            "mean_regret_percent": dict(
                zip(map(str, AFTER), at.mean(axis=0).tolist(), strict=True)
            ),
            "largest_percent": dict(zip(map(str, AFTER), at.max(axis=0).tolist(), strict=True)),
            "cpu_s_per_run": (time.process_time() - start) / seeds,
        }
    return table


def report(title: str, table: dict) -> str:
    lines = [title, f"{'':24}" + "".join(f"{'after ' + str(k):>10}" for k in AFTER) + "  CPU s"]
    for name, row in table.items():
        if "not_installed" in row:
            lines.append(f"{name:24}  {row['not_installed']} is not installed")
            continue
        figures = "".join(f"{v:10.3f}" for v in row["mean_regret_percent"].values())
        lines.append(f"{name:24}{figures}{row['cpu_s_per_run']:7.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curve", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--noise", type=float, default=0.0, help="relative, on the curve")
    parser.add_argument("--surface-seeds", type=int, help="by default as many as --seeds")
    parser.add_argument("--only", help="some optimisers, separated by commas")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(OPTIMIZERS)
    unknown = set(names) - set(OPTIMIZERS)
    if unknown:
        parser.error(f"--only knows {', '.join(OPTIMIZERS)}, not {', '.join(sorted(unknown))}")
    count = arguments.seeds if arguments.surface_seeds is None else arguments.surface_seeds
    if arguments.seeds < 1 or not 0 <= arguments.noise < 1 or count < 0:
        parser.error("give --seeds of at least 1, and a --noise from 0 to below 1")
    try:
        read = read_curve(arguments.curve)
    except ValueError as exc:
        parser.error(str(exc))
    curve = compare([read], names, arguments.seeds, arguments.noise)
    surfaces = compare(make_surfaces(0, count), names, count, SURFACE_NOISE) if count else {}
    if arguments.json:
        result = {
            "curve": str(arguments.curve),
            "seeds": arguments.seeds,
            "noise": arguments.noise,
            "optimizers": curve,
            "surfaces": {"seeds": count, "noise": SURFACE_NOISE, "optimizers": surfaces},
        }
        print(json.dumps(result, indent=1))
        return
    print(report(f"{arguments.curve.stem}, noise {arguments.noise:.0%}, mean regret in %", curve))
    if count:
        print(report(f"\n{count} surfaces, noise {SURFACE_NOISE:.0%}, mean regret in %", surfaces))


if __name__ == "__main__":
    main()
