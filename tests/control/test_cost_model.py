"""Costs against invoices worked out by hand, to the last digit that is billed."""

import datetime
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt.aggregation.shard_plan import plan_shards
from smlt.control.cost_model import (
    cache_node_cost,
    cache_serverless_cost,
    gb_seconds,
    lambda_cost,
    s3_cost,
)
from smlt.control.prices import read_prices
from smlt.control.step_cost import ParameterStorePrice, StepCost, StepTraffic
from smlt.errors import ConfigError
from smlt.messages.job import ResourcePlan


def test_four_workers_for_a_minute():
    # 4 × 60 s × 1,769/1,024 GB = 414.609375 GB-s; × $0.0000166667 = $0.006910170...
    # 4 requests × $0.0000002 = $0.0000008
    assert gb_seconds(240_000, 1769) == pytest.approx(414.609375, rel=1e-12)
    assert lambda_cost(240_000, 1769, 4) == pytest.approx(0.00691097007, rel=1e-8)


def test_a_billed_month_of_small_functions():
    # AWS's own kind of example: 3,000,000 requests of 120 ms at 1,536 MB:
    # 360,000 s × 1.5 GB = 540,000 GB-s; × $0.0000166667 = $9.000018; requests $0.60
    assert lambda_cost(360_000_000, 1536, 3_000_000) == pytest.approx(9.600018, rel=1e-12)


def test_arm_is_a_fifth_cheaper():
    # 1,000 s × 1 GB × $0.0000133334 = $0.0133334; 1 request $0.0000002
    cost = lambda_cost(1_000_000, 1024, 1, architecture="arm64")
    assert cost == pytest.approx(0.0133336, rel=1e-12)


def test_only_storage_beyond_the_free_half_gigabyte_is_billed():
    # 1,000 s × (10,240 - 512)/1,024 GB = 9,500 GB-s; × $0.0000000309 = $0.00029355
    plain = lambda_cost(1_000_000, 1024, 0)
    assert lambda_cost(1_000_000, 1024, 0, ephemeral_mb=512) == plain
    more = lambda_cost(1_000_000, 1024, 0, ephemeral_mb=10_240)
    assert more - plain == pytest.approx(0.00029355, rel=1e-9)


def test_nothing_billed_costs_nothing():
    assert lambda_cost(0, 1769, 0) == 0


def test_s3_standard_bills_requests_and_storage():
    # 12,000 PUT × $0.005/1,000 = $0.06; 250,000 GET × $0.0004/1,000 = $0.10;
    # bytes within the region are free; 2 GB for half a month × $0.023 = $0.023
    cost = s3_cost(
        "standard", puts=12_000, gets=250_000, uploaded=1e12, downloaded=1e12, gb_months=1
    )
    assert cost == pytest.approx(0.183, rel=1e-12)


def test_the_example_of_the_s3_express_faq():
    # 1,000,000 PUT and 9,000,000 GET of 10 KB, 10 GB-months: $1.10 + $1.13 + $0.27 + $0.03 + $0.05.
    # 10 KB are 10/1,048,576 GB: × 1,000,000 × $0.0032 = $0.0305; × 9,000,000 × $0.0006 = $0.0515
    cost = s3_cost(
        "express",
        puts=1_000_000,
        gets=9_000_000,
        uploaded=10 * 1024 * 1_000_000,
        downloaded=10 * 1024 * 9_000_000,
        gb_months=10,
    )
    assert cost == pytest.approx(1.10 + 1.13 + 0.27 + 0.030517578 + 0.051498413, rel=1e-8)


def test_a_cache_node_is_billed_by_the_begun_hour():
    # Two r7g.large for 61 minutes: 2 nodes × 2 h × $0.1752 = $0.7008
    assert cache_node_cost("cache.r7g.large", 61 * 60, 2) == pytest.approx(0.7008, rel=1e-12)
    assert cache_node_cost("cache.t4g.micro", 3600) == 0.0128


def test_a_serverless_cache_bills_kilobytes_moved_and_gigabytes_held():
    # 30 min at 2 GB: 1 GB-h × $0.084 = $0.084; 50 GB moved = 52,428,800 KB, one ECPU each:
    # 52.4288 × $0.0023 = $0.12058624
    cost = cache_serverless_cost(50 * 2**30, 2 * 2**30, 1800)
    assert cost == pytest.approx(0.20458624, rel=1e-12)
    # An empty one is metered as 0.1 GB: 0.1 × 1 h × $0.084
    assert cache_serverless_cost(0, 0, 3600) == pytest.approx(0.0084, rel=1e-12)


def test_the_traffic_of_a_step_by_counting_frames():
    # 3 workers, 2 shards. Contributions: each shard from the 2 that do not own it: 4 frames, each
    # fetched once. Means: 2 frames, fetched by the 2 others each. Half of 8 MB in every frame.
    # All 3 wait for means, both owners for contributions.
    traffic = StepTraffic.of(3, 8e6, 4e6, aggregators=2)
    assert (traffic.frames, traffic.fetches, traffic.waits) == (6, 8, 5)
    assert (traffic.uploaded, traffic.downloaded) == (6 * 4e6, 8 * 4e6)
    rounded = StepTraffic.of(3, 8e6, 4e6, aggregators=2, wire_dtype="bf16")
    assert (rounded.frames, rounded.fetches) == (6, 8)
    assert (rounded.uploaded, rounded.downloaded) == (6 * 2e6, 8 * 2e6)
    alone = StepTraffic.of(1, 8e6, 4e6)
    assert alone == StepTraffic(frames=0, fetches=0, waits=0, uploaded=0, downloaded=0)


