"""The limits of a step with a real server: raw, blocking sockets, nothing checked, nothing added.

Floor    the round trips of smlt's step of one shard
Store    the bytes of smlt's step of many, up and down at once
"""

import socket
import threading

import numpy as np

from benchmarks.step_relay import PIECE
from smlt.io.server_address import ServerAddress
from smlt.io.server_socket import unsent


class RawClient:
    """SET with a notice, wait for notices, GET, on one socket."""

    def __init__(self, url) -> None:
        address = ServerAddress.parse(url)
        if address.path:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(address.path)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        else:
            self._socket = socket.create_connection((address.host, address.port))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        self._after = {}

    def put(self, key, stream, data) -> None:
        length = b"$%d\r\n" % len(data)
        notice = _command("XADD", stream, "*", "k", key)
        left = [b"*3\r\n" + _words("SET", key) + length, data, b"\r\n" + notice]
        left = [memoryview(piece) for piece in left]
        while left:
            left = unsent(left, self._socket.sendmsg(left))
        self._reply(), self._reply()

    def get_into(self, key, room) -> None:
        self._socket.sendall(_command("GET", key))
        assert int(self._replies.readline()[1:]) == len(room)
        begun = min(len(self._replies.peek(1)), len(room))
        room[:begun] = self._replies.read(begun)
        room = room[begun:]
        while room:
            received = self._socket.recv_into(room, 0, socket.MSG_WAITALL)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            room = room[received:]
        self._replies.read(2)

    def notices(self, stream):
        """Wait for the next ones, and return the keys they name."""
        after = self._after.get(stream, "0-0")
        self._socket.sendall(_command("XREAD", "BLOCK", "60000", "STREAMS", stream, after))
        [(_, notices)] = self._reply()
        self._after[stream] = notices[-1][0]
        return [fields[1].decode() for _, fields in notices]

    def _reply(self):
        line = self._replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return self._replies.read(int(rest) + 2)[:-2]
        return [self._reply() for _ in range(int(rest))] if kind == b"*" else rest


class Floor:
    """One shard, whose mean rank 0 puts."""

    def __init__(self, options, rank, flat) -> None:
        self._client = RawClient(options.url)
        self._rank, self._ranks, self._flat = rank, options.ranks, flat
        self._bytes = memoryview(flat).cast("B")
        self._room = np.empty_like(flat)

    def step(self) -> None:
        client = self._client
        if self._rank:
            client.put(f"floor:{self._rank}", "floor:in", self._bytes)
            client.notices("floor:out")
            client.get_into("floor:mean", self._bytes)
            return
        missing = self._ranks - 1
        while missing:
            for key in client.notices("floor:in"):
                client.get_into(key, memoryview(self._room).cast("B"))
                self._flat += self._room
                missing -= 1
        self._flat /= self._ranks
        client.put("floor:mean", "floor:out", self._bytes)


class Store:
    """Every rank owns as many shards; three threads move its contributions, theirs, and means."""

    def __init__(self, options, rank, flat) -> None:
        self._rank, self._ranks = rank, options.ranks
        owned = flat.nbytes // self._ranks
        self._each = max(1, round(owned / (options.shard_mb * (1 << 20))))
        self._shard = owned // self._each
        self._bytes = memoryview(flat).cast("B")
        self._room = np.empty(self._shard, np.uint8).data
        self._up, self._owner, self._down = (RawClient(options.url) for _ in range(3))

    def step(self) -> None:
        threads = [threading.Thread(target=part) for part in (self._contribute, self._fetch_means)]
        for thread in threads:
            thread.start()
        self._own()
        for thread in threads:
            thread.join()

    def _at(self, owner, shard):
        start = (owner * self._each + shard) * self._shard
        return self._bytes[start : start + self._shard]

    def _contribute(self) -> None:
        for shard in range(self._each):
            for other in range(1, self._ranks):
                owner = (self._rank + other) % self._ranks
                key = f"store:{owner}:{shard}:{self._rank}"
                self._up.put(key, f"store:{owner}", self._at(owner, shard))

    def _own(self) -> None:
        missing = [self._ranks - 1] * self._each
        while any(missing):
            for key in self._owner.notices(f"store:{self._rank}"):
                self._owner.get_into(key, self._room)
                shard = int(key.split(":")[2])
                missing[shard] -= 1
                if not missing[shard]:
                    mean = f"store:{self._rank}:{shard}:mean"
                    self._owner.put(mean, "store:means", self._at(self._rank, shard))

    def _fetch_means(self) -> None:
        missing = self._each * (self._ranks - 1)
        while missing:
            for key in self._down.notices("store:means"):
                owner, shard = map(int, key.split(":")[1:3])
                if owner != self._rank:
                    self._down.get_into(key, self._at(owner, shard))
                    missing -= 1


def _command(*words):
    return b"*%d\r\n" % len(words) + _words(*words)


def _words(*words):
    raw = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)
