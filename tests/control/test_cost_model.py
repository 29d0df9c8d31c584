"""Costs against invoices worked out by hand, to the last digit that is billed."""

import datetime

import pytest

from smlt.control.cost_model import gb_seconds, lambda_cost, read_prices


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


def test_the_table_is_dated_and_says_where_it_is_from():
    prices = read_prices()
    assert prices.region == "us-east-1"
    assert isinstance(prices.as_of, datetime.date)
    assert prices.source.startswith("https://")


def test_another_table_is_used_when_given(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(
        'region = "eu-x"\nas_of = 2020-01-02\nsource = "a contract"\n[lambda]\nper_request = 1.0\n'
        "ephemeral_per_gb_second = 0.0\nephemeral_free_mb = 512\n"
        "[lambda.per_gb_second]\nx86_64 = 2.0\narm64 = 1.0\n"
    )
    prices = read_prices(path)
    assert lambda_cost(1000, 1024, 3, prices=prices) == 5.0
    assert prices.as_of == datetime.date(2020, 1, 2)
