"""What messages work out of what they carry."""

import pytest

from smlt.messages.worker import PhaseRecord


@pytest.mark.parametrize(
    ("phases", "busy_s"),
    [
        ({"compute": 2.0, "apply": 0.5, "UL-shard": 1.0, "DL-grad": 1.0, "wait": 9.0}, 2.5),
        ({"compute": 0.1, "apply": 0.1, "UL-shard": 3.0, "DL-grad": 1.0}, 3.0),
        ({"compute": 0.1, "UL-shard": 0.0, "DL-grad": 1.5}, 1.5),
        # An owner's work, which others do not have.
        ({"compute": 1.0, "DL-shard": 8.0, "reduce": 4.0, "UL-aggr": 2.0}, 1.0),
        ({}, 0.0),
    ],
)
def test_a_rank_is_busy_with_what_holds_it_up_longest(phases, busy_s):
    assert PhaseRecord(step=1, seconds=10.0, phases=phases).busy_s == busy_s
