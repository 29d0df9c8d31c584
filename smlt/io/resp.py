"""Commands to a Redis or Valkey server as bytes, and the errors among its replies.

Source: the RESP specification (redis.io/docs/latest/develop/reference/protocol-spec).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smlt._core.replies import SMALL_BYTES, ErrorReply, Reply
from smlt.io.parameter_store import Buffer

Argument = bytes | Sequence[memoryview]
"""An argument of a command; a sequence of views is one argument that is sent piece by piece."""
Command = Sequence[Argument]


def check(replies: Sequence[Reply]) -> None:
    """Raise the first error among the replies; in a transaction it is why EXEC was refused."""
    for reply in replies:
        if isinstance(reply, ErrorReply):
            raise reply
        if isinstance(reply, list):
            check(reply)


def encode(commands: Iterable[Command]) -> list[Buffer]:
    """Return the buffers that carry the commands; large arguments are referred to, not copied."""
    buffers: list[Buffer] = []
    text = bytearray()
    for command in commands:
        text += b"*%d\r\n" % len(command)
        for argument in command:
            if isinstance(argument, bytes):
                text += b"$%d\r\n%b\r\n" % (len(argument), argument)
                continue
            text += b"$%d\r\n" % sum(piece.nbytes for piece in argument)
            for piece in argument:
                if piece.nbytes <= SMALL_BYTES:
                    text += piece
                    continue
                buffers += (text, piece)
                text = bytearray()
            text += b"\r\n"
    buffers.append(text)
    return buffers
