"""The doors' view of other people's memory: contiguous bytes, checked once, released for sure."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches

cimport numpy as cnp


cdef extern from *:
    """
    /* Cython would first release whatever stands in the uninitialised field. */
    static inline void hold_object(Py_buffer *view, PyObject *source) {
        view->obj = Py_NewRef(source);
    }
    """
    void hold_object(Py_buffer* view, object source) noexcept


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


cdef inline const char* array_format(cnp.ndarray array) noexcept:
    """Return the struct format of a plain array's items, NULL for other types."""
    cdef int kind = cnp.PyArray_TYPE(array)
    if kind == cnp.NPY_FLOAT32:
        return "f"
    if kind == cnp.NPY_FLOAT16:
        return "e"
    if kind == cnp.NPY_UINT16:
        return "H"
    if kind == cnp.NPY_UINT8:
        return "B"
    return NULL


cdef inline bint acquire_array(object source, Py_buffer* view, bint writable) noexcept:
    """Fill a view from a NumPy array's own fields: a tenth of the time of asking for a buffer."""
    if not cnp.PyArray_CheckExact(source):
        return False
    cdef cnp.ndarray array = <cnp.ndarray>source
    cdef const char* form = array_format(array)
    if form == NULL or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        return False
    if not cnp.PyArray_ISNOTSWAPPED(array) or (writable and not cnp.PyArray_ISWRITEABLE(array)):
        return False
    view.buf = cnp.PyArray_DATA(array)
    view.len = cnp.PyArray_NBYTES(array)
    view.itemsize = cnp.PyArray_ITEMSIZE(array)
    view.format = <char*>form
    view.internal = NULL
    hold_object(view, source)
    return True


cdef inline int acquire(object source, Py_buffer* view, bint writable, str name) except -1:
    """Get a C-contiguous buffer; the caller must release it."""
    cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
    if acquire_array(source, view, writable) or get_buffer(source, view, flags) == 0:
        return 0
    cdef bint none = PyErr_ExceptionMatches(TypeError)
    PyErr_Clear()
    if none:
        raise TypeError(f"{name} is a {type(source).__name__}, which has no buffer")
    raise BufferError(f"{name} must be {'writable and ' if writable else ''}C-contiguous memory")
