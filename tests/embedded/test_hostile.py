"""What an unkind Lambda does is decided by its seed."""

from smlt.embedded.hostile import LATEST_S, Hostility


def fates(seed, count=400):
    hostility = Hostility(seed)
    return [hostility.fate() for _ in range(count)]


def test_seed_decides_every_fate():
    assert fates(3) == fates(3)
    assert fates(3) != fates(4)


def test_every_kind_of_mischief_comes_and_most_events_arrive():
    drawn = fates(1)
    counts = [len(fate.deliveries) for fate in drawn]
    assert set(counts) == {0, 1, 2}
    assert 20 < counts.count(0) < 80
    assert 40 < counts.count(2) < 160
    assert any(fate.kill_idle for fate in drawn)
    assert any(fate.kill_after_s for fate in drawn)
    assert max(max(fate.deliveries, default=0) for fate in drawn) < 2 * LATEST_S
    assert any(fate.deliveries == (0.0,) for fate in drawn)
    hostility = Hostility(2)
    assert 20 < sum(hostility.throttles() for _ in range(400)) < 120
