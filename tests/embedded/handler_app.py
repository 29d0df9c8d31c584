"""The handler that the tests deploy, as app.py in a real zip. Its answers are what it observed."""

import json
import os
import subprocess
import sys
import threading
import time

IMPORTED_AT = time.time()
calls = 0

if os.environ.get("AT_INIT") == "sleep":
    time.sleep(float(os.environ["INIT_S"]))
if os.environ.get("AT_INIT") == "sleep once":
    marker = os.environ["MARKER"]
    if not os.path.exists(marker):
        open(marker, "w").close()
        time.sleep(30)
if os.environ.get("AT_INIT") == "raise":
    raise RuntimeError("no good morning")
if os.environ.get("AT_INIT") == "exit":
    os._exit(7)
if os.environ.get("AT_INIT") == "burn":
    begun = time.monotonic()
    while time.process_time() < 0.3:
        pass
    INIT_BURN_S = time.monotonic() - begun


def handler(event, context):
    global calls
    calls += 1
    return globals()["do_" + event.get("do", "echo")](event, context)


def do_echo(event, context):
    return {
        "event": event,
        "pid": os.getpid(),
        "calls": calls,
        "request_id": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
        "arn": context.invoked_function_arn,
        "version": context.function_version,
        "memory": context.memory_limit_in_mb,
        "log_stream": context.log_stream_name,
        "client_context": context.client_context and context.client_context.custom,
    }


def do_environ(event, context):
    return dict(os.environ)


def do_print(event, context):
    for line in event["lines"]:
        print(line)
    print("to stderr", file=sys.stderr)


def do_raise(event, context):
    raise ValueError("the batch is spoiled")


def do_exit(event, context):
    os._exit(event["status"])


def do_signal(event, context):
    os.kill(os.getpid(), event["signal"])
    time.sleep(30)


def do_sleep(event, context):
    time.sleep(event["s"])
    return "awake"


def do_child(event, context):
    """Start a child that outlives the invocation, in a session of its own if asked."""
    child = subprocess.Popen(["sleep", "300"], start_new_session=event.get("session", False))
    if event.get("s"):
        time.sleep(event["s"])
    return child.pid


ticks = 0


def do_tick_in_background(event, context):
    def tick():
        global ticks
        while True:
            ticks += 1
            time.sleep(0.01)

    threading.Thread(target=tick, daemon=True).start()


def do_ticks(event, context):
    time.sleep(event.get("s", 0))
    return ticks


def do_exit_later(event, context):
    threading.Timer(event["s"], os._exit, (5,)).start()


def do_allocate(event, context):
    block = b"x" * (event["mb"] << 20)
    if event.get("s"):
        time.sleep(event["s"])
    return len(block)


def do_allocate_in_child(event, context):
    code = f"x = b'x' * ({event['mb']} << 20); import time; time.sleep(20)"
    return subprocess.run([sys.executable, "-c", code]).returncode


def do_burn(event, context):
    """CPU seconds used within a wall time."""
    begun, used = time.monotonic(), time.process_time()
    while time.monotonic() - begun < event["s"]:
        pass
    return time.process_time() - used


def do_init_burn(event, context):
    return INIT_BURN_S


def do_fill_tmp(event, context):
    written = 0
    try:
        with open("/tmp/filler", "wb") as file:
            while written < event["mb"] << 20:
                written += file.write(b"x" * (1 << 20))
    except OSError as exc:
        return {"errno": exc.errno, "mb": written >> 20}
    finally:
        if os.path.exists("/tmp/filler") and not event.get("keep"):
            os.unlink("/tmp/filler")
    return {"errno": 0, "mb": written >> 20}


def do_tmp(event, context):
    listing = os.listdir("/tmp")
    if event.get("write"):
        with open("/tmp/" + event["write"], "w") as file:
            file.write("mine")
    return listing


def do_devices(event, context):
    lock = "made"
    try:
        import multiprocessing

        multiprocessing.Lock()
    except OSError as exc:
        lock = type(exc).__name__
    with open("/dev/null", "w") as null, open("/dev/urandom", "rb") as noise:
        null.write("x")
        return {"shm": os.path.exists("/dev/shm"), "lock": lock, "noise": len(noise.read(8))}


def do_read(event, context):
    with open(event["path"]) as file:
        return file.read()


def do_big(event, context):
    return "x" * event["bytes"]


def do_count(event, context):
    """Append a line to a file, and fail as often as asked."""
    with open(event["path"], "a") as file:
        file.write(json.dumps({"time": time.time(), "id": context.aws_request_id}) + "\n")
    with open(event["path"]) as file:
        if len(file.readlines()) <= event.get("failures", 0):
            raise RuntimeError("not yet")


def do_shadow(event, context):
    import colorsys

    return colorsys.__file__


def do_paths(event, context):
    return {"cwd": os.getcwd(), "path": sys.path, "file": __file__}
