"""One readable table, and a chart, of what `python -m benchmarks` measured."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.limits import compiler

mpl.use("Agg")
from matplotlib import pyplot as plt

PACKAGES = ("numpy", "torch", "lz4", "xxhash", "safetensors", "cython", "zstandard", "blosc2")

# Bytes moved, for each byte of input: results are written, and first read into the cache.
TRAFFIC = {
    "bench_reduce_in_dram": lambda n: (n + 2) / n,
    "bench_reduce_adamw": lambda n: (n + 6) / n,
    "bench_reduce_sgd_momentum": lambda n: (n + 4) / n,
}

PREAMBLE = """# What the kernels reach

What a whole step reaches beside its peers: [STEP.md](STEP.md), of which these charts are.

![A step on a limited link, by number of ranks](step_scaling.png)
![When the first of four ranks moved what in a step of 100 MB](step_phases.png)

Made by `make bench`; do not edit. Every figure is a median over interleaved rounds: in each round
ours and all its peers run one after the other, so that the ratios hold on a machine that others
use too. Absolute speeds wander with its load.
"""

LEGEND = """- **GB/s**: bytes of input (uncompressed) a second; one thread, unless a row says more.
- **of limit**: of the speed at which C code reads the same arrays, eight at a time, and does
  nothing else, in the same rounds; for a contiguous frame, of a bare copy into memory of the same
  kind.
- **target**: ✓ reached, ✗ missed, ◆ out of reach. In brackets: the ratio at the limit, less the
  traffic of what must be written."""

Bench = dict[str, Any]


def write_report(measured: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write RESULTS.md and the chart from what pytest-benchmark measured, file by file."""
    benches = [bench for part in measured for bench in part["benchmarks"]]
    lines = [
        PREAMBLE,
        *environment(measured[0]["commit_info"]["id"][:12]),
        "",
        LEGEND,
        "",
    ]
    for title, part in (("Shard reduction", "bench_shard_reduce"), ("Codec", "bench_codec")):
        chosen = [b for b in benches if part in b["fullname"] and "chart" not in b["name"]]
        lines += [f"## {title}", "", *table(chosen), ""]
    lines += ["## Compression", "", *compression_table(benches), ""]
    lines += ["![Bandwidth by shard size and world size](bandwidth.png)", ""]
    (folder / "RESULTS.md").write_text("\n".join(lines))
    draw_chart(benches, folder / "bandwidth.png")


def environment(commit: str) -> list[str]:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    cc = first_line([compiler(), "--version"])
    return [
        f"- machine: {cpu_model()}, {os.cpu_count()} CPUs, {platform.platform()}",
        f"- compiler: {cc}; Python {platform.python_version()}; {', '.join(versions)}",
        f"- commit: {commit}",
    ]


def first_line(command: list[str]) -> str:
    folder = Path(__file__).parent
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10, cwd=folder
    )
    return result.stdout.splitlines()[0]


