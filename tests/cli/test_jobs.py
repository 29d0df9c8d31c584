"""`smlt status` and `smlt logs`, against run directories such as a scheduler leaves them."""

import json
import os
import time
from pathlib import Path

import pytest

from smlt.cli import main
from smlt.cli.jobs import JobFolder, follow_logs, process_is_alive
from smlt.control.progress import Progress, Summary
from smlt.errors import UserError
from smlt.messages.worker import RankState

NOW = 1_000_000.0


def write_job(run_dir, job_id="j1", *, updated=NOW, pid=None, summary=None, logs=(), **changes):
    ranks = [RankState(rank=r, state="training", step=9, pid=100 + r) for r in range(2)]
    fields = {"job_id": job_id, "state": "running", "workers": 2, "memory_mb": 1769}
    fields |= {"step": 9, "total_steps": 20, "elapsed_s": 5.0, "generation": 1, "ranks": ranks}
    folder = run_dir / "jobs" / job_id
    (folder / "logs").mkdir(parents=True)
    status = Progress(**fields | changes).to_dict()
    status |= {"updated": updated, "client_pid": os.getpid() if pid is None else pid}
    (folder / "status.json").write_text(json.dumps(status))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary.to_dict()))
    for rank, text in dict(logs).items():
        (folder / "logs" / f"rank-{rank}.log").write_text(text)
    return folder


def summary_of(job_id="j1", state="completed", **changes):
    fields = {
        "job_id": job_id,
        "state": state,
        "metrics": {"loss": 0.25},
        "steps": 20,
        "epochs": 2,
        "seconds": 61.0,
        "billed_gb_s": 210.8,
        "cost_usd": 0.0035,
        "cost_is_estimate": True,
        "workers": 2,
        "memory_mb": 1769,
        "generations": 1,
        "weights_digest": "sha256:ab",
        "model_path": "m.safetensors",
        "best_model_path": None,
        "checkpoint": None,
        "message": "All steps are done.",
    }
    return Summary(**fields | changes)


@pytest.fixture
def run_dir(in_folder):
    return in_folder / ".smlt"


def test_a_running_job_as_json_lists_its_workers(smlt, run_dir):
    write_job(run_dir, updated=time.time())
    done = smlt("status", "j1", "--json")
    job = json.loads(done.out)
    assert done.code == 0
    assert (job["job_id"], job["state"], job["step"], job["world_size"]) == ("j1", "running", 9, 2)
    assert [(w["rank"], w["state"], w["pid"], w["step"]) for w in job["workers"]] == [
        (0, "training", 100, 9),
        (1, "training", 101, 9),
    ]
    assert job["summary"] is None


def test_a_running_job_in_words_shows_progress_and_each_worker(smlt, run_dir):
    write_job(run_dir, updated=time.time())
    done = smlt("status")
    assert done.code == 0
    assert "step 9/20" in done.out
    for pid in ("100", "101"):
        assert pid in done.out


def test_an_ended_job_shows_its_summary_also_when_its_client_is_long_gone(smlt, run_dir):
    write_job(run_dir, updated=1.0, pid=2**22 + 1, state="running", summary=summary_of())
    assert "completed job j1" in smlt("status", "j1").out
    job = json.loads(smlt("status", "j1", "--json").out)
    assert job["state"] == "completed"
    assert job["summary"]["weights_digest"] == "sha256:ab"


def test_a_failed_job_shows_why(smlt, run_dir):
    failed = summary_of(state="failed", message="rank 1 ran out of memory.", traceback="Trace\nX")
    write_job(run_dir, summary=failed, state="failed")
    done = smlt("status")
    assert done.code == 0
    assert "rank 1 ran out of memory." in done.out
    assert "from rank 1's log:" in done.out


@pytest.mark.parametrize(
    ("silent_s", "alive", "state"),
    [
        (60, False, "orphaned"),
        (5, False, "running"),
        (60, True, "running"),
        (5, True, "running"),
    ],
)
def test_a_job_is_orphaned_when_it_is_silent_and_its_client_gone(run_dir, silent_s, alive, state):
    write_job(run_dir, updated=NOW - silent_s, pid=77)
    job = JobFolder(run_dir, lambda: NOW, lambda pid: alive).find("j1")
    assert job.state == state
    assert bool(job.remark) == (silent_s == 60)
    assert ("process 77" in job.remark) == bool(job.remark)


@pytest.mark.parametrize("state", ["completed", "stopped", "failed"])
def test_a_job_that_has_ended_is_no_orphan(run_dir, state):
    write_job(run_dir, updated=1.0, pid=77, state=state)
    assert JobFolder(run_dir, lambda: NOW, lambda pid: False).find("j1").state == state


def test_without_a_job_the_newest_is_shown_below_a_table_of_all(smlt, run_dir):
    write_job(run_dir, "old", updated=NOW, elapsed_s=100.0, summary=summary_of("old"))
    write_job(run_dir, "new", updated=NOW - 50, elapsed_s=10.0, summary=summary_of("new"))
    done = smlt("status")
    table, detail = done.out.split("\n\n", 1)
    assert table.index("new") < table.index("old")
    assert "completed job new" in detail
    assert json.loads(smlt("status", "--json").out)["job_id"] == "new"


def test_ids_are_whole_in_the_table_however_narrow_it_is(smlt, run_dir):
    ids = ["mnist-" + letter * 32 for letter in "ab"]
    for job_id in ids:
        write_job(run_dir, job_id, summary=summary_of(job_id))
    table = smlt("status").out.split("\n\n")[0]
    assert all(job_id in table for job_id in ids)


