"""Bills beside invoices that were worked out by hand, from REPORT lines as Lambda writes them."""

from __future__ import annotations

import asyncio

import pytest

from smlt.control.bill import FunctionKind
from smlt.control.cost_model import s3_cost
from smlt.control.invocations import Invocations
from smlt.control.lambda_client import LogEvent
from smlt.control.late_reports import wait_for_reports
from smlt.control.prices import prices_of, read_prices
from smlt.errors import CloudError

# us-east-1: $0.0000166667 a GB-s on x86-64 and $0.0000133334 on arm64, $0.20 a million requests,
# $0.0000000309 a GB-s of /tmp beyond the 512 MB that every function has.
START = "START RequestId: {id} Version: 3"
COLD = (
    "REPORT RequestId: {id}\tDuration: 61204.31 ms\tBilled Duration: 62117 ms\tMemory Size: 1769 MB"
    "\tMax Memory Used: 611 MB\tInit Duration: 912.07 ms\t\n"
    "XRAY TraceId: 1-5e34a614-10bdxmplf1fb44f07bc535a1\tSegmentId: 07f5xmpl2d1f6f85\tSampled: true"
)
WARM = (
    "REPORT RequestId: {id}\tDuration: 899873.02 ms\tBilled Duration: 899874 ms\tMemory Size: "
    "1769 MB\tMax Memory Used: 702 MB\t"
)
KILLED = (
    "REPORT RequestId: {id}\tDuration: 5000.00 ms\tBilled Duration: 5000 ms\tMemory Size: 1769 MB"
    "\tMax Memory Used: 1769 MB\tStatus: error\tError Type: Runtime.OutOfMemory"
)
SMALL = (
    "REPORT RequestId: {id}\tDuration: 12.53 ms\tBilled Duration: 13 ms\tMemory Size: 512 MB"
    "\tMax Memory Used: 80 MB\t"
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def line(text, request_id, at=1_000_000, stream="s"):
    return LogEvent(stream, at, text.format(id=request_id))


def test_an_invoice_of_three_workers_on_x86(tmp_path, clock):
    bill = Invocations(tmp_path, clock)
    for rank, request_id in enumerate("abc"):
        bill.sent(request_id, 1, rank, 1769)
    bill.take([line(COLD, "a"), line(WARM, "b", stream="t"), line(KILLED, "c", stream="u")])
    clock.now += 3600  # what has ended costs no more
    gb_s, dollars = bill.bill()
    # 62.117 + 899.874 + 5.000 s = 966.991 s of 1769/1024 = 1.727539 GB: 1670.514726 GB-s.
    assert gb_s == pytest.approx(1670.514726, abs=1e-5)
    # 1670.514726 x 0.0000166667 = 0.0278419678, and 3 requests: 0.0000006.
    assert dollars == pytest.approx(0.0278425678, abs=2e-9)


def test_an_invoice_with_a_large_tmp_on_arm(tmp_path, clock):
    kind = FunctionKind(architecture="arm64", ephemeral_mb=1536)
    bill = Invocations(tmp_path, clock, kind=kind)
    bill.sent("a", 1, 0, 1769)
    bill.take([line(WARM, "a")])
    # And 100 calls of a gateway, which has no more of /tmp than all have.
    for _ in range(100):
        bill.called(13, 512)
    gb_s, dollars = bill.bill()
    # 899.874 s x 1.727539 GB = 1554.567486 GB-s; 1.3 s x 0.5 GB = 0.65 GB-s.
    assert gb_s == pytest.approx(1555.217486, abs=1e-5)
    # 1554.567486 x 0.0000133334 = 0.0207276701; /tmp: 899.874 GB-s x 0.0000000309 = 0.0000278061;
    # 0.65 x 0.0000133334 = 0.0000086667; 101 requests: 0.0000202.
    assert dollars == pytest.approx(0.0207843429, abs=2e-9)


def test_a_region_has_its_own_prices_and_an_unknown_one_those_of_the_first(tmp_path, clock):
    bill = Invocations(
        tmp_path, clock, prices=prices_of("eu-central-1"), kind=FunctionKind(ephemeral_mb=1536)
    )
    bill.sent("a", 1, 0, 1769)
    bill.take([line(WARM, "a")])
    # 1554.567486 x 0.0000166667 + 899.874 x 1 GB x 0.0000000362 + 0.0000002
    assert bill.bill()[1] == pytest.approx(0.0259095098 + 0.0000325754 + 0.0000002, abs=2e-9)
    assert prices_of("mars-north-1").region == "us-east-1"


def test_an_invoice_of_s3():
    # 24 PUTs and 42 GETs a step, 1,000 steps, and 3 GB kept for a month.
    standard = s3_cost("standard", puts=24_000, gets=42_000, gb_months=3)
    assert standard == pytest.approx(0.12 + 0.0168 + 0.069)
    # Express: 24,000 x $0.00000113, 42,000 x $0.00000003, 800 GB up at $0.0032, 1,400 down at
    # $0.0006.
    express = s3_cost(
        "express", puts=24_000, gets=42_000, uploaded=800 << 30, downloaded=1400 << 30
    )
    assert express == pytest.approx(0.02712 + 0.00126 + 2.56 + 0.84)


def test_a_report_that_comes_late_takes_the_place_of_what_was_presumed(tmp_path, clock):
    bill = Invocations(tmp_path, clock)
    for rank, request_id in enumerate("ab"):
        bill.sent(request_id, 1, rank, 1769)
    clock.now += 70
    bill.take([line(COLD, "a")])
    bill.presume_ended(1)
    assert not bill.unreported  # nothing tells that the other one has begun
    seconds = 62.117 + 70
    clock.now += 3600  # the other one has ended, too, although nothing says so yet
    assert bill.bill()[0] == pytest.approx(seconds * 1769 / 1024)
    # Older than the newest line that was seen, and from another stream.
    late = line(COLD, "b", at=1_000_000 - 4000, stream="t")
    assert late.timestamp_ms >= bill.since_ms()
    bill.take([late])
    assert bill.bill()[0] == pytest.approx(2 * 62.117 * 1769 / 1024)
    assert bill.bill()[1] == pytest.approx(2 * 62.117 * 1769 / 1024 * 0.0000166667 + 2 * 0.0000002)
    assert not bill.unreported


def test_late_lines_are_looked_for_from_time_to_time_and_written_once(tmp_path, clock):
    bill = Invocations(tmp_path, clock)
    bill.sent("a", 1, 0, 128)
    early = [LogEvent("s", 5_000_000, "START RequestId: a Version: 1")]
    early += [LogEvent("s", 5_000_001, "first"), LogEvent("s", 5_000_200, "third")]
    late = [*early[:2], LogEvent("s", 5_000_100, "second"), early[2]]
    bill.take(early)
    assert bill.since_ms() == 5_000_200
    clock.now += 11
    assert bill.since_ms() == 4_940_200
    assert bill.since_ms() == 5_000_200  # the next look is an ordinary one again
    bill.take(late)
    bill.take(late)
    prints = (tmp_path / "rank-0.log").read_text().splitlines()
    assert sorted(prints[1:]) == ["first", "second", "third"]


class Logs:
    """CloudWatch, which shows each line only at the third look."""

    def __init__(self, lines, fails=False):
        self.lines, self.looks, self.fails = lines, 0, fails

    async def log_events(self, name, since_ms):
        self.looks += 1
        if self.fails:
            raise CloudError("reading the logs of f failed: not now")
        return self.lines[name] if self.looks > 2 else []


def test_the_end_of_a_job_waits_for_the_reports_of_all_its_functions(tmp_path, clock):
    bill = Invocations(tmp_path, clock)
    bill.sent("a", 1, 0, 1769, "f-1769")
    bill.sent("b", 2, 0, 512, "f-512")
    bill.sent("c", 2, 1, 512, "f-512")  # an event that was lost: nobody waits for it
    bill.take([line(START, "a"), line(START, "b", stream="t")])
    bill.presume_ended(1)
    logs = Logs({"f-1769": [line(COLD, "a")], "f-512": [line(SMALL, "b", stream="t")]})
    assert asyncio.run(wait_for_reports(logs, bill))
    bill.presume_ended(2)
    assert bill.bill()[0] == pytest.approx(62.117 * 1769 / 1024 + 0.013 / 2)


@pytest.mark.parametrize("fails", [True, False])
def test_reports_that_never_come_are_not_waited_for_long(tmp_path, clock, fails):
    bill = Invocations(tmp_path, clock)
    bill.sent("a", 1, 0, 1769, "f")
    bill.take([line(START, "a")])
    assert not asyncio.run(wait_for_reports(Logs({"f": []}, fails), bill, limit_s=0.5))


def test_the_table_has_the_rates_that_the_invoices_are_made_of():
    prices = read_prices()
    assert prices.rate("lambda", "per_gb_second", "x86_64") == 0.0000166667
    assert prices.rate("lambda", "per_gb_second", "arm64") == 0.0000133334
    assert prices.rate("lambda", "ephemeral_per_gb_second") == 0.0000000309
    assert prices.rate("lambda", "per_request") == 0.0000002
