"""What a call is given: memory, shards and their weights, held until it returns."""

cimport cython
cimport numpy as cnp
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
)
from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from libc.stdint cimport uint8_t, uintptr_t
from libc.stdlib cimport free, malloc

from smlt._core._kernels cimport BF16, DOUBLE, FOLD, FP16, FP32, MAX_THREADS, TREE

from smlt._core import arguments


DTYPES = ("fp32", "fp16", "bf16")
ORDERS = ("fold", "tree", "fp64")

cnp.import_array()


# ---- plain arguments: the usual types here, all others with a sentence in `arguments` ----


cdef int thread_count(threads) except -1:
    cdef int overflow = 0
    cdef long asked = 0
    if PyLong_CheckExact(threads):
        asked = PyLong_AsLongAndOverflow(threads, &overflow)
    if 1 <= asked <= MAX_THREADS:
        return asked
    return arguments.threads(threads)


cdef double number(str name, value) except? 0.0:
    if isinstance(value, float):
        return <double>value
    return arguments.number(name, value)


cdef int dtype_code(dtype) except -1:
    if isinstance(dtype, str):
        if <str>dtype == "fp32":
            return FP32
        if <str>dtype == "fp16":
            return FP16
        if <str>dtype == "bf16":
            return BF16
    arguments.choice("dtype", dtype, DTYPES)
    return -1


cdef int order_code(order) except -1:
    if isinstance(order, str):
        if <str>order == "tree":
            return TREE
        if <str>order == "fold":
            return FOLD
        if <str>order == "fp64":
            return DOUBLE
    arguments.choice("order", order, ORDERS)
    return -1


# ---- memory ----


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


cdef char _item_format(Py_buffer* view) noexcept:
    """Return the struct character of a view's items, '*' where it is none we can read."""
    cdef const char* text = <const char*>view.format
    if text == NULL:
        return c"B"
    if text[0] == c"<" or text[0] == c"=" or text[0] == c"@":
        text += 1
    if text[0] == 0 or text[1] != 0:
        return c"*" if text[0] != 0 else c"B"
    return text[0]


cdef const char* _array_format(cnp.ndarray array) noexcept:
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


cdef bint _acquire_array(object source, Py_buffer* view, bint writable) noexcept:
    """Fill a view from a NumPy array's own fields: a tenth of the time of asking for a buffer."""
    if not cnp.PyArray_CheckExact(source):
        return False
    cdef cnp.ndarray array = <cnp.ndarray>source
    cdef const char* form = _array_format(array)
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


cdef int _acquire(object source, Py_buffer* view, bint writable, str name) except -1:
    """Get a C-contiguous buffer; the caller must release it."""
    cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0)
    if _acquire_array(source, view, writable) or get_buffer(source, view, flags) == 0:
        return 0
    cdef bint none = PyErr_ExceptionMatches(TypeError)
    PyErr_Clear()
    if none:
        raise TypeError(f"{name} is {arguments.kind(source)}, which has no buffer")
    raise BufferError(f"{name} must be {'writable and ' if writable else ''}C-contiguous memory")


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Memory:
    """A contiguous buffer and the format of its items."""

    def __cinit__(self, source, str name, bint writable):
        _acquire(source, &self.view, writable, name)
        self.held = True
        self.name = name
        self.form = _item_format(&self.view)

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef Memory writable_floats(target, str name, Py_ssize_t count):
    """Return a float32 buffer, of `count` elements where that is not negative."""
    cdef Memory memory = Memory(target, name, True)
    if memory.form != c"f":
        raise TypeError(f"{name} must be float32")
    if count >= 0 and memory.view.len != 4 * count:
        raise ValueError(f"{name} has {memory.view.len // 4} elements, not {count}")
    return memory


cdef Memory writable_halves(target, str name):
    cdef Memory memory = Memory(target, name, True)
    if memory.form != c"H" and memory.form != c"e":
        raise TypeError(f"{name} must be uint16 or float16")
    return memory


