import errno
import hashlib
import io
import os
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlt.errors import StoreError, StoreFullError, TaskError
from smlt.io.keys import blob_key
from smlt.worker.data_iterator import Data
from smlt.worker.local_cache import LocalCache
from smlt.worker.range_array import RangeArray


class Store:
    """Objects in a dict; counts what is fetched."""

    def __init__(self, files):
        self.objects = {}
        self.manifest = {}
        self.requests = []
        self._lock = threading.Lock()
        for name, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            self.objects[blob_key(sha256)] = content
            self.manifest[name] = {"sha256": sha256, "size": len(content)}

    def fetch(self, key, start, length):
        with self._lock:
            self.requests.append((key, start, length))
        return self.objects[key][start : start + length]

    @property
    def fetched(self):
        return sum(length for _, _, length in self.requests)

    def data(self, cache_dir, **options):
        return Data.stored(
            self.manifest,
            fetch=self.fetch,
            local_path=lambda key: None,
            cache_dir=cache_dir,
            **options,
        )


def npy(array, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), version=version)
    return stream.getvalue()


def npz(save, **arrays):
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


@pytest.fixture
def images():
    # 40 bytes a row: 6,553 rows to a block of 256 KB, eight blocks.
    return np.arange(50_000 * 10, dtype=np.float32).reshape(50_000, 2, 5)


KEYS = [
    3,
    -1,
    np.int64(7),
    slice(None),
    slice(10, 7000, 3),
    slice(6000, 10, -7),
    slice(20, 20),
    [5, 1, 49_999, -2, 5],
    np.array([[1, 2], [30_000, 4]]),
    [],
    np.arange(50_000) % 999 == 0,
    (3, 1),
    (slice(0, 3), 1, slice(1, 3)),
    (slice(0, 4), [0, 1], [1, 2]),
    ([4, 5], [0, 1]),
    ([4, 5], slice(None), [1, 2]),
    (3, slice(None), [1, 2]),
    (Ellipsis, 0),
    (None, slice(0, 2)),
    (2, Ellipsis),
    (slice(0, 2), None),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_range_read_array_is_indexed_as_numpy_does(tmp_path, images, key):
    array = Store({"x.npy": npy(images)}).data(tmp_path)["x.npy"]
    assert isinstance(array, RangeArray)
    got, wanted = array[key], images[key]
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert np.array_equal(got, wanted)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_rows_of_any_array_come_back(tmp_path_factory, data):
    shape = data.draw(st.tuples(st.integers(1, 400), st.integers(1, 3), st.integers(1, 9000)))
    array = np.random.default_rng(0).integers(0, 255, shape[:2], dtype=np.uint8)
    array = np.broadcast_to(array[..., None], shape).copy()
    got = Store({"x.npy": npy(array)}).data(tmp_path_factory.mktemp("cache"))["x.npy"]
    rows = data.draw(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=40))
    assert np.array_equal(got[rows], array[rows])
    start, stop = data.draw(st.integers(-500, 500)), data.draw(st.integers(-500, 500))
    assert np.array_equal(got[start:stop], array[start:stop])


def test_it_behaves_as_an_array(tmp_path, images):
    array = Store({"x.npy": npy(images)}).data(tmp_path)["x.npy"]
    assert (array.shape, array.dtype, array.ndim) == (images.shape, images.dtype, 3)
    assert (len(array), array.size, array.nbytes) == (len(images), images.size, images.nbytes)
    assert np.array_equal(np.asarray(array), images)
    assert np.asarray(array, dtype=np.float64).dtype == np.float64
    assert np.array_equal(array * 2 + 1, images * 2 + 1)
    assert np.array_equal(-array, -images)
    assert np.array_equal(array > 3, images > 3)
    assert np.mean(array) == images.mean()
    assert array.astype(np.int64).sum() == images.astype(np.int64).sum()
    assert all(np.array_equal(a, b) for a, b in zip(array, images, strict=True))
    assert not hasattr(array, "no_such_method")


@pytest.mark.parametrize("key", [50_000, -50_001, [0, 50_000], 1.5, "a", [0.5], np.ones(3, bool)])
def test_a_row_that_is_not_there_is_an_index_error(tmp_path, images, key):
    array = Store({"x.npy": npy(images)}).data(tmp_path)["x.npy"]
    with pytest.raises(IndexError):
        array[key]


def test_only_the_blocks_that_are_used_are_fetched(tmp_path, images):
    store = Store({"x.npy": npy(images)})
    array = store.data(tmp_path)["x.npy"]
    store.requests.clear()
    assert np.array_equal(array[7000:7064], images[7000:7064])
    assert np.array_equal(array[9000], images[9000])
    assert len(store.requests) == 1
    assert store.fetched <= 256 << 10


