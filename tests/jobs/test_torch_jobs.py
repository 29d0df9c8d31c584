"""What only a task in torch can ask for, or get wrong."""

from __future__ import annotations

import pytest

from jobs.harness import TASKS

TORCH = TASKS / "torch_tasks.py"


def test_sparse_embedding_is_densified_with_a_notice(place):
    ended = place.train(f"{TORCH}:Words", "--workers", "1", "--steps", "2", "--json").check(0)
    assert any("sparse" in notice for notice in ended.summary["notices"])
    assert "sparse" in ended.err


def test_iterable_dataset_is_refused(place):
    ended = place.train(f"{TORCH}:Streams", "--workers", "1", "--steps", "2").check(2)
    assert "returned Stream, which cannot be indexed" in ended.sentence
    assert "__len__ and __getitem__" in ended.sentence


@pytest.mark.slow
def test_exception_in_model(place):
    ended = place.train(f"{TORCH}:NoModel", "--workers", "1", "--steps", "2").check(1)
    assert "failed before its first step: RuntimeError: no model today" in ended.sentence
    assert "in model" in ended.err