cdef bint _overlap(const Py_buffer* a, const Py_buffer* b) noexcept:
    cdef uintptr_t x = <uintptr_t>a.buf, y = <uintptr_t>b.buf
    return x < y + <uintptr_t>b.len and y < x + <uintptr_t>a.len


cdef int refuse_overlap(Memory a, Memory b) except -1:
    if _overlap(&a.view, &b.view):
        raise ValueError(f"{a.name} and {b.name} overlap in memory")
    return 0


# ---- shards ----


@cython.final
cdef class Weights:
    """One factor for each of n shards or frames; NULLs where there are none."""

    def __cinit__(self, weights, Py_ssize_t n, str of):
        cdef Py_ssize_t i
        cdef list values
        self.positive = True
        if weights is None:
            return
        values = weights if type(weights) is list else arguments.items("weights", "numbers", weights)
        if len(values) != n:
            arguments.weights(values, n, of)  # raises
        self.wide = <double*>malloc(n * (sizeof(double) + sizeof(float)))
        if self.wide == NULL:
            raise MemoryError()
        self.narrow = <float*>(self.wide + n)
        for i in range(n):
            self.wide[i] = number("a weight", values[i])
            self.narrow[i] = <float>self.wide[i]
            if not 0.0 <= self.narrow[i] <= 1e30:
                self.positive = False

    def __dealloc__(self):
        free(self.wide)


cdef Weights _no_weights = Weights(None, 0, "shards")


@cython.final
@cython.freelist(8)
cdef class Shards:
    """Equal shards of one dtype, which is taken from the first where it is not given."""

    def __cinit__(self, shards, Py_ssize_t items, dtype, weights):
        cdef list sources
        sources = shards if type(shards) is list else arguments.items("shards", "buffers", shards)
        cdef Py_ssize_t i, n = len(sources)
        if n == 0:
            raise ValueError("there is no shard to reduce")
        self.views = <Py_buffer*>malloc(n * (sizeof(Py_buffer) + sizeof(void*)))
        if self.views == NULL:
            raise MemoryError()
        self.pointers = <const uint8_t**>(self.views + n)
        self.count = n
        self.dtype = -1 if dtype is None else dtype_code(dtype)
        for i in range(n):
            _acquire(sources[i], &self.views[i], False, "a shard")
            self.held += 1
            self.check(i, items)
            self.pointers[i] = <const uint8_t*>self.views[i].buf
        self.weights = _no_weights if weights is None else Weights(weights, n, "shards")

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        free(self.views)

    cdef int check(self, Py_ssize_t i, Py_ssize_t items) except -1:
        cdef Py_buffer* view = &self.views[i]
        cdef char form = _item_format(view)
        if self.dtype < 0:
            self.dtype = _inferred(form, view.len, items)
        cdef bint raw = form == c"B" or form == c"b" or form == c"c"
        cdef bint right = (
            form == c"f" if self.dtype == FP32
            else form == c"H" or form == c"e" and self.dtype == FP16
        )
        if not raw and not right:
            raise TypeError(
                f"shard {i} has items of format {chr(form)!r}, {DTYPES[self.dtype]} was expected"
            )
        if view.len != items * (4 if self.dtype == FP32 else 2):
            raise ValueError(
                f"shard {i} has {view.len} bytes, {items} elements of {DTYPES[self.dtype]} were "
                "expected"
            )
        return 0

    cdef int refuse_overlap(self, Memory output, bint may_be_same) except -1:
        cdef Py_ssize_t i
        for i in range(self.count):
            if not _overlap(&self.views[i], &output.view):
                continue
            if may_be_same and self.dtype == FP32 and self.views[i].buf == output.view.buf:
                continue
            raise ValueError(f"shard {i} and {output.name} overlap in memory")
        return 0


cdef int _inferred(char form, Py_ssize_t nbytes, Py_ssize_t items) except -1:
    if form == c"f":
        return FP32
    if form == c"e":
        return FP16
    if form == c"H":
        raise TypeError("uint16 shards may be fp16 or bf16: say which with dtype=")
    if nbytes == 2 * items and items:
        raise TypeError("two bytes an element may be fp16 or bf16: say which with dtype=")
    return FP32
