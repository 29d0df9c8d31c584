"""`smlt train` from arguments to exit code, around a session that only plays a job."""

import asyncio
import io
import json
import os
import signal
from dataclasses import fields

import pytest
from fake_session import FakeSession
from rich.console import Console

from smlt import __version__
from smlt.cli.live import QuietView
from smlt.cli.train import follow
from smlt.cli.train_options import NAMES
from smlt.config import TrainConfig
from smlt.config.train import KINDS

REQUIRED = {
    "job_id",
    "state",
    "metrics",
    "steps",
    "seconds",
    "cost_usd",
    "workers",
    "weights_digest",
    "model_path",
}


def read_until(process, text):
    """Read the process's stderr up to a line that holds the text."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"{text!r} never came:\n{''.join(lines)}")


def test_a_completed_job_prints_its_summary_on_stdout_and_progress_on_stderr(smlt):
    done = smlt("train", "a.py:Mnist", "--epochs", 2)
    assert done.code == 0
    assert (
        "completed job 20261122-101500-mnist: All steps are done (40 steps, 2 epochs)" in done.out
    )
    assert "weights sha256:" + "ab" * 32 in done.out
    assert "≈ $" in done.out
    assert "(estimated)" in done.out
    assert 'load_file(".smlt/jobs/20261122-101500-mnist/model.safetensors")' in done.out
    assert "test: accuracy 0.91" in done.err
    assert "watchdog" in done.err


def test_json_prints_one_object_and_nothing_else_on_stdout(smlt):
    done = smlt("train", "a.py:Mnist", "--json")
    summary = json.loads(done.out)
    assert set(summary) >= REQUIRED
    assert summary["state"] == "completed"
    assert summary["workers"] == 4
    assert summary["metrics"]["bad"] is None  # NaN is no JSON
    assert len(done.out.splitlines()) == 1


def test_quiet_prints_only_the_summary(smlt):
    done = smlt("train", "a.py:Mnist", "--quiet")
    assert done.code == 0
    assert done.err == ""
    assert "completed" in done.out


def test_a_failed_job_says_why_with_the_workers_own_traceback(smlt):
    done = smlt("train", "a.py:Mnist", "--param", "end=failed")
    assert done.code == 1
    assert done.out == ""
    assert "smlt: rank 2 raised ValueError at step 7: no." in done.err
    assert "from rank 2's log:" in done.err
    assert "    ValueError: no" in done.err
    assert "checkpoint  file:///run/objects/checkpoints/1/7" in done.err


def test_a_failed_jobs_logs_are_pointed_at_where_there_are_any(smlt, in_folder):
    logs = in_folder / ".smlt/jobs/20261122-101500-mnist/logs"
    logs.mkdir(parents=True)
    done = smlt("train", "a.py:Mnist", "--param", "end=failed")
    assert "smlt logs 20261122-101500-mnist" in done.err


@pytest.mark.parametrize("end", ["failed", "store", "bug"])
def test_json_reports_a_failed_job_too(smlt, end):
    done = smlt("train", "a.py:Mnist", "--json", "--param", f"end={end}")
    summary = json.loads(done.out)
    assert done.code == 1
    assert set(summary) >= REQUIRED
    assert summary["state"] == "failed"
    assert summary["message"]
    assert summary["model_path"] is None


def test_a_users_mistake_is_one_line_on_stderr_and_exit_code_2(smlt):
    done = smlt("train", "a.py:Mnits", "--param", "end=user", "--json")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("smlt: train.py has no class 'Mnits'")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "a.py"],
        ["train", "a.py:B", "--workers", "0"],
        ["train", "a.py:B", "--workers", "5000"],
        ["train", "a.py:B", "--worker", "3"],
        ["train", "a.py:B", "c.py:D"],
        ["train", "a.py:B", "--workers"],
        ["trian"],
        ["logs", "--rank", "first"],
    ],
)
def test_a_wrong_call_is_one_line_on_stderr_and_exit_code_2(smlt, arguments):
    done = smlt(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("smlt: ")
    assert len(done.err.splitlines()) == 1


def test_a_lost_store_is_a_failed_job_without_a_traceback(smlt):
    done = smlt("train", "a.py:Mnist", "--param", "end=store")
    assert done.code == 1
    assert "smlt: redis://here:1 did not answer" in done.err
    assert "Traceback" not in done.err


def test_a_mistake_of_ours_leaves_its_traceback_in_the_run_directory(smlt, in_folder):
    done = smlt("train", "a.py:Mnist", "--param", "end=bug", "--run-dir", "runs")
    assert done.code == 1
    assert "Traceback" not in done.err
    (crash,) = (in_folder / "runs").glob("crash-*.txt")
    assert f"runs/{crash.name}" in done.err
    assert "ZeroDivisionError: a mistake of ours" in crash.read_text()


def test_a_mistake_of_ours_is_told_even_where_the_run_directory_cannot_be(smlt, in_folder):
    (in_folder / "runs").write_text("a file")
    done = smlt("train", "a.py:Mnist", "--param", "end=bug", "--run-dir", "runs")
    assert done.code == 1
    assert "the full traceback is in" in done.err


def test_options_reach_the_session(smlt, in_folder):
    (in_folder / "smlt.toml").write_text("[train]\nworkers = 2\nepochs = 3\njson = true\n")
    done = smlt("train", "a.py:Mnist", "--epochs", 1, "--no-quiet")
    summary = json.loads(done.out)
    assert (summary["workers"], summary["steps"]) == (2, 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_cleanly(start, number):
    process = start("train", "a.py:Mnist", "--epochs", 99, "--param", "pace=0.02")
    read_until(process, "runs on 4 workers")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the checkpoint is kept" in err
    assert "Ctrl-C again" in err
    assert "stopped job" in out
    assert "Traceback" not in err


def test_the_second_signal_stops_at_once(start):
    process = start("train", "a.py:Mnist", "--epochs", 99, "--param", "pace=0.02", "--json",
                    "--param", "end=hang")  # fmt: skip
    read_until(process, "runs on 4 workers")
    process.send_signal(signal.SIGINT)
    read_until(process, "Ctrl-C again")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Stopping at once" in err
    assert json.loads(out)["state"] == "stopped"
    assert "Traceback" not in err


def test_a_job_that_does_not_stop_is_abandoned_within_the_limit(in_folder):
    class Interrupting(QuietView):
        sent = 0

        def update(self, progress):
            if self.sent < 2 and progress.step > 3 * self.sent:
                self.sent += 1
                os.kill(os.getpid(), signal.SIGINT)

    console = Console(file=io.StringIO())
    config = TrainConfig(
        target="a.py:B", epochs=9999, params=("end=hang", "deaf=1", "pace=0.01"), workers=2
    )
    before = signal.getsignal(signal.SIGINT)
    view = Interrupting(console)
    summary = asyncio.run(follow(FakeSession(config), view, stop_now_s=0.2))
    assert summary.state == "stopped"
    assert summary.steps > 0
    assert "did not stop within 0.2 s" in console.file.getvalue()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(smlt, arguments):
    assert smlt(*arguments) == (0, f"smlt {__version__}\n", "")


def test_help_names_every_option_of_the_configuration(smlt):
    done = smlt("train", "--help")
    assert done.code == 0
    for name in {f.name for f in fields(TrainConfig)} - {"target", "sources", "params"}:
        assert "--" + name.replace("_", "-") in done.out


def test_without_a_command_the_help_is_printed(smlt):
    done = smlt()
    assert done.code == 2
    assert "Commands:" in done.out


def test_every_setting_is_an_option():
    assert set(NAMES) == set(KINDS)
