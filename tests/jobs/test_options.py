"""What options do to a job, and what a user reads of it."""

from __future__ import annotations

import json
import shutil

import numpy as np
from safetensors.numpy import load_file

from jobs.harness import SMALL, TASKS, until

SMALL_FILE = TASKS / "small.py"
QUICK = ("--workers", "1", "--steps", "8")


def test_json_is_one_object_and_nothing_else(place):
    ended = place.train(SMALL, *QUICK, "--json").check(0)
    assert ended.out.count("\n") == 1
    wanted = {"job_id", "state", "metrics", "steps", "seconds", "cost_usd", "workers"}
    assert wanted | {"weights_digest", "model_path"} <= ended.summary.keys()
    assert ended.summary["state"] == "completed"
    assert ended.summary["steps"] == 8
    assert ended.summary["metrics"].keys() == {"loss", "error"}
    assert "step 8/8" in ended.err


def test_quiet_says_nothing_while_it_runs(place):
    ended = place.train(SMALL, *QUICK, "--quiet").check(0)
    assert ended.err == ""
    assert "completed job" in ended.out
    assert "load_file(" in ended.out
    assert "weights sha256:" in ended.out


def test_until_ends_at_the_first_evaluation_that_meets_it(place):
    job = place.start(SMALL, "--workers", "2", "--until", "error<=1.5", "--json")
    ended = job.end().check(0)
    *before, last = [event["metrics"]["error"] for event in job.events("evaluation")]
    assert last <= 1.5 < min(before)
    assert ended.summary["metrics"]["error"] == last
    further = str(ended.summary["steps"] + 6)
    resumed = place.smlt("resume", job.folder.name, "--steps", further, "--json").check(0)
    assert resumed.summary["steps"] == int(further)


def test_patience_ends_it_and_the_best_weights_are_kept(place):
    job = place.start(
        f"{SMALL_FILE}:Worsens",
        *("--workers", "2", "--epochs", "50", "--keep-best", "error", "--patience", "2", "--json"),
        *("--param", "lr=0.01"),
    )
    ended = job.end().check(0)
    # Four steps an epoch: the first evaluation is the best, and two worse ones are borne.
    assert ended.summary["steps"] == 12
    errors = [event["metrics"]["error"] for event in job.events("evaluation")]
    assert errors == sorted(errors)
    assert len(errors) == 3
    best, last = (load_file(ended.summary[f"{name}path"]) for name in ("best_model_", "model_"))
    truth = np.linspace(-1, 1, 40)
    assert abs(best["weight"] - truth).max() < abs(last["weight"] - truth).max()


def test_training_begins_from_given_weights(place):
    first = place.train(SMALL, *QUICK, "--json").check(0)
    model = first.summary["model_path"]
    second = place.train(
        SMALL, *QUICK, "--param", "lr=0", "--init-from", model, "--seed", "5", "--json"
    ).check(0)
    assert second.summary["weights_digest"] == first.summary["weights_digest"]


def test_inline_gives_the_digest_of_one_worker(place):
    inline = place.train(SMALL, "--inline", "--steps", "8", "--json").check(0)
    function = place.train(SMALL, *QUICK, "--json").check(0)
    assert inline.summary["weights_digest"] == function.summary["weights_digest"]
    assert inline.summary["workers"] == 1


def test_failure_inline_has_the_traceback_of_the_task(place):
    ended = place.train(f"{SMALL_FILE}:RaisesAtStep7", "--inline", "--steps", "8").check(1)
    assert "rank 0 failed at step 7: ValueError: the seventh batch is spoilt" in ended.sentence


def test_settings_come_from_the_file_and_flags_win(place):
    (place.path / "smlt.toml").write_text(
        f'[train]\ntarget = "{SMALL}"\nworkers = 2\nsteps = 3\n[train.params]\nwidth = 5\n'
    )
    from_file = place.train("--json").check(0).summary
    assert (from_file["workers"], from_file["steps"]) == (2, 3)
    assert load_file(from_file["model_path"])["weight"].shape == (5,)
    with_flags = place.train("--json", "--workers", "1", "--param", "width=6").check(0).summary
    assert (with_flags["workers"], with_flags["steps"]) == (1, 3)
    assert load_file(with_flags["model_path"])["weight"].shape == (6,)


def test_module_that_lies_in_the_working_directory(place):
    package = place.path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(SMALL_FILE, package / "lines.py")
    (package / "task.py").write_text(
        "from mine.lines import Regression\n\n\nclass Mine(Regression):\n    pass\n"
    )
    ended = place.train("mine.task:Mine", *QUICK, "--json").check(0)
    assert ended.summary["state"] == "completed"


def test_status_while_it_runs_names_workers_and_processes(place):
    gate = place.gate(6)
    job = place.start(SMALL, "--workers", "2", "--steps", "8", *gate.params)
    gate.until_there(job, 2)
    job.until(lambda: job.status()["step"] >= 4, "the steps before the gate")
    job.until(lambda: job.states() == ["training"] * 2, "the leases of both ranks")
    status = json.loads(place.smlt("status", "--json").check(0).out)
    assert status["state"] == "running"
    assert status["job_id"] == job.folder.name
    assert 4 <= status["step"] <= 5
    assert [worker["rank"] for worker in status["workers"]] == [0, 1]
    assert {worker["state"] for worker in status["workers"]} == {"training"}
    assert {worker["pid"] for worker in status["workers"]} == gate.waiting()
    gate.open()
    job.end().check(0)
    ended = json.loads(place.smlt("status", job.folder.name, "--json").check(0).out)
    assert ended["state"] == "completed"
    assert ended["summary"]["steps"] == 8


def test_logs_of_one_rank_are_what_its_task_printed(place):
    job = place.start(SMALL, "--workers", "2", "--steps", "4", "--param", "talk=true")
    job.end().check(0)
    one = place.smlt("logs", job.folder.name, "--rank", "1").check(0).out
    assert [line for line in one.splitlines() if line.startswith("step")] == [
        f"step {step} has 32 samples" for step in range(1, 5)
    ]
    both = place.smlt("logs", job.folder.name).check(0).out
    assert "rank 0 | step 1 has 32 samples" in both
    assert "rank 1 | step 1 has 32 samples" in both
    none = place.smlt("logs", job.folder.name, "--rank", "7").check(2)
    assert "there are logs of: 0, 1" in none.sentence


def test_stalled_step_names_what_is_waited_for(place):
    gate = place.gate(3)
    job = place.start(f"{SMALL_FILE}:Dawdles", "--workers", "2", "--steps", "4", *gate.params)
    gate.until_there(job, 1)
    stalled = job.until(lambda: job.status()["stalled"], "a stall")
    assert "rank 0 waits for" in stalled
    assert "rank 1" in stalled
    gate.open()
    ended = job.end().check(0)
    assert "stalled: rank 0 waits for" in ended.err
    until(lambda: not place.left(), "the end of everything", 5)