def test_neighbouring_blocks_come_in_one_request_and_others_at_once(tmp_path, images):
    store = Store({"x.npy": npy(images)})
    array = store.data(tmp_path)["x.npy"]
    store.requests.clear()
    assert np.array_equal(array[:], images)
    assert len(store.requests) == 1
    array = store.data(tmp_path / "other")["x.npy"]
    store.requests.clear()
    assert np.array_equal(array[[0, 1, 14_000, 49_999]], images[[0, 1, 14_000, 49_999]])
    assert len(store.requests) == 3


def test_a_later_invocation_uses_what_was_fetched(tmp_path, images):
    store = Store({"x.npy": npy(images)})
    store.data(tmp_path)["x.npy"][:]
    store.requests.clear()
    assert np.array_equal(store.data(tmp_path)["x.npy"][40_000], images[40_000])
    assert store.fetched <= 64 << 10


def test_the_cache_stays_within_its_limit_and_rows_stay_right(tmp_path, images):
    store = Store({"x.npy": npy(images)})
    limit = 600 << 10
    array = store.data(tmp_path, cache_bytes=limit)["x.npy"]
    rows = np.random.default_rng(0).integers(0, 50_000, 40)
    for row in rows:
        assert np.array_equal(array[row], images[row])
    assert np.array_equal(array[rows], images[rows])
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= limit


