"""``smlt status`` and ``smlt logs``: what the run directory tells about jobs, running or ended."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smlt.cli.live import render
from smlt.cli.summary import failure_text, success_text
from smlt.cli.wording import clock_time, dollars, print_plain
from smlt.control.progress import Progress, Summary
from smlt.errors import UserError
from smlt.messages.worker import RankState

STALE_S = 10.0  # a client writes its status about once a second
FOLLOW_S = 0.2
LIVE = ("starting", "running", "waiting", "stopping")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What a job has left in its folder."""

    folder: Path
    status: dict[str, Any]
    """``Progress.to_dict()``, with ``updated`` (Unix time) and ``client_pid``."""
    summary: Summary | None
    state: str
    """As in Progress; ``orphaned`` when the client is gone."""
    silent_s: float
    """For how long the client has not written."""

    @property
    def job_id(self) -> str:
        return self.folder.name

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def started(self) -> float:
        """Unix time at which the job began."""
        return float(self.status["updated"]) - float(self.status["elapsed_s"])

    @property
    def progress(self) -> Progress:
        ranks = [RankState.from_dict(rank) for rank in self.status["ranks"]]
        return Progress(**_known(Progress, self.status) | {"state": self.state, "ranks": ranks})

    @property
    def remark(self) -> str:
        """A sentence on a job whose client does not write any more, else nothing."""
        since = clock_time(self.silent_s)
        pid = self.status["client_pid"]
        if self.state == "orphaned":
            return (
                f"Its client (process {pid}) ended {since} ago without ending the job; "
                "its workers end by themselves, and the newest checkpoint is kept."
            )
        if self.summary is None and self.silent_s > STALE_S:
            return f"Its client (process {pid}) is there but has not reported for {since}."
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain fields for JSON; ``workers`` lists each with rank, state, step and pid."""
        plain = dict(self.status) | {"job_id": self.job_id, "state": self.state}
        plain["world_size"] = plain.pop("workers")
        plain["workers"] = plain.pop("ranks")
        plain["remark"] = self.remark
        plain["summary"] = self.summary.to_dict() if self.summary else None
        return plain


class JobFolder:
    """Reads the jobs of one run directory; the clock gives Unix time."""

    def __init__(
        self, run_dir: Path, clock: Callable[[], float], is_alive: Callable[[int], bool]
    ) -> None:
        self._run_dir = run_dir
        self._clock = clock
        self._is_alive = is_alive

    def all(self) -> list[JobRecord]:
        """Return all jobs that have reported, the newest first."""
        folders = [path.parent for path in self._run_dir.glob("jobs/*/status.json")]
        return sorted(map(self._read, folders), key=lambda job: job.started, reverse=True)

    def find(self, job_id: str | None) -> JobRecord:
        """Return the job of that id, or whose id begins so; without one, the newest.

        Raises:
            UserError: there is none, or there are several.
        """
        jobs = self.all()
        if not jobs:
            raise UserError(
                f"There are no jobs in {self._run_dir}; start one with `smlt train`, "
                "or name another folder with --run-dir."
            )
        if job_id is None:
            return jobs[0]
        found = [job for job in jobs if job.job_id == job_id]
        found = found or [job for job in jobs if job.job_id.startswith(job_id)]
        if len(found) != 1:
            what = "Several jobs have ids that begin with" if found else "There is no job"
            names = ", ".join(job.job_id for job in found or jobs)
            raise UserError(f"{what} {job_id!r} in {self._run_dir}; choose from {names}.")
        return found[0]

    def _read(self, folder: Path) -> JobRecord:
        status = _read_json(folder / "status.json")
        ended = folder / "summary.json"
        try:
            summary = Summary(**_known(Summary, _read_json(ended))) if ended.exists() else None
            silent_s = max(0.0, self._clock() - float(status["updated"]))
            state = summary.state if summary else str(status["state"])
            pid = int(status["client_pid"])
            job = JobRecord(folder, status, summary, state, silent_s)
            _ = job.started, job.progress  # which may be damaged, too
        except (KeyError, TypeError, ValueError) as exc:
            raise UserError(
                f"what {folder} says of its job is damaged ({exc!r}): move the folder away."
            ) from exc
        if state in LIVE and silent_s > STALE_S and not self._is_alive(pid):
            return replace(job, state="orphaned")
        return job


def print_job(job: JobRecord, console: Console) -> None:
    """Print one job: how it ended, or where it stands and what each worker does."""
    if job.summary is not None and job.summary.state == "failed":
        print_plain(console, failure_text(job.summary, job.logs if job.logs.is_dir() else None))
    elif job.summary is not None:
        torch = importlib.util.find_spec("torch") is not None
        print_plain(console, success_text(job.summary, here=Path.cwd(), torch=torch))
    else:
        console.print(render(job.progress))
        _print_workers(job.progress.ranks, console)
    if job.remark:
        print_plain(console, job.remark)


def _print_workers(ranks: list[RankState], console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("rank", "state", "step", "pid", "waiting for"):
        table.add_column(heading, justify="right" if heading in ("rank", "step", "pid") else "left")
    for rank in ranks:
        pid = str(rank.pid) if rank.pid else ""
        table.add_row(str(rank.rank), rank.state, str(rank.step), pid, rank.waiting_for)
    console.print(table)


def print_table(jobs: list[JobRecord], console: Console) -> None:
    """Print a line for each job."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("job", min_width=max(len(job.job_id) for job in jobs))
    for heading in ("state", "step", "workers", "time", "cost"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for job in jobs:
        progress = job.progress
        cost = dollars(progress.cost_usd, is_estimate=False)
        time = clock_time(job.summary.seconds if job.summary else progress.elapsed_s)
        row = (job.job_id, job.state, f"{progress.step:,}", str(progress.workers), time, cost)
        table.add_row(*row)
    console.print(table)


def log_lines(job: JobRecord, rank: int | None) -> list[str]:
    """Return what the workers have printed; each line names its rank, unless one was asked for.

    Raises:
        UserError: there is no log of that rank.
    """
    files = _logs_of(job)
    if rank is not None and rank not in files:
        known = ", ".join(map(str, sorted(files))) or "none yet"
        raise UserError(f"Job {job.job_id} has no log of rank {rank}; there are logs of: {known}.")
    chosen = [rank] if rank is not None else sorted(files)
    lines = []
    for number in chosen:
        prefix = "" if rank is not None else f"rank {number} | "
        text = files[number].read_text(encoding="utf-8", errors="replace")
        lines += [prefix + line for line in text.splitlines()]
    return lines


def follow_logs(find: Callable[[], JobRecord], rank: int | None) -> Iterator[str]:
    """Yield what the workers print, as it comes, until the job is led by nobody any more."""
    read: dict[int, int] = {}
    is_over = False
    while not is_over:
        job = find()
        is_over = job.state not in LIVE
        for number, path in sorted(_logs_of(job).items()):
            if rank is not None and number != rank:
                continue
            data = path.read_bytes()[read.get(number, 0) :]
            if not is_over:
                data = data[: data.rfind(b"\n") + 1]  # the rest of a line is still to come
            read[number] = read.get(number, 0) + len(data)
            prefix = "" if rank is not None else f"rank {number} | "
            for line in data.decode(errors="replace").splitlines():
                yield prefix + line
        if not is_over:
            time.sleep(FOLLOW_S)


def _logs_of(job: JobRecord) -> dict[int, Path]:
    """The log files by rank."""
    files: dict[int, Path] = {}
    for path in job.logs.glob("rank-*.log"):
        if match := re.fullmatch(r"rank-(\d+)\.log", path.name):
            files[int(match[1])] = path
    return files


def process_is_alive(pid: int) -> bool:
    """Whether a process of that id exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _known(kind: type[Progress | Summary], plain: dict[str, Any]) -> dict[str, Any]:
    """The fields that this version knows; another one may have written more."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in plain.items() if name in names}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise UserError(f"{path} is damaged: {exc}; move the folder {path.parent} away.") from exc
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it is no JSON object.")
    return value