@given(
    workers=st.integers(1, 64),
    elements=st.integers(1, 10**8),
    shard_mb=st.floats(0.1, 64),
    aggregators=st.none() | st.integers(1, 64),
)
def test_there_are_as_many_shards_as_the_ranks_cut(workers, elements, shard_mb, aggregators):
    shard_bytes = int(shard_mb * 2**20)
    plan = plan_shards(
        elements, world_size=workers, shard_bytes=shard_bytes, aggregators=aggregators
    )
    traffic = StepTraffic.of(workers, 4 * elements, shard_bytes, aggregators=aggregators)
    assert traffic.frames == (plan.shards * workers if workers > 1 else 0)


def test_a_step_is_priced_with_its_store():
    # 3 workers × 1 GB for 2 s: 6 GB-s × $0.0000166667 = $0.0001000002
    step = {"prices": read_prices(), "gradient_bytes": 8e6, "shard_bytes": 4e6, "aggregators": 2}
    plan = ResourcePlan(workers=3, memory_mb=1024)
    assert StepCost(**step).per_step(plan, 2.0) == pytest.approx(0.0001000002, rel=1e-9)
    # 6 frames are 12 PUTs; 5 waits of 3 listings each, at the price of PUTs; 8 GETs: 27 × $0.000005
    # + 8 × $0.0000004 = $0.0001382. In 2 s: 3 PUTs and 3 GETs a second by each of 3 workers, 3
    # listings by the client: 24 × $0.000005 + 18 × $0.0000004 = $0.0001272.
    s3 = StepCost(**step, store=ParameterStorePrice(kind="s3"))
    assert s3.per_step(plan, 2.0) == pytest.approx(0.0001000002 + 0.0001382 + 0.0001272, rel=1e-9)
    # One owner has 2 shards of its own, too, but 4 waits; bytes within a region cost nothing.
    one = replace(plan, aggregators=1, wire_dtype="bf16")
    assert s3.moving(one) == pytest.approx((12 + 4 * 3) * 0.000005 + 8 * 0.0000004)
    # 2 s of a node of $0.1752 an hour = $0.0000973333
    node = StepCost(**step, store=ParameterStorePrice(kind="node"))
    assert node.per_step(plan, 2.0) == pytest.approx(0.0001000002 + 0.00009733333, rel=1e-7)
    # 56 MB moved = 54,687.5 KB × $0.0023/1,000,000 = $0.00012578; 0.1 GB for 2 s = $0.0000046667
    serverless = StepCost(**step, store=ParameterStorePrice(kind="serverless"))
    assert serverless.per_step(plan, 2.0) == pytest.approx(
        0.0001000002 + 0.00012578125 + 0.00000466667, rel=1e-7
    )


def test_the_table_is_dated_and_says_where_it_is_from():
    prices = read_prices()
    assert prices.region == "us-east-1"
    assert isinstance(prices.as_of, datetime.date)
    assert all(source.startswith("https://") for source in prices.sources)


@pytest.mark.parametrize(
    "region", ["us-east-1", "us-east-2", "us-west-2", "eu-west-1", "eu-central-1"]
)
def test_every_region_prices_lambda_and_s3(region):
    prices = read_prices(None, region)
    assert lambda_cost(1_000_000, 1024, 0, prices=prices) == pytest.approx(0.0166667)
    assert 0 < s3_cost("standard", puts=1000, prices=prices) < 0.01


def test_a_file_overrides_single_rates_and_regions(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(
        "as_of = 2020-01-02\n[us-east-1.lambda.per_gb_second]\nx86_64 = 2.0\n"
        '[mars-1]\nsame_as = "us-east-1"\nlambda.per_request = 1.0\n'
    )
    prices = read_prices(path)
    assert lambda_cost(1000, 1024, 0, prices=prices) == 2.0
    assert lambda_cost(1000, 1024, 0, architecture="arm64", prices=prices) == pytest.approx(
        0.0000133334
    )
    assert prices.as_of == datetime.date(2020, 1, 2)
    assert lambda_cost(1000, 1024, 3, prices=read_prices(path, "mars-1")) == 5.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lambda = 3", "lambda is out of place"),
        ("[us-east-1.lambda]\nper_request = -1", r"us-east-1.lambda.per_request is -1"),
        ('[us-east-1.lambda]\nper_request = "1"', "give a number of dollars"),
        ("as_of = 3", "write a date"),
        ("[", "not valid TOML"),
    ],
)
def test_a_file_that_is_no_price_table_is_refused(tmp_path, text, words):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_prices(path)


def test_what_has_no_price_is_named():
    with pytest.raises(ConfigError, match="no prices of the region mars-1"):
        read_prices(None, "mars-1")
    with pytest.raises(ConfigError, match=r"eu-west-1\.elasticache\.nodes\.cache"):
        cache_node_cost("cache.r7g.large", 1, prices=read_prices(None, "eu-west-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(Path("/nowhere/prices.toml"))
