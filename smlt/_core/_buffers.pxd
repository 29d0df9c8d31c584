"""The doors' view of other people's memory: contiguous bytes, checked once, released for sure."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches


cdef extern from "Python.h":
    # Without `except -1`: a try block for each of n shards costs as much as the call itself.
    int get_buffer "PyObject_GetBuffer" (object source, Py_buffer* view, int flags) noexcept


cdef inline char item_format(Py_buffer* view) noexcept:
    """Return the struct character of a view's items, '?' where it is none we can read."""
    cdef const char* text = <const char*>view.format
    if text == NULL:
        return c"B"
    if text[0] == c"<" or text[0] == c"=" or text[0] == c"@":
        text += 1
    if text[0] == 0 or text[1] != 0:
        return c"?" if text[0] != 0 else c"B"
    return text[0]


cdef inline int acquire(object source, Py_buffer* view, bint writable, str name) except -1:
    """Get a C-contiguous buffer; the caller must release it."""
    cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
    if get_buffer(source, view, flags) == 0:
        return 0
    cdef bint none = PyErr_ExceptionMatches(TypeError)
    PyErr_Clear()
    if none:
        raise TypeError(f"{name} is a {type(source).__name__}, which has no buffer")
    raise BufferError(f"{name} must be {'writable and ' if writable else ''}C-contiguous memory")
