"""What stores cost while a job runs, against bills worked out by hand."""

from dataclasses import replace

import pytest

from smlt.control.event_log import EventLog
from smlt.control.prices import read_prices
from smlt.control.progress import Progress
from smlt.control.progress_feed import ProgressFeed
from smlt.control.step_cost import ParameterStorePrice, StepCost
from smlt.control.store_bill import StoreBill
from smlt.errors import ConfigError
from smlt.messages.job import JobSpec, ResourcePlan
from smlt.messages.worker import StepFlag, StepRecord, WorkerReport

SPEC = JobSpec(target="t:T", batch_size=64)
S3 = "s3://bucket/prefix"
DIRECTORY = "file:///run/objects"
# What S3 is asked while 3 workers run, a second: 3 PUTs and 3 GETs each, 3 listings of the client.
SECOND_OF_3 = 12 * 0.000005 + 9 * 0.0000004


def plan(workers, **exchange):
    return ResourcePlan(workers=workers, memory_mb=1769, **exchange)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def bill(parameters, *, node=None, objects=DIRECTORY, spec=SPEC, shard_bytes=1000):
    clock = Clock()
    store = ParameterStorePrice.of(parameters, node)
    cost = StepCost(
        prices=read_prices(), store=store, shard_bytes=shard_bytes, wire_dtype=spec.wire_dtype
    )
    return StoreBill(spec, cost, objects, clock), clock


@pytest.mark.parametrize(
    ("url", "node", "hourly"),
    [
        ("redis://a:6379", None, 0.0),
        ("rediss://a:6379", "cache.r7g.large", 0.1752),
        ("rediss://a:6379,rediss://b:6379", "cache.r7g.large", 2 * 0.1752),
        ("unix:///run/valkey.sock", "cache.t4g.micro", 0.0128),
    ],
)
def test_nodes_are_paid_for_by_the_hour_whatever_is_done_with_them(url, node, hourly):
    found, clock = bill(url, node=node)
    found.carries(10**6, plan(4))
    for _ in range(10):
        found.step(plan(4))
    assert found.usd == 0
    clock.now += 1800
    assert found.usd == pytest.approx(hourly / 2)


def test_s3_as_parameter_store_is_paid_for_by_request():
    found, clock = bill(S3)
    found.carries(4500, plan(3, aggregators=1))  # 5 shards of 1,000 bytes
    for _ in range(100):
        found.step(plan(3, aggregators=1))
    clock.now += 100
    # Each shard: 2 contributions and a mean, each put and announced. The owner fetches 2, and 2
    # ranks fetch the mean. 3 ranks wait for means and the owner for contributions, with 3 looks.
    puts, gets = 100 * (5 * 3 * 2 + 4 * 3), 100 * 5 * 4
    requests = puts * 0.000005 + gets * 0.0000004
    assert found.usd == pytest.approx(requests + 100 * SECOND_OF_3)


def test_what_a_bucket_is_asked_without_a_step_depends_on_the_workers():
    found, clock = bill(S3)
    clock.now += 10  # nobody but the client
    assert found.usd == pytest.approx(10 * 3 * 0.000005)
    found.carries(4500, plan(3))
    clock.now += 100
    assert found.usd == pytest.approx(10 * 3 * 0.000005 + 100 * SECOND_OF_3)


def test_rounded_gradients_are_half_as_large():
    moved = []
    for spec, own in (("fp32", None), ("bf16", None), ("fp32", "bf16"), ("bf16", "fp32")):
        found, _ = bill("s3://fast--use1-az4--x-s3/p", spec=replace(SPEC, wire_dtype=spec))
        found.carries(2**20, plan(2, aggregators=1))
        found.step(plan(2, aggregators=1, wire_dtype=own))
        moved.append(found.usd)
    # Each rank puts a MB and fetches one; the requests are as many.
    saved = 1 / 1024 * 0.0032 + 1 / 1024 * 0.0006
    assert moved[1] == moved[2] == pytest.approx(moved[0] - saved)
    assert moved[3] == moved[0]


