import numpy as np

from smlt.worker import divergence


class Held:
    def __init__(self, **arrays):
        self._arrays = arrays

    def state(self):
        return self._arrays

    def scalars(self):
        return {"lr": 0.1}


def test_digests_tell_which_tensor_has_another_bit():
    a, b = np.arange(6, dtype=np.float32), np.arange(6, dtype=np.float32)
    b.view(np.uint32)[3] ^= 1
    same, other = Held(w=a, v=a), Held(w=b, v=a)
    ours, theirs = divergence.digests_of(same), divergence.digests_of(other)
    assert {name for name in ours if ours[name] != theirs[name]} == {"w"}
    assert divergence.as_metric(0, ours) != divergence.as_metric(0, theirs)


def test_metric_survives_beside_the_users_own():
    digests = divergence.digests_of(Held(w=np.ones(3, np.float32)))
    metrics = {"loss": (1.0, 2.0)} | divergence.as_metric(0, digests)
    metrics |= divergence.as_metric(3, digests)
    found = divergence.take_from(metrics)
    assert metrics == {"loss": (1.0, 2.0)}
    assert found.keys() == {0, 3}
    assert found[0] == found[3]


def test_description_names_the_odd_ranks_and_tensors():
    good, bad = {"w": 1, "b": 2}, {"w": 9, "b": 2}
    one = divergence.describe({0: good, 1: bad, 2: good}, 3)
    assert one == "rank 1 differs from the other ranks in w"
    two = divergence.describe({0: good, 1: bad}, 2)
    assert two == "ranks 0 and 1 differ from each other in w"
    assert divergence.describe({0: good}, 2) == "the states of the 2 ranks differ"


def test_every_rank_is_compared_with_the_first_before_long():
    asked = [{rank for rank in range(1000) if divergence.is_asked(rank, 1000, t)} for t in (0, 1)]
    assert all(0 in ranks and len(ranks) <= 501 for ranks in asked)
    assert asked[0] | asked[1] == set(range(1000))
