"""Objects for other ranks: plain ones arrive as they were, and nothing that is sent is run."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smlt.aggregation.torch_objects import dump, load
from smlt.errors import UserError

PLAIN = [
    None, True, 2**100, -(2**70), 1.5, 1 + 2j, "text", "\ud800", b"bytes",
    (1, [2, {"three": {4}}], frozenset({5})), {(1, 2): "key", 3: None}, range(3), slice(1, None),
    collections.OrderedDict(b=1, a=2), collections.Counter("abba"),
    collections.defaultdict(list, a=[1]), collections.deque([1, 2], 5),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.date(2026, 1, 2),
    datetime.time(3, 4), datetime.timedelta(3, 4, 5), np.float32(1.5), np.float64(2.5),
    np.bool_(True), np.int64(3), np.datetime64("2026-01-02"), np.dtype("i2"), torch.bfloat16,
    torch.Size([2, 3]), torch.device("cpu"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_arrive_as_they_were(value):
    arrived = load(dump(value))
    assert arrived == value
    assert type(arrived) is type(value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner)
        | st.lists(inner).map(tuple)
    ),
)


@given(VALUES)
def test_whatever_is_built_of_them_arrives(value):
    assert load(dump(value)) == value


def test_arrays_and_tensors_arrive_whole():
    for array in (
        np.arange(12, dtype=np.int16).reshape(3, 4).T,
        np.array([b"a", b"bc"]),
        np.zeros((0, 3)),
        np.array(1.5),
        np.array([1, 2], ">f4"),
        np.arange(6)[::-2],
    ):
        arrived = load(dump({"of": [array]}))["of"][0]
        np.testing.assert_array_equal(arrived, array)
        assert arrived.dtype == array.dtype
        assert arrived.flags.writeable
    for tensor in (
        torch.randn(4, 3).to(torch.bfloat16).t(),
        torch.tensor(3),
        torch.zeros(0, 2, dtype=torch.bool),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.ones(2, requires_grad=True),
    ):
        arrived = load(dump((tensor,)))[0]
        assert torch.equal(arrived, tensor)
        assert (arrived.dtype, arrived.requires_grad) == (tensor.dtype, tensor.requires_grad)
    parameter = load(dump(torch.nn.Parameter(torch.ones(2), requires_grad=False)))
    assert isinstance(parameter, torch.nn.Parameter)
    assert not parameter.requires_grad


@dataclasses.dataclass
class Config:
    rate: float = 0.1


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (Config(), "Config cannot be sent to other ranks as it is: .* &pickle=true"),
        ({"deep": [print]}, "builtin_function_or_method cannot be sent"),
        (np.array([None]), "object cannot be sent: numbers, bytes and dates can"),
        (np.zeros(2, [("a", "i4")]), "cannot be sent: numbers, bytes and dates can"),
        (np.array(["text"]), "cannot be sent: numbers, bytes and dates can"),
        (torch.eye(2).to_sparse(), "sparse_coo tensor .* cannot be sent"),
        (collections.defaultdict(lambda: 1), "cannot be sent"),
    ],
)
def test_what_only_a_pickle_could_hold_is_refused_where_it_is_sent(value, sentence):
    with pytest.raises(UserError, match=sentence):
        dump(value)


def test_what_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(UserError):
        dump(value)
    deep = ()
    for _ in range(100):
        deep = (deep,)
    with pytest.raises(UserError, match="too deep"):
        dump(deep)


class Evil:
    def __reduce__(self):
        return eval, ("1 / 0",)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", pickle.dumps(Evil()), dump([1, 2])[:-1], b"\x01\x02"]
)
def test_what_is_no_object_is_refused_in_a_sentence(data):
    with pytest.raises(UserError, match="cannot be read"):
        load(data)


@given(data=st.data(), value=st.sampled_from([*PLAIN, np.arange(6.0), torch.arange(6)]))
def test_damaged_objects_are_refused_or_values(data, value):
    """Whatever a sender sends: no crash, no other error, and never more memory than that."""
    sent = bytearray(dump([value, {"a": value}]))
    for _ in range(data.draw(st.integers(1, 4))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):
        load(bytes(sent))