def test_express_is_paid_for_by_bytes_as_well():
    found, _ = bill("s3://fast--use1-az4--x-s3/p")
    found.carries(2**20, plan(2, aggregators=1))
    found.step(plan(2, aggregators=1))
    # 1,093 shards of 15 cache lines: 2 frames each, put and announced, fetched once each; 3 waits
    # with 3 looks.
    requests = (1093 * 4 + 9) * 0.00000113 + 1093 * 2 * 0.00000003
    assert found.usd == pytest.approx(requests + 2 / 1024 * 0.0032 + 2 / 1024 * 0.0006)


def test_a_bucket_for_objects_is_paid_for_by_generations_and_for_the_lease():
    found, clock = bill("redis://a", objects=S3)
    found.carries(4000, plan(10))
    # 3 puts and 6 gets of the client, 2 and 4 of each of ten ranks.
    assert found.usd == pytest.approx(23 * 0.000005 + 46 * 0.0000004)
    before = found.usd
    clock.now += 3600
    # The lease of 6 s is renewed every 1.5 s.
    assert found.usd - before == pytest.approx(2400 * 0.000005)


@pytest.mark.parametrize(
    ("parameters", "node"), [("rediss://a", "cache.none"), ("s3://fast--x-s3", None)]
)
def test_a_store_without_a_price_is_told_before_anything_is_counted(parameters, node):
    prices = read_prices(region="eu-west-1")  # knows nodes and Express no more than the first
    cost = StepCost(prices=prices, store=ParameterStorePrice.of(parameters, node))
    with pytest.raises(ConfigError, match=r"there is no price of eu-west-1"):
        StoreBill(SPEC, cost, DIRECTORY)


def test_it_is_part_of_what_a_job_has_spent(tmp_path):
    found, clock = bill("rediss://a", node="cache.r7g.large")
    feed = ProgressFeed(Progress(workers=2), EventLog(tmp_path / "events"), clock, found)
    clock.now += 360
    assert feed.spent_usd(0.25) == pytest.approx(0.25 + 0.01752)
    feed.pulse([], (3.0, 0.25))
    assert feed.progress.cost_usd == pytest.approx(0.26752)


class TestBudget:
    """A budget is kept although most of the cost is the stores'."""

    FIRST = ResourcePlan(workers=8, memory_mb=1769)

    @pytest.mark.parametrize("budget", [0.02, 0.2])
    @pytest.mark.parametrize(
        ("parameters", "node"), [(S3, None), ("rediss://a", "cache.r7g.2xlarge")]
    )
    def test_it_is_never_crossed_by_more_than_a_step(self, budget, parameters, node):
        from smlt.control.goals import Standing
        from smlt.control.resource_manager import ResourceManager

        spec = replace(SPEC, budget_usd=budget, steps=10**6)
        store = ParameterStorePrice.of(parameters, node)
        cost = StepCost(prices=read_prices(), store=store, shard_bytes=1 << 20)
        manager = ResourceManager(spec, self.FIRST, cost, notice=print)
        clock = Clock()
        stores = StoreBill(spec, cost, DIRECTORY, clock)
        report = WorkerReport(rank=0, kind="plan", gradient_bytes=40 << 20, batches=[(10**6, 64)])
        manager.begin(self.FIRST, clock.now)
        manager.work(report)
        stores.carries(report.gradient_bytes, self.FIRST)
        functions, step_usd, decision = 0.0, 0.0, None
        for step in range(1, 100_000):
            before = functions + stores.usd
            clock.now += 0.5
            functions += 0.5 * 8 * 1769 / 1024 * 0.0000166667
            stores.step(self.FIRST)
            step_usd = functions + stores.usd - before
            manager.step(
                StepRecord(step=step, epoch=0, loss=1.0, samples=64, seconds=0.5), clock.now
            )
            standing = Standing(
                elapsed_s=clock.now - 100,
                spent_usd=functions + stores.usd,
                step=step,
                total_steps=10**6,
            )
            decision = manager.decide(standing, clock.now)
            if decision is not None:
                break
        assert decision.stop == StepFlag.BUDGET
        assert 0.5 * budget < functions + stores.usd <= budget + step_usd
        assert functions < 0.7 * budget
