"""Tensors to frames and back, and frames into their sum, on real gradients."""

import ctypes
import importlib
import io
import pickle
from functools import partial

import lz4.frame
import numpy as np
import pytest
import safetensors.numpy
import torch

from benchmarks.gradients import gradient, top
from benchmarks.limits import read_limit
from smlt._core import codec

MB = 1024 * 1024

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4


def recycle_memory(wanted):
    """Tell glibc to keep freed memory, or to take each large block fresh from the kernel.

    By default that depends on what the process freed before, and it decides the comparison: the
    page faults of 50 MB take longer than the copy. Elsewhere malloc is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 1 << 30 if wanted else 128 << 10)
        mallopt(M_MMAP_THRESHOLD, 128 << 10)
        mallopt(M_MMAP_MAX, 0 if wanted else 65536)
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def fresh_memory():
    recycle_memory(False)


def optional(module):
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def data(name):
    if name == "dense 50 MB":
        return np.random.default_rng(0).standard_normal(50 * MB // 4, dtype=np.float32)
    if name.startswith("top "):
        return top(gradient("resnet18"), float(name.split()[1]) / 100)
    return gradient(name)


def frame_room(array):
    """Return memory for a frame, written once so that its pages are there."""
    room = np.empty(codec.frame_bound(array.nbytes), np.uint8)
    room.fill(0)
    return room


def copy_limit(array):
    target = np.empty_like(array)
    return lambda: np.copyto(target, array)


def torch_save(array):
    tensor = torch.from_numpy(array)
    return lambda: torch.save(tensor, io.BytesIO())


def torch_load(stored):
    def load():
        stored.seek(0)
        return torch.load(stored)

    return load


def compressors(array):
    """Return name -> (compress, decompress), one thread each."""
    raw = memoryview(array).cast("B")
    found = {"lz4_frame": (lambda: lz4.frame.compress(raw), lz4.frame.decompress)}
    if zstd := optional("zstandard"):
        packer, unpacker = zstd.ZstdCompressor(level=1), zstd.ZstdDecompressor()
        found["zstd_1"] = (lambda: packer.compress(raw), unpacker.decompress)
    if blosc2 := optional("blosc2"):
        blosc2.set_nthreads(1)  # as many as there are cores, otherwise
        options = {"codec": blosc2.Codec.LZ4, "typesize": array.itemsize, "nthreads": 1}
        found["blosc2_lz4"] = (
            lambda: blosc2.compress2(array, **options),
            lambda packed: blosc2.decompress2(packed, nthreads=1),
        )
    return found


def packing(array):
    return {name: pack for name, (pack, _) in compressors(array).items()}


def unpacking(array):
    return {name: partial(unpack, pack()) for name, (pack, unpack) in compressors(array).items()}


DENSE = ["dense 50 MB", "resnet18"]
ALL = ["dense 50 MB", "resnet18", "transformer", "embedding", "top 5 %", "top 1 %"]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("memory", ["reused", "fresh", "recycled"])
def bench_encode_contiguous(measure, name, memory):
    """Fresh: everyone's result is new memory. Reused: ours goes where the last one went.

    Recycled: malloc returns what was just freed, so that nobody pays for page faults.
    """
    array = data(name)
    recycle_memory(memory == "recycled")
    room = frame_room(array)
    size = codec.frame_bound(array.nbytes)

    def fresh():
        codec.encode_into(array, np.empty(size, np.uint8))

    measure(
        {
            "smlt": (lambda: codec.encode_into(array, room)) if memory == "reused" else fresh,
            # One contiguous frame is at least a copy, into memory of the same kind.
            "limit": copy_limit(array) if memory == "reused" else array.copy,
            "pickle_5": lambda: pickle.dumps(array, 5),
            "torch_save": torch_save(array),
            "safetensors": lambda: safetensors.numpy.save({"gradient": array}),
            **packing(array),
        },
        array.nbytes,
        {"pickle_5": {"fresh": 2.5, "reused": 4.0, "recycled": 0.0}[memory]},
    )


@pytest.mark.parametrize("checksum", [False, True], ids=["unchecked", "checked"])
def bench_encode_to_buffers(measure, benchmark, checksum):
    """What a scatter-gather send needs: nothing is copied, but the checksum reads everything."""
    array = data("dense 50 MB")
    measure(
        {
            "smlt": lambda: codec.encode(array, checksum=checksum),
            "limit": read_limit([array]),
            "pickle_5": lambda: pickle.dumps(array, 5),
            "pickle_5_out_of_band": lambda: pickle.dumps(array, 5, buffer_callback=id),
        },
        array.nbytes,
    )
    benchmark.extra_info["target_milliseconds"] = 1.0


@pytest.mark.parametrize("name", ["transformer", "embedding", "top 5 %", "top 1 %"])
def bench_encode_sparse(measure, benchmark, name):
    array = data(name)
    room = frame_room(array)
    packers = packing(array)
    measure(
        {
            "smlt": lambda: codec.encode_into(array, room),
            # To find the zeros, all of it must be read.
            "limit": read_limit([array]),
            "pickle_5": lambda: pickle.dumps(array, 5),
            "torch_save": torch_save(array),
            "safetensors": lambda: safetensors.numpy.save({"gradient": array}),
            **packers,
        },
        array.nbytes,
        {"lz4_frame": 2.0} if name.startswith("top") else {},
    )
    sizes = {other: len(pack()) for other, pack in packers.items()}
    sizes["smlt"] = codec.encode_into(array, room)
    benchmark.extra_info["compression"] = {k: array.nbytes / size for k, size in sizes.items()}


@pytest.mark.parametrize("name", ALL)
def bench_decode(measure, name):
    array = data(name)
    frame = b"".join(codec.encode(array))
    out = np.zeros_like(array)
    pickled, saved = pickle.dumps(array, 5), safetensors.numpy.save({"gradient": array})
    stored = io.BytesIO()
    torch.save(torch.from_numpy(array), stored)
    measure(
        {
            "smlt": lambda: codec.decode_into(frame, out),
            "copy": copy_limit(array),
            "pickle_5": lambda: pickle.loads(pickled),
            "torch_save": torch_load(stored),
            "safetensors": lambda: safetensors.numpy.load(saved),
            **unpacking(array),
        },
        array.nbytes,
    )


@pytest.mark.parametrize("wire_dtype", ["fp16", "bf16"])
def bench_encode_lossy_with_error_feedback(measure, wire_dtype):
    array = gradient("resnet18")
    residual = np.zeros_like(array)
    tensor, loss = torch.from_numpy(array), torch.zeros(array.size)
    kind = torch.float16 if wire_dtype == "fp16" else torch.bfloat16

    def torch_cast():
        loss.add_(tensor)
        sent = loss.to(kind)
        loss.sub_(sent.float())
        pickle.dumps(sent, 5)

    measure(
        {
            "smlt": lambda: codec.encode(array, wire_dtype=wire_dtype, residual=residual),
            "torch_then_pickle": torch_cast,
        },
        array.nbytes,
    )


def bench_checksum(measure):
    """What certainty costs: XXH3 over data in DRAM, beside reading it."""
    array = data("dense 50 MB")
    xxhash = importlib.import_module("xxhash")
    measure(
        {
            "smlt": lambda: codec.checksum(array),
            "limit": read_limit([array]),
            "xxhash_package": lambda: xxhash.xxh3_64_intdigest(array),
            "zlib_crc32": lambda: importlib.import_module("zlib").crc32(array),
        },
        array.nbytes,
    )


def worker_gradients(name, n):
    """Return n workers' shards of 4 MB: rolled copies, so that zeros fall on different places."""
    if name == "top 5 %":
        whole = data(name)
    elif name == "embedding":
        whole = gradient("embedding")
    else:
        whole = gradient("resnet18")
    rows = 128  # floats in a row of the embedding
    return [np.ascontiguousarray(np.roll(whole, 97 * rows * i)[:MB]) for i in range(n)]


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("name", ["dense", "embedding", "top 5 %"])
@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
def bench_decode_reduce(measure, name, n, checked):
    """Both sides verify their payload's checksum (LZ4's frames carry XXH32), or neither does."""
    arrays = worker_gradients(name, n)
    frames = [b"".join(codec.encode(array)) for array in arrays]
    packed = [
        lz4.frame.compress(memoryview(array).cast("B"), content_checksum=checked)
        for array in arrays
    ]
    pickles = [pickle.dumps(array, 5) for array in arrays]
    out, other = np.zeros((2, MB), np.float32)

    def lz4_then_add():
        """Each is decoded and added before the next: the better of the two obvious ways."""
        other.fill(0.0)
        for block in packed:
            np.add(other, np.frombuffer(lz4.frame.decompress(block), np.float32), out=other)
        np.multiply(other, 1 / n, out=other)

    measure(
        {
            "smlt": lambda: codec.decode_reduce(frames, out, scale=1 / n, verify=checked),
            "limit": read_limit(arrays),
            "lz4_then_np_add": lz4_then_add,
            "pickle_stack_mean": lambda: np.mean(
                np.stack([pickle.loads(block) for block in pickles]), axis=0
            ),
        },
        n * arrays[0].nbytes,
        {"lz4_then_np_add": {"dense": 3.0, "embedding": 2.0}.get(name, 0.0)},
    )
