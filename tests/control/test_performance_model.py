"""The performance model against published curves, and against steps made by a known law."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_performance_model import draw, predict
from smlt.control.performance_model import fit_performance
from smlt.control.step_measurement import Granularity, Measurement, Setting
from tests.control.published import read

SYSTEMS = ("SMLT", "Cirrus", "Siren")
# In the published ResNet-18 runs 150 workers compute as long as 200 do: 200 pieces, rest dropped.
PIECES = Granularity(virtual_workers=200, remainder="dropped")


@pytest.mark.parametrize(
    ("curve", "granularity"), [("bert_small", None), ("resnet18", None), ("resnet18", PIECES)]
)
@pytest.mark.parametrize("system", SYSTEMS)
def test_any_two_worker_counts_predict_the_others_within_15_percent(curve, system, granularity):
    curves = read(curve)
    workers = curves["step_s"][system]["workers"]
    for pair in itertools.combinations(workers, 2):
        result = predict(curves, system, list(pair), granularity)
        assert result["max_error_percent"] <= 15, (pair, result["predictions"])


@pytest.mark.parametrize(
    ("workers", "drops"),
    [
        ((10, 50, 100, 150, 200), False),
        ((10, 50, 100, 150, 200), True),
        ((8, 16, 24, 48, 64), False),
    ],
)
def test_it_matters_little_whether_a_sweep_says_how_its_batch_is_cut(workers, drops):
    most = max(workers)
    seconds = [600 * (most // n / most if drops else 1 / n) + 0.01 for n in workers]
    curves = {
        "step_s": {"S": {"workers": workers, "seconds": seconds}},
        "communication_s_per_step": {"S": {"workers": workers, "seconds": [0.01] * len(workers)}},
    }
    # Where the division has a remainder the two differ by a quarter or a third.
    assert predict(curves, "S", list(workers[:2]), None)["max_error_percent"] <= 20


@pytest.mark.parametrize(
    ("workers", "seconds"), [(40, 0), (40, -1), (40, math.nan), (0, 4), (40.5, 4)]
)
def test_an_impossible_point_of_a_sweep_is_refused_though_it_is_held_out(workers, seconds):
    curve = {"workers": [10, 20, workers], "seconds": [10, 6, seconds]}
    with pytest.raises(
        ValueError, match=f"step_s of S cannot be {seconds} s with {workers} workers"
    ):
        predict({"step_s": {"S": curve}}, "S", [10, 20], None)


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_steps_lie_within_the_intervals(system):
    result = predict(read("bert_small"), system, [10, 50], Granularity())
    inside = [row["low_s"] <= row["measured_s"] <= row["high_s"] for row in result["predictions"]]
    assert all(inside)


def law(workers, memory_mb, serial=0.15):
    """20 s of work on one vCPU, of which a part is serial, and a store of 0.02 s per worker."""
    vcpus = memory_mb / 1769
    speed = vcpus if vcpus < 1 else 1 / (serial + (1 - serial) / vcpus)
    return 20 / workers / speed + 0.3 + 0.02 * (workers - 1)


def test_memory_and_serial_fraction_are_learnt_from_steps():
    measured = [(2, 884), (4, 1769), (8, 5307), (16, 8845), (32, 1769), (4, 8845)]
    model = fit_performance(
        [
            Measurement(setting=Setting(workers=n, memory_mb=m), step_s=law(n, m))
            for n, m in measured
        ]
    )
    unseen = [(2, 1769), (8, 1769), (16, 3538), (24, 7076), (48, 1769)]
    predicted = model.predict([Setting(workers=n, memory_mb=m) for n, m in unseen])
    wanted = np.array([law(n, m) for n, m in unseen])
    np.testing.assert_allclose(predicted.step_s, wanted, rtol=0.1)


def test_one_slow_measurement_does_not_bend_the_model():
    counts = [1, 2, 4, 8, 16, 32]
    steps = [law(n, 1769) for n in counts]
    steps[2] *= 3
    model = fit_performance(
        [
            Measurement(setting=Setting(workers=n), step_s=step)
            for n, step in zip(counts, steps, strict=True)
        ]
    )
    predicted = model.predict([Setting(workers=4)]).step_s[0]
    assert predicted == pytest.approx(law(4, 1769), rel=0.2)


def test_the_interval_is_wide_where_nothing_was_measured():
    near = [Measurement(setting=Setting(workers=n), step_s=law(n, 1769)) for n in (2, 4)]
    few = fit_performance(near).predict([Setting(workers=4), Setting(workers=64)])
    assert few.log_sd[1] > 3 * few.log_sd[0]
    far = [Measurement(setting=Setting(workers=64), step_s=law(64, 1769))]
    more = fit_performance(near + far).predict([Setting(workers=64)])
    assert more.log_sd[0] < 0.5 * few.log_sd[1]


def test_one_measurement_gives_a_first_guess():
    model = fit_performance(
        [Measurement(setting=Setting(workers=1, wire_bytes=100e6), step_s=10.0)]
    )
    guess = model.predict([Setting(workers=n, wire_bytes=100e6) for n in (1, 2, 1000)])
    assert guess.step_s[0] == pytest.approx(10, rel=0.05)
    assert 5 < guess.step_s[1] < 10
    assert guess.low_s[2] < guess.step_s[2] < guess.high_s[2]


def test_a_larger_batch_takes_longer_and_a_smaller_wire_less():
    base = {"workers": 8, "samples": 256, "wire_bytes": 400e6}
    few = [Measurement(setting=Setting(**base), step_s=9.0, communication_s=6.0)]
    model = fit_performance(few)
    step, double, half = model.predict(
        [
            Setting(**base),
            Setting(**base | {"samples": 512}),
            Setting(**base | {"wire_bytes": 200e6}),
        ]
    ).step_s
    assert step == pytest.approx(9, rel=0.05)
    assert double == pytest.approx(12, rel=0.1)
    assert 5.5 < half < 7.5


def test_a_rank_computes_whole_virtual_workers():
    workers = np.array([1.0, 3.0, 8.0, 9.0, 16.0, 20.0])
    shares = Granularity(virtual_workers=16).share(workers)
    assert shares.tolist() == [16 / 16, 6 / 16, 2 / 16, 2 / 16, 1 / 16, 1 / 16]
    dropped = Granularity(virtual_workers=16, remainder="dropped")
    assert dropped.share(workers[:4]).tolist() == [16 / 16, 5 / 16, 2 / 16, 1 / 16]
    with pytest.raises(ValueError, match="leave nothing for 20"):
        dropped.share(workers)


def test_adding_workers_without_fewer_virtual_ones_does_not_help():
    granularity = Granularity(virtual_workers=16)
    measured = [
        Measurement(
            setting=Setting(workers=n),
            step_s=16 * math.ceil(16 / n) / 16 + 0.1,
            communication_s=0.1,
        )
        for n in (2, 4)
    ]
    step = fit_performance(measured, granularity).predict([Setting(workers=n) for n in (8, 12, 16)])
    assert step.compute_s[1] == pytest.approx(step.compute_s[0])
    assert step.compute_s[2] == pytest.approx(step.compute_s[0] / 2, rel=0.05)


@pytest.mark.parametrize(
    ("step_s", "communication_s"), [(0.0, None), (1.0, 1.5), (float("nan"), None), (-1.0, None)]
)
def test_impossible_measurements_are_refused(step_s, communication_s):
    with pytest.raises(ValueError, match="cannot be"):
        Measurement(setting=Setting(workers=2), step_s=step_s, communication_s=communication_s)


def test_no_measurement_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        fit_performance([])


def test_the_chart_is_a_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    result = predict(read("bert_small"), "SMLT", [10, 50], Granularity())
    draw(result, "BERT", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