def test_threads_that_crowd_each_other_out_read_the_right_rows(tmp_path, images):
    array = Store({"x.npy": npy(images)}).data(tmp_path, cache_bytes=300 << 10)["x.npy"]
    wrong = []

    def read(seed):
        rows = np.random.default_rng(seed).integers(0, 50_000, 60)
        wrong.extend(row for row in rows if not np.array_equal(array[row], images[row]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


ARRAYS = {
    "one_row": np.arange(5.0)[None],
    "vector": np.arange(100, dtype=">i4"),
    "scalar": np.float64(3),
    "empty": np.empty((0, 3), np.int8),
    "no_columns": np.empty((4, 0)),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "text": np.array(["one", "two"]),
    "fields": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "long_rows": np.arange(2 * 300_000, dtype=np.int32).reshape(2, -1),
}


@pytest.mark.parametrize("where", ["local", "stored", "mapped"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_every_array_reads_as_it_was_saved(tmp_path, kind, where):
    array = ARRAYS[kind]
    name = "deep/x.npy"
    content = npy(array)
    store = Store({name: content})
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_bytes(content)
    data = {
        "local": lambda: Data.local(tmp_path),
        "stored": lambda: store.data(tmp_path / "cache"),
        "mapped": lambda: Data.stored(
            store.manifest,
            fetch=store.fetch,
            local_path=lambda key: tmp_path / name,
            cache_dir=tmp_path / "cache",
        ),
    }[where]()
    got = data[name]
    assert got.shape == array.shape
    assert got.dtype == array.dtype
    assert np.array_equal(np.asarray(got), array)
    if where != "stored" and array.size:
        assert isinstance(got, np.memmap)
        assert not got.flags.writeable


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header_is_read(tmp_path, version):
    array = np.arange(10.0)
    store = Store({"x.npy": npy(array, version)})
    assert np.array_equal(np.asarray(store.data(tmp_path)["x.npy"]), array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("where", ["local", "stored"])
def test_arrays_of_an_archive_are_read_by_name(tmp_path, images, save, where):
    content = npz(save, x=images, y=np.arange(3))
    store = Store({"train.npz": content})
    (tmp_path / "train.npz").write_bytes(content)
    data = Data.local(tmp_path) if where == "local" else store.data(tmp_path / "cache")
    store.requests.clear()
    assert np.array_equal(data["train.npz"]["x"][7], images[7])
    assert np.array_equal(np.asarray(data["train.npz/y"]), [0, 1, 2])
    assert list(data["train.npz"]) == ["x", "y"]
    if save is np.savez and where == "stored":
        assert store.fetched < images.nbytes / 2
    with pytest.raises(TaskError, match=r"there is no 'z' in train\.npz; it holds x, y"):
        data["train.npz/z"]


def test_a_missing_name_says_what_is_there(tmp_path):
    data = Store({"train_x.npy": b"", "train_y.npy": b"", "notes.txt": b"hello"}).data(tmp_path)
    with pytest.raises(TaskError) as error:
        data["train_x"]
    assert str(error.value) == (
        "there is no 'train_x' in the data, which holds notes.txt, train_x.npy, train_y.npy; "
        "did you mean 'train_x.npy'?"
    )
    with pytest.raises(TaskError, match="there is no 'test'"):
        data.path("test")
    with pytest.raises(TaskError, match=r"data.path\('notes.txt'\)"):
        data["notes.txt"]


def objects_array():
    return npy(np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", objects_array, "Python objects, which are not unpickled"),
        ("x.npy", lambda: npy(np.arange(100.0))[:-8], "cut short"),
        ("x.npy", lambda: b"not an array", "cannot be read as NumPy data"),
        ("x.npy", lambda: b"", "cannot be read as NumPy data"),
        ("x.npz", lambda: b"not an archive", "cannot be read as NumPy data"),
        ("x.npz", lambda: b"", "cannot be read as NumPy data"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, name, content, message):
    with pytest.raises(TaskError, match=message):
        Store({name: content()}).data(tmp_path)[name]


def test_what_is_no_array_in_an_archive_is_refused(tmp_path):
    content = npz(np.savez, bad=np.array([{}], dtype=object))
    with pytest.raises(TaskError, match=r"bad in x\.npz cannot be read as an array"):
        Store({"x.npz": content}).data(tmp_path)["x.npz/bad"]


def test_names_can_be_listed_and_tested():
    data = Data({"b.png": None, "a/c.png": None, "d.txt": None}, None, None)
    assert data.files("*.png") == ["a/c.png", "b.png"]
    assert data.files() == list(data) == ["a/c.png", "b.png", "d.txt"]
    assert "b.png" in data
    assert "./a/c.png" in data
    assert "a" not in data
    assert len(data) == 3


@pytest.mark.parametrize("mapped", [True, False])
def test_files_and_folders_are_brought_under_their_own_names(tmp_path, mapped):
    store = Store({"images/0.png": b"zero", "images/deep/1.png": b"one", "labels.csv": b"0,1"})
    blobs = {key: tmp_path / key.replace("/", "-") for key in store.objects}
    for key, path in blobs.items():
        path.write_bytes(store.objects[key])
    data = Data.stored(
        store.manifest,
        fetch=store.fetch,
        local_path=blobs.get if mapped else lambda key: None,
        cache_dir=tmp_path / "cache",
    )
    path = data.path("images/0.png")
    assert path.name == "0.png"
    assert path.read_bytes() == b"zero"
    folder = data.path("images")
    assert (folder / "deep" / "1.png").read_bytes() == b"one"
    assert (data.path("") / "labels.csv").read_bytes() == b"0,1"
    assert bool(store.requests) != mapped


def test_a_damaged_file_is_not_handed_out(tmp_path):
    store = Store({"a.bin": b"x" * 100})
    ((key, _),) = store.objects.items()
    store.objects[key] = b"y" * 100
    with pytest.raises(StoreError, match=r"a\.bin is damaged in the store"):
        store.data(tmp_path).path("a.bin")
    store.objects[key] = b"x" * 50
    with pytest.raises(StoreError, match="50 came"):
        store.data(tmp_path).path("a.bin")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_stores_error_reaches_the_caller(tmp_path, images):
    store = Store({"x.npy": npy(images)})
    array = store.data(tmp_path)["x.npy"]

    def broken(key, start, length):
        raise StoreError("the store is gone")

    array._file._fetch = broken
    with pytest.raises(StoreError, match="gone"):
        array[[0, 20_000, 40_000]]


def test_files_make_room_for_later_ones(tmp_path):
    files = {f"{i}.bin": os.urandom(1000) for i in range(10)}
    data = Store(files).data(tmp_path, cache_bytes=3500)
    for name, content in files.items():
        assert data.path(name).read_bytes() == content
    assert data.path("0.bin").read_bytes() == files["0.bin"]
    kept = sum(p.stat().st_size for p in (tmp_path / "files").iterdir())
    assert kept <= 3500
    with pytest.raises(StoreFullError, match="one file at a time"):
        data.path("")


def test_a_full_disk_says_so(tmp_path):
    def chunks():
        yield b"first"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreFullError, match="ephemeral storage"):
        LocalCache(tmp_path, 1000).add("x", chunks())
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_written_says_so(tmp_path, images):
    (tmp_path / "file").write_text("in the way")
    array = Store({"x.npy": npy(images)}).data(tmp_path / "file" / "cache")["x.npy"]
    with pytest.raises(StoreError, match="cannot be kept in"):
        array[0]


def test_a_cache_that_was_emptied_is_filled_again(tmp_path, images):
    array = Store({"x.npy": npy(images)}).data(tmp_path)["x.npy"]
    assert np.array_equal(array[3], images[3])
    shutil.rmtree(tmp_path / "parts")
    assert np.array_equal(array[3], images[3])


def test_a_local_folder_that_is_missing_is_refused(tmp_path):
    with pytest.raises(TaskError, match="there is no data folder"):
        Data.local(tmp_path / "none")


def test_a_local_path_is_the_file_itself(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    assert Data.local(tmp_path).path("a.txt") == (tmp_path / "a.txt").resolve()
