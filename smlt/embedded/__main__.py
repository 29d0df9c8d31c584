"""`python -m smlt.embedded --run-dir DIR`: the one-machine cloud as a process of its own.

Prints one JSON line when it is ready (`endpoint`, `parameters`, `pid`, `valkey_pid`, `isolation`,
`notices`), lives while its stdin is open and a little longer, and takes everything with it.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from smlt.embedded.isolation import MODES
from smlt.embedded.limits import MB, Limits
from smlt.embedded.service import Service, ServiceConfig
from smlt.errors import SmltError


def main() -> int:
    options = _parser().parse_args()
    config = ServiceConfig(
        run_dir=options.run_dir.absolute(),
        limits=Limits(
            account_concurrency=options.concurrency,
            init_s=options.init_limit,
            idle_s=options.idle_limit,
            retry_delays_s=tuple(options.retry_delay or Limits().retry_delays_s),
            zipped_bytes=options.zip_limit * MB,
            # As base64, with the settings of a function beside it.
            request_bytes=max(Limits().request_bytes, options.zip_limit * MB * 3 // 2),
        ),
        isolation=options.isolation,
        with_parameter_store=options.parameter_store,
        maxmemory=options.maxmemory,
        visible=[str(path) for path in options.visible],
        region=options.region,
        linger_s=options.linger,
        chaos=options.chaos,
    )
    if sys.platform != "linux":
        print("the embedded cloud runs on Linux only; give an AWS account instead", file=sys.stderr)
        return 1
    # A Ctrl-C in the terminal is the client's: it decides what becomes of the job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        (config.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        _log_to(config.run_dir / "logs" / "cloud.log")
        asyncio.run(_run(config))
    except (SmltError, OSError) as exc:
        logging.getLogger(__name__).exception("the embedded cloud failed")
        print(exc, file=sys.stderr)
        return 1
    return 0


async def _run(config: ServiceConfig) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    # Watched from the first moment: a client that is gone while we start must not be outlived.
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with Service(config, inherited=os.environ) as service:
        threading.Thread(target=_watch_stdin, args=(loop, service), daemon=True).start()
        print(json.dumps(service.ready()), flush=True)
        ends = [
            asyncio.create_task(stop.wait()),
            asyncio.create_task(service.lifetime.wait_for_end()),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()


def _watch_stdin(loop: asyncio.AbstractEventLoop, service: Service) -> None:
    """Read to the end of stdin on a thread: it may be a pipe, a terminal, a file or closed."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(service.lifetime.client_is_gone)


def _log_to(path: Path) -> None:
    logging.basicConfig(
        filename=path,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smlt.embedded", description=__doc__)
    add = parser.add_argument
    add("--run-dir", type=Path, required=True, help="where logs, code and the socket live")
    add("--no-parameter-store", dest="parameter_store", action="store_false")
    add("--linger", type=float, default=15.0, help="seconds to live on after stdin's end")
    add("--chaos", type=int, help="seed: misdeliver events, throttle, and kill environments")
    add("--concurrency", type=int, default=Limits().account_concurrency)
    add("--maxmemory", help="Valkey's limit, such as 2gb")
    add("--visible", type=Path, nargs="*", default=[], help="paths below /tmp that functions need")
    add("--isolation", choices=MODES, default="auto")
    add("--region", default="us-east-1")
    add("--init-limit", type=float, default=Limits().init_s, help="seconds for the init phase")
    add("--idle-limit", type=float, default=Limits().idle_s, help="seconds to keep warm")
    add("--zip-limit", type=int, default=50, help="MB of code; where Lambda reads S3, more")
    add("--retry-delay", type=float, nargs="*", help="seconds before each retry of an event")
    return parser


if __name__ == "__main__":
    sys.exit(main())
