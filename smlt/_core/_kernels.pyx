"""Owns the C: every other module calls through this one's table, in the set chosen here."""

from smlt._core._kernels cimport kernel_table


cdef extern from "table.h" nogil:
    const kernel_table compiled_kernels

    ctypedef struct lane_kernels:
        const char* name

    const lane_kernels* lanes
    int choose_lanes(const char* name)


kernels = &compiled_kernels

if not choose_lanes(b"avx2"):
    choose_lanes(b"baseline")


def instruction_set():
    """Return the name of the kernels in use: "avx2" or "baseline"."""
    return (<bytes>lanes.name).decode()


def use_instruction_set(name):
    """Choose the kernels by name, for tests and benchmarks; all give the same bits.

    Raises:
        ValueError: this machine does not have them.
    """
    if not isinstance(name, str) or not choose_lanes((<str>name).encode(errors="replace")):
        raise ValueError(f"this machine has no {name!r} kernels")
