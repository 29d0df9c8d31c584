"""The machine that a function runs on: its Python, its processor, what its system brings along."""

from __future__ import annotations

from dataclasses import dataclass

# Amazon Linux 2 below Python 3.11, Amazon Linux 2023 from 3.12 on.
GLIBC = {"3.11": (2, 26), "3.12": (2, 34), "3.13": (2, 34)}
ELF_MACHINES = {"x86_64": 62, "arm64": 183}
_WHEEL_NAMES = {"x86_64": "x86_64", "arm64": "aarch64"}
# What compiled code may ask for by name: the C library in its parts, and what Python itself needs.
SYSTEM_LIBRARIES = frozenset(
    f"lib{name}"
    for name in (
        "c.so.6",
        "m.so.6",
        "dl.so.2",
        "rt.so.1",
        "pthread.so.0",
        "util.so.1",
        "resolv.so.2",
        "nsl.so.1",
        "crypt.so.1",
        "gcc_s.so.1",
        "stdc++.so.6",
        "z.so.1",
        "expat.so.1",
    )
) | {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@dataclass(frozen=True, slots=True)
class Machine:
    """One of Lambda's runtimes on one of its processors."""

    python: str
    """As in ``3.12``."""
    architecture: str
    """``x86_64`` or ``arm64``, as Lambda says it."""

    @property
    def runtime(self) -> str:
        return f"python{self.python}"

    @property
    def glibc(self) -> tuple[int, int]:
        """The newest version of the C library's symbols that is there."""
        return GLIBC[self.python]

    @property
    def processor(self) -> str:
        """As wheels and compilers say it."""
        return _WHEEL_NAMES[self.architecture]

    @property
    def elf_machine(self) -> int:
        return ELF_MACHINES[self.architecture]

    @property
    def wheel_tags(self) -> list[str]:
        """The platforms of wheels that load there, the newest first."""
        major, newest = self.glibc
        tags = [f"manylinux_{major}_{minor}_{self.processor}" for minor in range(newest, 4, -1)]
        old = ("manylinux2014", "manylinux2010", "manylinux1")
        return [*tags, *(f"{name}_{self.processor}" for name in old)]

    def __str__(self) -> str:
        return f"Python {self.python} on {self.architecture}"
