"""The compiled kernels and their NumPy twins give one job one digest."""

from jobs.harness import SMALL


def test_kernels_and_twins_give_one_digest(place):
    # Many small shards, more ranks than owners, and a last shard that is shorter.
    options = ("--workers", "3", "--aggregators", "2", "--shard-mb", "0.0004", "--steps", "10")
    options += ("--param", "width=1000", "--json", "--quiet")
    compiled = place.train(SMALL, *options).check(0)
    twins = place.train(SMALL, *options, SMLT_PURE_PYTHON="1").check(0)
    assert compiled.summary["weights_digest"] == twins.summary["weights_digest"]
