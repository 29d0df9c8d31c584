"""Results in order, few under way, nothing left running."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt.aggregation.window import in_order


@given(st.permutations(range(9)), st.integers(1, 10))
def test_results_come_in_order_whatever_ends_first(delays, window):
    under_way, most = 0, 0

    async def start(number):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(delays[number]):
            await asyncio.sleep(0)
        under_way -= 1
        return number

    async def run():
        starts = [lambda number=number: start(number) for number in range(9)]
        return [number async for number in in_order(starts, window)]

    assert asyncio.run(run()) == list(range(9))
    assert most <= window


def test_nothing_is_left_under_way_when_one_fails():
    ended = []

    async def start(number):
        if number == 1:
            raise LookupError(number)
        try:
            await asyncio.sleep(number and 60)
        finally:
            await asyncio.sleep(0)  # to end takes a moment, as closing a connection does
            ended.append(number)

    async def consume():
        async with aclosing(in_order([lambda n=n: start(n) for n in range(5)], 3)) as results:
            async for _ in results:
                pass

    async def run():
        with pytest.raises(LookupError):
            await consume()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert sorted(ended) == [0, 2]

    asyncio.run(run())