def cpu_model() -> str:
    """Return the CPU's family and model: hypervisors hide its name."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or "unknown CPU"
    fields = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", "unknown CPU")
    family, model = fields.get("cpu family", "?"), fields.get("model", "?")
    return f"{name} (family {family}, model {model}), {fields.get('cache size', '?')} cache"


def table(benches: list[Bench]) -> list[str]:
    rows = [
        "| case | ms | GB/s | of limit | times faster than | target |",
        "|---|--:|--:|--:|---|---|",
    ]
    for bench in benches:
        info = bench["extra_info"]
        limit = info.get("fraction_of_limit")
        ratios = ", ".join(f"{peer} {value:.2f}" for peer, value in peers(info).items())
        rows.append(
            f"| {case_name(bench)} | {info['milliseconds']:.3g} | {info['gb_per_s']:.1f} "
            f"| {'' if limit is None else f'{limit:.2f}'} | {ratios} | {verdicts(bench)} |"
        )
    return rows


def case_name(bench: Bench) -> str:
    return (
        str(bench["name"]).removeprefix("bench_").replace("_", " ").replace("[", " · ").rstrip("]")
    )


def peers(info: dict[str, Any]) -> dict[str, float]:
    prefix = "ratio_to_"
    return {key[len(prefix) :]: value for key, value in info.items() if key.startswith(prefix)}


def verdicts(bench: Bench) -> str:
    info = bench["extra_info"]
    texts = [verdict(bench, peer, least) for peer, least in info["targets"].items() if least]
    if (most := info.get("target_milliseconds")) is not None:
        least = info["milliseconds"] * info["fraction_of_limit"]
        reading = f" (reading alone takes {least:.2g})" if least > most else ""
        mark = "✓" if info["milliseconds"] <= most else "◆" if reading else "✗"
        texts.append(f"{mark} ≤ {most:g} ms{reading}")
    return "; ".join(texts)


def verdict(bench: Bench, peer: str, least: float) -> str:
    info = bench["extra_info"]
    got = info["fraction_of_limit"] if peer == "limit" else info[f"ratio_to_{peer}"]
    text = f"≥ {least:g} {'of limit' if peer == 'limit' else peer}"
    if got >= least:
        return f"✓ {text}"
    best = reachable(bench, peer)
    if best is None:
        return f"✗ {text}"
    return f"{'◆' if best < least else '✗'} {text} ({best:.2f})"


def reachable(bench: Bench, peer: str) -> float | None:
    """Return the ratio that the machine's read limit would give."""
    info = bench["extra_info"]
    at_limit = 1.0 if peer == "limit" else info.get(f"ratio_of_limit_to_{peer}")
    function, _, case = bench["name"].partition("[")
    if at_limit is None:
        return None
    traffic = TRAFFIC.get(function)
    streams = case.rstrip("]").split("-")[-1].split("x")[0]
    return float(at_limit) / (traffic(int(streams)) if traffic else 1.0)


def compression_table(benches: list[Bench]) -> list[str]:
    found = [b for b in benches if "compression" in b["extra_info"]]
    names = sorted({name for b in found for name in b["extra_info"]["compression"]})
    rows = [f"| gradient | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for bench in found:
        ratios = bench["extra_info"]["compression"]
        cells = (f"{ratios[name]:.1f}" if name in ratios else "" for name in names)
        rows.append(f"| {case_name(bench).split(' · ')[-1]} | {' | '.join(cells)} |")
    return rows


def draw_chart(benches: list[Bench], path: Path) -> None:
    """Draw bandwidth against the number of shards, a panel for each shard size."""
    points: dict[str, dict[int, dict[str, float]]] = {}
    for bench in benches:
        function, _, case = bench["name"].partition("[")
        if function not in (
            "bench_reduce_for_the_chart",
            "bench_reduce_in_cache",
            "bench_reduce_in_dram",
        ):
            continue
        streams, _, size = case.rstrip("]").partition("x")
        info = bench["extra_info"]
        speeds = {"smlt": info["gb_per_s"], **info["peers_gb_per_s"]}
        points.setdefault(size, {})[int(streams)] = speeds
    sizes = ("64KB", "1MB", "4MB")
    figure, panels = plt.subplots(1, len(sizes), figsize=(11, 3.6), sharey=True)
    styles = {
        "limit": ("read limit", "k--"),
        "smlt": ("smlt", "C0o-"),
        "np_add": ("np.add loop", "C1s-"),
    }
    for panel, size in zip(panels, sizes, strict=True):
        streams = sorted(points[size])
        for name, (label, style) in styles.items():
            panel.plot(streams, [points[size][n][name] for n in streams], style, label=label)
        panel.set(
            title=f"shards of {size}", xlabel="number of shards", xscale="log", ylim=(0, None)
        )
        panel.set_xticks(streams, [str(n) for n in streams], minor=False)
        panel.minorticks_off()
    panels[0].set_ylabel("GB/s of input")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
