"""Fit the performance model to a few worker counts of a published system, and predict the others.

    python benchmarks/bench_performance_model.py --published FILE --system SMLT --fit 10,50 \
        [--virtual-workers 200 --remainder dropped] [--chart PATH] [--json]

FILE has the form of resnet18.json: seconds per step, and if known of its communication, by the
number of workers. Some systems divide their batch among the workers by an integer division, and so
compute less where it has a remainder. Where nothing is said of that, three hypotheses are fitted:
the batch divides evenly, or it has as many pieces as the sweep has workers at most, or twice as
many, and the remainder is dropped. They are equally likely beforehand; what is predicted is their
mean, weighted by how well each explains what is known.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smlt.control.performance_model import PerformanceModel, StepPrediction, fit_performance
from smlt.control.step_measurement import Granularity, Measurement, Setting

TARGET_PERCENT = 15.0


def predict(
    curves: dict, system: str, fit: list[int], granularity: Granularity | None
) -> dict[str, Any]:
    """Return measured and predicted steps by worker count, and the largest error held out.

    Without a granularity, all that come into question are considered.

    Raises:
        ValueError: the file lacks the system, or the system one of the worker counts; or a count or
            a time is impossible.
    """
    steps = _series(curves, "step_s", system)
    communication = _series(curves, "communication_s_per_step", system, optional=True)
    missing = [workers for workers in fit if workers not in steps]
    if missing or not fit:
        raise ValueError(f"{system} was measured with {sorted(steps)} workers, not {missing}")
    measured = [
        Measurement(
            setting=Setting(workers=workers),
            step_s=steps[workers],
            communication_s=communication.get(workers),
        )
        for workers in fit
    ]
    possible = [granularity] if granularity else hypotheses(max(steps))
    models = [fit_performance(measured, each) for each in possible]
    predicted = averaged(models, [Setting(workers=workers) for workers in steps])
    rows = [
        {
            "workers": workers,
            "measured_s": measured,
            "predicted_s": float(step),
            "low_s": float(low),
            "high_s": float(high),
            "predicted_communication_s": float(exchange),
            "error_percent": 100 * (float(step) / measured - 1),
            "fitted": workers in fit,
        }
        for (workers, measured), step, low, high, exchange in zip(
            steps.items(), predicted.step_s, predicted.low_s, predicted.high_s,
            predicted.communication_s, strict=True,
        )
    ]  # fmt: skip
    held_out = [abs(row["error_percent"]) for row in rows if not row["fitted"]]
    worst = max(held_out, default=0.0)
    return {
        "system": system,
        "fit": fit,
        "max_error_percent": worst,
        "within_15_percent": worst <= TARGET_PERCENT,
        "predictions": rows,
    }


def hypotheses(most: int) -> list[Granularity]:
    """Return how the batch of a sweep up to so many workers may be cut.

    In fewer pieces than workers it cannot be; the more there are, the nearer to an even division.
    """
    pieces = [Granularity(virtual_workers=k * most, remainder="dropped") for k in (1, 2)]
    return [Granularity(), *pieces]


def averaged(models: list[PerformanceModel], settings: list[Setting]) -> StepPrediction:
    """Return the mean of several models' predictions, weighted by their evidence."""
    evidence = np.array([model.log_evidence for model in models])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    predictions = [model.predict(settings) for model in models]

    def mean(values: list[Any]) -> Any:
        return np.tensordot(weights, np.stack(values), axes=1)

    step = mean([p.step_s for p in predictions])
    variance = mean([p.log_sd**2 + np.log(p.step_s / step) ** 2 for p in predictions])
    factor = np.exp(NormalDist().inv_cdf(0.95) * np.sqrt(variance))
    return StepPrediction(
        step, step / factor, step * factor, mean([p.compute_s for p in predictions]),
        mean([p.communication_s for p in predictions]), np.sqrt(variance),
    )  # fmt: skip


def draw(result: dict[str, Any], title: str, path: Path) -> None:
    """Draw the measured points over the predicted curve and its 90 % interval."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    rows = result["predictions"]
    workers = [row["workers"] for row in rows]
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot(workers, [row["predicted_s"] for row in rows], label="predicted")
    axes.fill_between(
        workers, [r["low_s"] for r in rows], [r["high_s"] for r in rows], alpha=0.2, label="90 %"
    )
    for fitted, marker, label in ((True, "o", "fitted to"), (False, "x", "held out")):
        chosen = [row for row in rows if row["fitted"] == fitted]
        axes.plot(
            [r["workers"] for r in chosen], [r["measured_s"] for r in chosen], marker,
            color="black", label=label,
        )  # fmt: skip
    axes.set(xlabel="workers", ylabel="seconds per step", yscale="log", ylim=(None, None))
    axes.set_title(f"{title}: {result['system']}", fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _series(curves: dict, kind: str, system: str, *, optional: bool = False) -> dict[int, float]:
    systems = curves.get(kind, {})
    if system not in systems:
        if optional:
            return {}
        raise ValueError(f"there is no {kind} of {system!r}; there is {', '.join(systems)}")
    series = dict(zip(systems[system]["workers"], systems[system]["seconds"], strict=True))
    least = 0.0 if optional else sys.float_info.min  # one worker alone need not communicate
    for workers, seconds in series.items():
        if workers < 1 or workers != int(workers) or not least <= seconds < float("inf"):
            raise ValueError(f"{kind} of {system} cannot be {seconds} s with {workers} workers")
    return series


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--system", required=True)
    parser.add_argument("--fit", required=True, help="worker counts, separated by commas")
    parser.add_argument("--virtual-workers", type=int, help="pieces that the batch is cut into")
    parser.add_argument("--remainder", choices=("kept", "dropped"), default="kept")
    parser.add_argument("--chart", type=Path, help="a PNG to write")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    granularity = None
    if arguments.virtual_workers is not None:
        granularity = Granularity(
            virtual_workers=arguments.virtual_workers, remainder=arguments.remainder
        )
    try:
        curves = json.loads(arguments.published.read_text(encoding="utf-8"))
        fit = [int(count) for count in arguments.fit.split(",")]
        result = predict(curves, arguments.system, fit, granularity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        parser.error(f"{arguments.published} cannot be used: {exc!r:.200}")
    if arguments.chart:
        draw(result, curves.get("title", arguments.published.stem), arguments.chart)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'workers':>8}{'measured s':>12}{'predicted s':>13}{'90 % interval':>20}{'error':>9}")
    for row in result["predictions"]:
        interval = f"{row['low_s']:.2f} to {row['high_s']:.2f}"
        print(
            f"{row['workers']:8}{row['measured_s']:12.3f}{row['predicted_s']:13.3f}{interval:>20}"
            f"{row['error_percent']:8.1f}%{'  fitted' if row['fitted'] else ''}"
        )
    print(f"largest error of those held out: {result['max_error_percent']:.1f} %")


if __name__ == "__main__":
    main()
