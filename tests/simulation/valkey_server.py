"""A Valkey server of a few hundred lines: the commands that smlt sends, on simulated time.

Told to, it forgets everything (a restart), evicts what it should keep, or has no memory left.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field

from smlt.io import valkey_control
from smlt.io.parameter_store import CARRIED
from tests.simulation.loop import Process

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
NIL = b"$-1\r\n"
NIL_ARRAY = b"*-1\r\n"
OOM = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
_FRAME = CARRIED.encode()
_WRITES = {b"SET", b"XADD", b"EVAL"}


@dataclass
class _Stream:
    ids: list = field(default_factory=list)
    entries: list = field(default_factory=list)


@dataclass
class _Reader:
    """A blocked XREAD."""

    session: object
    streams: list
    limit: int


class ValkeyServer:
    def __init__(self, loop, name: str = "valkey") -> None:
        self.loop = loop
        self.process = Process(loop, name)
        self.up = True
        self.full = False
        self.distrust = None
        """Why nobody comes to a connection with it, though it is there."""
        self.refusal = b""
        """What every command is answered while the server cannot serve."""
        self.babble = b""
        """What the next command that comes in is answered, whatever it is."""
        self.babbles_to = lambda command: True
        """Which is the next one."""
        self.garbled = 0
        """So many frames are damaged on their way to whoever fetches them next."""
        self.on_write = lambda process, command: None
        self._ids = itertools.count(1)
        self._keys = {}
        self._expiry = {}
        self._readers = {}

    def accept(self, channel):
        return Session(self, channel)

    def forget(self) -> None:
        """Lose everything, as a server that is restarted without a copy on disk."""
        self._keys.clear()
        self._expiry.clear()
        self._readers.clear()

    def evict(self, rng, share: float) -> list[bytes]:
        """Remove some of the keys that have an expiry, as a server short of memory may."""
        victims = [key for key in self._keys if rng.random() < share]
        for key in victims:
            self._remove(key)
        return victims

    def keys(self) -> list[bytes]:
        return [key for key in list(self._keys) if self._value(key) is not None]

    def has_keys_of(self, generation: int) -> bool:
        return any(b":%d}:" % generation in key for key in self.keys())

    def unbounded(self) -> list[bytes]:
        """Keys that would never expire."""
        return [key for key in self.keys() if key not in self._expiry]

    def run(self, session, command: list[bytes]) -> bytes:
        name = command[0].upper()
        if self.refusal and not session.in_transaction:
            return self.refusal + b"\r\n"
        if self.full and name in _WRITES:
            return OOM
        if name in _WRITES:
            self.on_write(session.channel.process, command)
        method = getattr(self, "_" + name.decode().lower(), None)
        if method is None:
            return b"-ERR unknown command '%b'\r\n" % name
        return method(session, *command[1:])

    def _value(self, key):
        if self._expiry.get(key, float("inf")) <= self.loop.now:
            self._remove(key)
        return self._keys.get(key)

    def _remove(self, key) -> bool:
        self._expiry.pop(key, None)
        return self._keys.pop(key, None) is not None

    def _ping(self, session):
        return b"+PONG\r\n"

    def _client(self, session, *args):
        return OK

    def _select(self, session, index):
        return OK

    def _get(self, session, key):
        value = self._value(key)
        return _bulk(value if session.in_transaction else self._on_its_way(value))

    def _on_its_way(self, frame):
        if not self.garbled or not frame:
            return frame
        self.garbled -= 1
        damaged = bytearray(frame)
        damaged[self.garbled * 7919 % len(damaged)] ^= 0x10
        return bytes(damaged)

    def _set(self, session, key, value, *options):
        options = [option.upper() for option in options]
        if b"NX" in options and self._value(key) is not None:
            return NIL
        self._keys[key] = value
        self._expiry.pop(key, None)
        if b"PX" in options:
            milliseconds = int(options[options.index(b"PX") + 1])
            self._expiry[key] = self.loop.now + milliseconds / 1000
        return OK

    def _exists(self, session, *keys):
        return _integer(sum(self._value(key) is not None for key in keys))

    def _mget(self, session, *keys):
        return _array([_bulk(self._value(key)) for key in keys])

    def _unlink(self, session, *keys):
        return _integer(sum(self._remove(key) for key in keys))

    _del = _unlink

    def _pexpire(self, session, key, milliseconds):
        if self._value(key) is None:
            return _integer(0)
        self._expiry[key] = self.loop.now + int(milliseconds) / 1000
        return _integer(1)

    def _scan(self, session, cursor, *options):
        pattern = options[1].decode().replace("\\", "") if len(options) > 1 else "*"
        # Patterns are literal prefixes here: braces and brackets mean themselves.
        found = [key for key in self.keys() if key.startswith(pattern.removesuffix("*").encode())]
        return _array([_bulk(b"0"), _array(map(_bulk, found))])

    def _xadd(self, session, key, *args):
        args = list(args)
        keep = None
        if args[0].upper() == b"MAXLEN":
            keep = int(args[2] if args[1] in (b"~", b"=") else args[1])
            args = args[3 if args[1] in (b"~", b"=") else 2 :]
        stream = self._value(key)
        if stream is None:
            stream = self._keys[key] = _Stream()
        stream.ids.append(next(self._ids))
        stream.entries.append(args[1:])
        if keep is not None:
            del stream.ids[:-keep], stream.entries[:-keep]
        self._wake(key)
        return _bulk(b"%d-0" % stream.ids[-1])

    def _xread(self, session, *args):
        args = list(args)
        block_s, limit = None, 1000
        while args[0].upper() != b"STREAMS":
            option = args.pop(0).upper()
            number = int(args.pop(0))
            if option == b"COUNT":
                limit = number
            else:
                block_s = number / 1000
        names = args[1 : 1 + (len(args) - 1) // 2]
        after = [int(last.partition(b"-")[0]) for last in args[1 + len(names) :]]
        streams = list(zip(names, after, strict=True))
        found = self._behind(streams, limit)
        if found or block_s is None or session.in_transaction:
            return _array(found) if found else NIL_ARRAY
        session.block(_Reader(session, streams, limit), block_s)
        return None

    def _behind(self, streams, limit):
        found = []
        for name, last in streams:
            stream = self._value(name)
            if not isinstance(stream, _Stream):
                continue
            start = bisect.bisect_right(stream.ids, last)
            entries = [
                _array([_bulk(b"%d-0" % number), _array(map(_bulk, self._carried(fields)))])
                for number, fields in zip(
                    stream.ids[start : start + limit],
                    stream.entries[start : start + limit],
                    strict=True,
                )
            ]
            if entries:
                found.append(_array([_bulk(name), _array(entries)]))
        return found

    def _carried(self, fields):
        if _FRAME not in fields[::2]:
            return fields
        at = 2 * fields[::2].index(_FRAME) + 1
        return [*fields[:at], self._on_its_way(fields[at]), *fields[at + 1 :]]

    def wait(self, reader) -> None:
        self._readers[reader.session] = reader

    def stop_waiting(self, session) -> None:
        self._readers.pop(session, None)

    def _wake(self, key) -> None:
        waiting = [r for r in self._readers.values() if any(name == key for name, _ in r.streams)]
        for reader in waiting:
            # Not before the command that adds has been carried out: it may be in a transaction.
            self.process.call_later(0, self._serve, reader)

    def _serve(self, reader) -> None:
        if self._readers.get(reader.session) is reader:
            found = self._behind(reader.streams, reader.limit)
            if found:
                reader.session.unblock(_array(found))

    def _eval(self, session, script, count, *args):
        if script.decode() != valkey_control._SET_FIRST:
            return b"-ERR the simulated server knows another script\r\n"
        keys, values = args[: int(count)], args[int(count) :]
        if self._value(keys[1]) is None:
            return NIL
        stands = self._value(keys[0])
        if stands is not None:
            return _bulk(stands)
        self._set(session, keys[0], values[0], b"PX", values[1])
        if len(values) > 2:
            self._xadd(session, keys[2], b"*", *values[2:])
            self._pexpire(session, keys[2], values[1])
        return _bulk(values[0])


class Session:
    """One connection at the server: requests in order, replies in order."""

    def __init__(self, server: ValkeyServer, channel) -> None:
        self.server = server
        self.channel = channel
        self.in_transaction = False
        self._received = bytearray()
        self._queue = None
        self._refused = False
        self._blocked = False
        self._timer = None
        self._closed = False

    def feed(self, data: bytes) -> None:
        if self._closed or not self.server.up:
            return
        self._received += data
        self._go_on()

    def _go_on(self) -> None:
        while not self._blocked and (command := self._next()) is not None:
            reply = self._execute(command)
            if reply is not None:
                self.channel.reply(reply)

    def _next(self):
        """Take a whole command off what was received."""
        text, at = self._received, 0
        items = []
        end = text.find(b"\r\n", at)
        if end < 0:
            return None
        count, at = int(text[at + 1 : end]), end + 2
        for _ in range(count):
            end = text.find(b"\r\n", at)
            if end < 0:
                return None
            size, at = int(text[at + 1 : end]), end + 2
            if len(text) < at + size + 2:
                return None
            items.append(bytes(text[at : at + size]))
            at += size + 2
        del text[:at]
        return items

    def _execute(self, command):
        name = command[0].upper()
        if self.server.babble and self.server.babbles_to(command):
            reply, self.server.babble = self.server.babble, b""
            return reply
        if name == b"MULTI" and not self.server.refusal:
            self._queue, self._refused = [], False
            return OK
        if name == b"EXEC" and self._queue is not None:
            queue, self._queue = self._queue, None
            if self._refused:
                return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
            self.in_transaction = True
            replies = [self.server.run(self, queued) for queued in queue]
            self.in_transaction = False
            return _array(replies)
        if self._queue is not None:
            if self.server.refusal:
                self._refused = True
                return self.server.refusal + b"\r\n"
            if self.server.full and name in _WRITES:
                self._refused = True
                return OOM
            self._queue.append(command)
            return QUEUED
        return self.server.run(self, command)

    def block(self, reader, seconds: float) -> None:
        self._blocked = True
        self.server.wait(reader)
        self._timer = self.server.process.call_later(seconds, self.unblock, NIL_ARRAY)

    def unblock(self, reply: bytes) -> None:
        self._timer.cancel()
        self.server.stop_waiting(self)
        self._blocked = False
        self.channel.reply(reply)
        self._go_on()

    def close(self) -> None:
        self._closed = True
        self.server.stop_waiting(self)
        if self._timer is not None:
            self._timer.cancel()


def _bulk(value) -> bytes:
    return NIL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def _integer(value: int) -> bytes:
    return b":%d\r\n" % value


def _array(items) -> bytes:
    items = list(items)
    return b"*%d\r\n" % len(items) + b"".join(items)
