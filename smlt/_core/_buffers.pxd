"""The doors' view of other people's memory: contiguous bytes, checked once, released for sure."""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyObject_GetBuffer,
)


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
    cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
    try:
        PyObject_GetBuffer(source, view, flags)
    except TypeError:
        raise TypeError(f"{name} is a {type(source).__name__}, which has no buffer") from None
    except (BufferError, ValueError):
        raise BufferError(
            f"{name} must be {'writable and ' if writable else ''}C-contiguous memory"
        ) from None
    return 0

