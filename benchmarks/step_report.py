"""STEP.md and its charts, from what `python -m benchmarks.bench_step` measured."""

from pathlib import Path

import matplotlib as mpl

from benchmarks.report import environment

mpl.use("Agg")
from matplotlib import pyplot as plt

PREAMBLE = """# What a step reaches

Made by `python -m benchmarks.bench_step`; do not edit. All ranks and the server share one machine.
In every round each scheme takes one step; ratios are of neighbouring steps, their median with a
95 % confidence interval by bootstrap. Absolute times wander with the machine's load.
`benchmarks/step_schemes.py` says what each scheme does.
✓ reached, ✗ missed, ◆ out of reach: the bytes alone take longer through the same server (`store`).
"""
HIDDEN = ("spans", "phases", "ranks", "MB", "pairs", "commit")
ORDER = [
    "bench_large", "bench_small", "bench_link", "bench_overlap", "bench_memory", "bench_scaling",
]  # fmt: skip
PHASES_OF = "bench_large[gloo-relay-store-4-100-unix]"
REASONS = Path(__file__).parent / "step_reasons.md"
"""Why what misses its target does, as measured; written by hand."""
# The most that each figure is to be.
TARGETS = {
    "time / paper": 0.2,
    "time / gloo": 1.3,
    "CPU / paper": 0.5,
    "over the floor, ms": 3.0,
    "smlt / floor": 1.15,
    "bf16 / smlt": 0.6,
    "overlapped / (compute + communicate)": 0.75,
}
PHASES = ("UL-shard", "DL-shard", "reduce", "UL-aggr", "DL-grad")


def write_report(cases: dict[str, dict], folder: Path) -> None:
    """Write STEP.md and its charts from the newest result of each case, by its name."""
    commits = ", ".join(dict.fromkeys(case["commit"] for case in cases.values()))
    lines = [PREAMBLE, *environment(commits), ""]
    lines += ["| case | pairs | figure | value | target |", "|---|--:|---|--:|---|"]
    ordered = sorted(cases, key=lambda name: (ORDER.index(name.partition("[")[0]), name))
    for name in ordered:
        lines += _rows(name, cases[name])
    lines += ["", *REASONS.read_text().splitlines()] if REASONS.exists() else []
    lines += ["", *_pictures(cases, folder)]
    (folder / "STEP.md").write_text("\n".join(lines) + "\n")


def _rows(name, info):
    case = f"{name.removeprefix('bench_')} (n = {info['ranks']}, {info['MB']:g} MB)"
    for figure, value in info.items():
        if figure in HIDDEN:
            continue
        middle = value[0] if isinstance(value, list) else value
        shown = f"{value[0]} ({value[1]}–{value[2]})" if isinstance(value, list) else f"{value:g}"
        bound = info["allowed MB"] if figure == "peak MB" else TARGETS.get(figure)
        target = "" if bound is None else f"{_mark(info, figure, middle, bound)} ≤ {bound:g}"
        yield f"| {case} | {info['pairs']} | {figure} | {shown} | {target} |"
        case = ""


def _mark(info, figure, middle, bound):
    if middle <= bound:
        return "✓"
    limit = info.get("store / gloo") if figure == "time / gloo" else None
    return "◆" if limit and limit[0] > bound else "✗"


def _pictures(cases, folder):
    found = []
    scaling = [info for name, info in cases.items() if name.startswith("bench_scaling")]
    if scaling:
        scaling.sort(key=lambda info: info["ranks"])
        _draw_scaling(scaling, folder / "step_scaling.png")
        found.append("![A step on a limited link, by number of ranks](step_scaling.png)")
    for name, title in ((PHASES_OF, "phases"), ("bench_overlap", "overlap")):
        if name in cases:
            _draw_spans(cases[name], name, folder / f"step_{title}.png")
            found.append(f"![When rank 0 moved what, in {name}](step_{title}.png)")
    return found


def _draw_scaling(cases, path):
    ranks = [case["ranks"] for case in cases]
    figure, panel = plt.subplots(figsize=(6, 3.6))
    panel.plot(ranks, [case["smlt ms"] / 1e3 for case in cases], "C0o-", label="smlt")
    floor = [case["floor ms"] / 1e3 for case in cases]
    panel.plot(ranks, floor, "k--", label="limit of the link: max(up, down) / b")
    paper = 3 * cases[0]["MB"] / 4.0
    panel.plot(ranks, [paper] * len(ranks), "C1:", label="3 G/b, the paper's scheme, computed")
    panel.set(xlabel="ranks", ylabel="seconds a step", xscale="log", ylim=(0, None))
    panel.set_xticks(ranks, [str(n) for n in ranks])
    panel.minorticks_off()
    panel.set_title(f"{cases[0]['MB']:g} MB of gradient, a link of 4 MB/s each way for each rank")
    panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _draw_spans(info, name, path):
    rows = ["compute", *PHASES] if any(s[0] == "compute" for s in info["spans"]) else list(PHASES)
    figure, panel = plt.subplots(figsize=(9, 0.6 + 0.42 * len(rows)))
    for phase, _, _, begin, end in info["spans"]:
        if phase in rows:
            color = f"C{rows.index(phase)}"
            row = rows.index(phase)
            panel.barh(row, 1e3 * (end - begin), left=1e3 * begin, color=color, alpha=0.45)
    panel.set_yticks(range(len(rows)), rows)
    panel.invert_yaxis()
    panel.set(xlabel="milliseconds after the step's begin", title=f"rank 0 of {name}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
