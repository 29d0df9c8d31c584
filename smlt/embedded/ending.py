"""How an init or an invocation ended, and the words that Lambda has for it."""

import json
import signal
from dataclasses import dataclass
from typing import Literal

TOO_LARGE_RESPONSE = "Function.ResponseSizeTooLarge"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a phase (init or invoke) ended.

    ready: init is over. response, error: the handler's or the import's answer, in body.
    exit: the process ended, with a return code. memory, timeout: it was killed at that limit.
    """

    kind: Literal["ready", "response", "error", "exit", "memory", "timeout"]
    body: bytes = b""
    reported_type: str = ""
    returncode: int = 0

    @property
    def is_answer(self) -> bool:
        return self.kind in ("response", "error")

    @property
    def error_type(self) -> str | None:
        if self.kind == "memory":
            return "Runtime.OutOfMemory"
        if self.kind == "exit":
            return "Runtime.ExitError"
        return self.reported_type or None

    def exit_text(self) -> str:
        """What became of the process that ended without an answer."""
        if self.kind == "memory":
            return "Runtime exited with error: signal: killed"
        if self.returncode < 0:
            number = signal.Signals(-self.returncode)
            name = {signal.SIGKILL: "killed", signal.SIGTERM: "terminated"}.get(number)
            shown = name or number.name.removeprefix("SIG").lower()
            return f"Runtime exited with error: signal: {shown}"
        if self.returncode == 0:
            return "Runtime exited without providing a reason"
        return f"Runtime exited with error: exit status {self.returncode}"


KILLED = Ending("exit", returncode=-signal.SIGKILL)


def error_body(kind: str, message: str) -> bytes:
    """A failed invocation's payload, as Lambda writes it."""
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()
