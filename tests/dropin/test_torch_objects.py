"""Objects from other ranks: plain ones arrive whole, and none has anything run."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch

from smlt.aggregation.torch_objects import load
from smlt.errors import UserError

PLAIN = [
    None, True, 2**100, -1.5, 1 + 2j, "text", b"bytes", bytearray(b"more"),
    (1, [2, {"three": {4}}], frozenset({5})), range(3), slice(1, None),
    collections.OrderedDict(b=1, a=2), collections.Counter("abba"),
    collections.defaultdict(list, a=[1]), collections.deque([1, 2], 5),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(3),
    np.float32(1.5), np.dtype("i2"), torch.bfloat16, torch.Size([2, 3]), torch.device("cpu"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_arrive_as_they_were(value):
    arrived = load(pickle.dumps(value))
    assert arrived == value
    assert type(arrived) is type(value)


def test_arrays_and_tensors_arrive_whole():
    array = np.arange(12, dtype=np.int16).reshape(3, 4).T
    tensor = torch.randn(4, 3).to(torch.bfloat16).t()
    parameter = torch.nn.Parameter(torch.ones(2, requires_grad=True))
    sent = {"array": array, "words": np.array(["a", "bc"]), "tensor": tensor, "p": parameter}
    arrived = load(pickle.dumps(sent))
    np.testing.assert_array_equal(arrived["array"], array)
    np.testing.assert_array_equal(arrived["words"], sent["words"])
    assert torch.equal(arrived["tensor"], tensor)
    assert isinstance(arrived["p"], torch.nn.Parameter)


class Reduced:
    """Has a pickle call whatever function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def hostile(target):
    """Pickles that would make a file, by their ways."""
    command = f"open({str(target)!r}, 'w')"
    yield pickle.dumps(Reduced(eval, (command,)))
    yield pickle.dumps(Reduced(exec, (command,)))
    yield pickle.dumps(Reduced(os.system, (f"touch {target}",)))
    yield pickle.dumps(Reduced(subprocess.Popen, (["touch", str(target)],)))
    yield pickle.dumps({"deep": [Reduced(open, (str(target), "w"))]})
    # By way of what is known: a storage within a tensor is a file of torch's own.
    inner = pickle.dumps(Reduced(eval, (command,)), 2)
    yield pickle.dumps(Reduced(torch.storage._load_from_bytes, (inner,)))
    yield b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n."
    yield b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93."


def test_nothing_that_a_sender_names_is_run(tmp_path):
    target = tmp_path / "made"
    for number, data in enumerate(hostile(target)):
        with pytest.raises(UserError):
            load(data)
        assert not target.exists(), number


def test_what_a_pickle_does_to_a_function_stays_in_the_pickle():
    named = b"ctorch._utils\n_rebuild_tensor_v2\n"
    load(named + b"}S'mark'\nI1\nsb.")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "mark")


class Config(dict):
    pass


def test_a_class_of_the_user_s_is_allowed_as_torch_allows_it():
    with pytest.raises(UserError, match=r"Config, and to rebuild it might run .*add_safe_globals"):
        load(pickle.dumps(Config(a=1)))
    with torch.serialization.safe_globals([Config]):
        assert load(pickle.dumps(Config(a=1))) == {"a": 1}


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1, 2])[:-3]])
def test_what_is_no_object_is_refused_in_a_sentence(data):
    with pytest.raises(UserError, match="cannot be read"):
        load(data)
