"""The limit of a step: its bytes through a third process, on raw sockets."""

import multiprocessing
import selectors
import socket
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 120.0
PIECE = 1 << 20


def relayed(ranks, nbytes):
    """Bytes that one rank sends (its shards, its means) and receives (likewise)."""
    share = nbytes // ranks
    return ranks * share, 2 * (ranks - 1) * share


def connected(options):
    sock = socket.socket(socket.AF_INET if options.tcp else socket.AF_UNIX)
    sock.connect(options.relay)
    if not options.tcp:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
    sock.setblocking(False)
    return sock


def exchange(sock, source, target, to_send, to_receive) -> None:
    """Send and receive so many bytes, both ways at once."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while to_send or to_receive:
            wanted = (selectors.EVENT_READ if to_receive else 0) | (
                selectors.EVENT_WRITE if to_send else 0
            )
            selector.modify(sock, wanted)
            [(_, events)] = selector.select(LIMIT_S) or [(None, 0)]
            if not events:
                raise TimeoutError(f"the relay has been silent for {LIMIT_S:g} s")
            if events & selectors.EVENT_WRITE:
                to_send -= sock.send(source[: min(to_send, len(source), PIECE)])
            if events & selectors.EVENT_READ:
                to_receive -= sock.recv_into(target[: min(to_receive, len(target))])


@contextmanager
def relay(directory, options):
    if options.tcp:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(Path(directory) / "relay.sock"))
        listener.listen()
    options.relay = listener.getsockname()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_serve, args=(listener, options), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        listener.close()


def _serve(listener, options) -> None:
    """Take what each rank sends, and send it what it receives, as one thread for all."""
    up, down = relayed(options.ranks, 4 * options.elements)
    room = memoryview(bytearray(PIECE))
    selector = selectors.DefaultSelector()
    left = {}
    for _ in range(options.ranks):
        sock, _ = listener.accept()
        sock.setblocking(False)
        if not options.tcp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        left[sock] = [up, 0]
        selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, events in selector.select():
            sock, state = key.fileobj, left[key.fileobj]
            if events & selectors.EVENT_READ:
                received = sock.recv_into(room[: min(state[0], PIECE)])
                if not received:
                    return
                if state[0] == up:
                    state[1] = down
                state[0] -= received
            if events & selectors.EVENT_WRITE:
                state[1] -= sock.send(room[: min(state[1], PIECE)])
            if state == [0, 0]:
                state[0] = up
            wanted = (selectors.EVENT_READ if state[0] else 0) | (
                selectors.EVENT_WRITE if state[1] else 0
            )
            selector.modify(sock, wanted)
