"""The watchdog, tried on a process of its own."""

import subprocess
import sys
import time

HANGS = """
import time
from smlt.worker.watchdog import Watchdog
with Watchdog(time.monotonic() + {deadline}) as watchdog:
    {bite}
    time.sleep({work})
print("ended by itself")
"""


def run(deadline, work, bite="pass"):
    code = HANGS.format(deadline=deadline, work=work, bite=bite)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    return done, time.monotonic() - started


def test_process_that_outlives_its_deadline_is_ended_before_it():
    done, seconds = run(deadline=2.3, work=25)
    assert done.returncode == 70
    assert "the function's time limit has passed" in done.stderr
    assert seconds < 20


def test_deadline_can_be_moved_closer_with_its_reason():
    done, _ = run(600, 25, "watchdog.bite_within(0.2, 'the limit for saving')")
    assert done.returncode == 70
    assert "the limit for saving has passed" in done.stderr


def test_deadline_cannot_be_moved_away():
    done, _ = run(2.3, 25, "watchdog.bite_within(60, 'later')")
    assert done.returncode == 70


def test_deadline_that_was_moved_closer_can_be_given_back_but_not_beyond_the_functions_own():
    bites = "watchdog.bite_within(0.2, 'too soon'); watchdog.allow({}, 'the limit for saving')"
    done, _ = run(600, 0.6, bites.format(300))
    assert done.stdout == "ended by itself\n"
    done, _ = run(600, 25, bites.format(0.3))
    assert "the limit for saving has passed" in done.stderr
    done, _ = run(2.3, 25, bites.format(300))
    assert "the function's time limit has passed" in done.stderr


def test_work_that_ends_in_time_is_left_alone():
    done, _ = run(deadline=60, work=0.1)
    assert done.returncode == 0
    assert done.stdout == "ended by itself\n"