def test_a_file_that_vanishes_while_jobs_are_listed_is_not_missed(run_dir, monkeypatch):
    fresh = write_job(run_dir) / ".status.json.1"
    fresh.touch()
    look = Path.stat

    def look_and_replace(path, **options):
        found = look(path, **options)
        if path.name == fresh.name:
            fresh.unlink()
        return found

    monkeypatch.setattr(Path, "stat", look_and_replace)
    assert main(["jobs"]) == 0
    assert not os.path.exists(fresh)


def test_paths_below_the_current_folder_are_short(smlt, run_dir, in_folder):
    inside, outside = in_folder / "a/m.safetensors", "/elsewhere/best.safetensors"
    summary = summary_of(model_path=str(inside), best_model_path=outside)
    write_job(run_dir, summary=summary)
    text = smlt("status").out
    assert "model       a/m.safetensors\n" in text
    assert "best model  /elsewhere/best.safetensors\n" in text


def test_a_jobs_id_may_be_shortened(run_dir):
    write_job(run_dir, "a1-x")
    write_job(run_dir, "a2-x")
    jobs = JobFolder(run_dir, lambda: NOW, lambda pid: True)
    assert jobs.find("a2").job_id == "a2-x"
    with pytest.raises(UserError, match="begin with 'a'"):
        jobs.find("a")


@pytest.mark.parametrize("command", ["status", "logs"])
def test_an_unknown_job_is_answered_with_those_there_are(smlt, run_dir, command):
    write_job(run_dir, "j1")
    done = smlt(command, "j9")
    assert (done.code, done.out) == (2, "")
    assert "no job 'j9'" in done.err
    assert "j1" in done.err


@pytest.mark.parametrize("command", ["status", "logs"])
def test_without_any_job_it_says_so(smlt, command, run_dir):
    done = smlt(command)
    assert done.code == 2
    assert "no jobs in .smlt" in done.err


def test_the_run_directory_can_be_named(smlt, in_folder):
    write_job(in_folder / "elsewhere")
    assert smlt("status", "--run-dir", "elsewhere").code == 0
    (in_folder / "smlt.toml").write_text('[train]\nrun_dir = "elsewhere"\n')
    assert smlt("status").code == 0


def test_fields_of_a_newer_version_are_ignored(smlt, run_dir):
    folder = write_job(run_dir, summary=summary_of())
    for name in ("status.json", "summary.json"):
        content = json.loads((folder / name).read_text()) | {"from_the_future": 1}
        (folder / name).write_text(json.dumps(content))
    assert smlt("status").code == 0


def test_a_damaged_status_is_one_sentence(smlt, run_dir):
    folder = write_job(run_dir)
    (folder / "status.json").write_text("{")
    done = smlt("status")
    assert done.code == 2
    assert "status.json is damaged" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("missing", ["updated", "elapsed_s", "client_pid", "ranks", "state"])
def test_a_status_that_lacks_something_is_one_sentence(smlt, run_dir, missing):
    folder = write_job(run_dir)
    status = json.loads((folder / "status.json").read_text())
    del status[missing]
    (folder / "status.json").write_text(json.dumps(status))
    done = smlt("status")
    assert done.code == 2
    assert f"says of its job is damaged (KeyError('{missing}')): move the folder away" in done.err
    assert len(done.err.splitlines()) == 1


def test_logs_of_all_ranks_name_the_rank_in_each_line(smlt, run_dir):
    write_job(run_dir, logs={0: "a\nb\n", 10: "k\n", 2: "c"})
    expected = "rank 0 | a\nrank 0 | b\nrank 2 | c\nrank 10 | k\n"
    assert smlt("logs", "j1") == (0, expected, "")


def test_logs_of_one_rank_are_as_they_were_printed(smlt, run_dir):
    folder = write_job(run_dir, logs={0: "a\nb\n"})
    (folder / "logs/rank-0.log").write_bytes(b"caf\xc3\xa9 \xff\n")
    assert smlt("logs", "j1", "--rank", 0).out == "café \ufffd\n"


def test_logs_of_a_rank_that_has_none(smlt, run_dir):
    write_job(run_dir, logs={0: "a", 1: "b"})
    done = smlt("logs", "j1", "--rank", 7)
    assert done.code == 2
    assert "no log of rank 7" in done.err
    assert "0, 1" in done.err


def test_a_reader_that_leaves_early_is_no_error(start, run_dir):
    write_job(run_dir, logs={0: "line\n" * 100_000})
    process = start("logs", "j1")
    assert process.stdout.readline() == "rank 0 | line\n"
    process.stdout.close()
    error = process.stderr.read()
    process.wait(timeout=20)
    assert error == ""


def test_whether_a_process_is_alive(start):
    assert process_is_alive(os.getpid())
    process = start("version")
    process.communicate(timeout=20)
    assert not process_is_alive(process.pid)


def test_a_mistake_of_ours_in_status_is_one_sentence(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(JobFolder, "all", lambda folder: 1 / 0)
    assert main(["status"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_logs_are_followed_from_half_a_line_to_the_end_of_the_job(run_dir):
    job = write_job(run_dir, logs={0: "a\nhal"})
    folder = JobFolder(run_dir, lambda: NOW, lambda pid: True)
    lines = follow_logs(lambda: folder.find("j1"), None)
    assert next(lines) == "rank 0 | a"
    (job / "logs" / "rank-0.log").write_text("a\nhalf\n")
    assert next(lines) == "rank 0 | half"
    (job / "logs" / "rank-1.log").write_text("last")
    (job / "summary.json").write_text(json.dumps(summary_of().to_dict()))
    assert list(lines) == ["rank 1 | last"]
