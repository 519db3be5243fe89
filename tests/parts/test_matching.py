"Matchings of clusters: with classes, many to one and one to one, and with other clusters."
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medstrat.parts.matching import StatisticalMapping, agreement, match_clusters, one_to_one

codes = lambda n, k: arrays(np.int64, n, elements=st.integers(0, k - 1))
clusterings = st.integers(2, 40).flatmap(lambda n: st.tuples(codes(n, 4), codes(n, 5)))
pairs = st.integers(1, 60).flatmap(lambda n: st.tuples(*(st.lists(st.integers(0, 6), min_size=n, max_size=n).map(np.array) for _ in range(2))))
@settings(max_examples=60, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_renaming_clusters_changes_no_mapping_score(pair, random):
    clusters, labels = pair
    rename = np.array(random.sample(range(7), 7))
    score = lambda c: (np.mean(StatisticalMapping().fit(c, labels, 7).predict(c) == labels), np.mean(one_to_one(c, labels) == labels))
    many, one = score(clusters)
    assert score(rename[clusters]) == pytest.approx((many, one))
    assert one <= many # a one-to-one matching is one of the many-to-one maps
    assert many >= np.bincount(labels).max() / len(labels)


def test_empty_clusters_take_the_majority_and_ties_the_smallest():
    mapping = StatisticalMapping().fit(np.array([1, 1, 3, 3, 3]), np.array([2, 1, 5, 5, 5]), 5)
    assert mapping.cluster_labels_.tolist() == [5, 1, 5, 5, 5]
    with pytest.raises(ValueError, match="cluster 5"): mapping.predict(np.array([5]))
# ---- two clusterings


@settings(max_examples=60, deadline=None)
@given(clusterings)
def test_agreement_is_the_best_of_all_matchings(pair):
    a, b = pair[0], pair[1]
    best = max(np.mean(a == np.array(m)[b]) for m in permutations(range(5)))
    found = agreement(a, b, n_permutations=5)
    assert found["agreement"] == pytest.approx(best)
    assert found == pytest.approx(agreement(b, 3 - a, n_permutations=5))
    matched = match_clusters(a, b)
    assert np.mean(matched == a) == pytest.approx(best)
    assert len(set(zip(matched.tolist(), b.tolist(), strict=True))) == len(set(b)) == len(set(matched))


def test_by_chance():
    rng = np.random.default_rng(0)
    a, b = rng.integers(5, size=500), rng.integers(5, size=500)
    found = agreement(a, b)
    assert abs(found["agreement"] - found["by_chance"]) < .04 and found["by_chance"] > .2 and abs(found["ari"]) < .02
    assert agreement(np.zeros(9, int), np.zeros(9, int)) == dict(agreement=1., by_chance=1., ari=1.)
    assert match_clusters(np.array([0, 3], np.uint8), [1, 0]).tolist() == [0, 3]


@pytest.mark.parametrize("call, words", [
    (lambda: match_clusters([0, 1], [0, -1]), "from 0"),
    (lambda: match_clusters([0.0, 1.0], [0, 1]), "float64"),
    (lambda: match_clusters(["a"], ["b"]), "factorize"),
    (lambda: agreement([0, 1], [0]), "(2,) and (1,)"),
])
def test_refused_clusterings(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value)


def test_clusters_without_a_partner_get_numbers_of_their_own():
    assert match_clusters([0, 0, 0, 1], [2, 2, 5, 0]).tolist() == [0, 0, 2, 1]
    assert match_clusters([0, 1], np.array([3, 2], dtype=np.uint8)).tolist() == [0, 1]


def brute_acc(clusters, labels, K, C):
    "Pad to a square problem with partners that never agree, then try all permutations"
    n = np.zeros((max(K, C),) * 2, int)
    n[:K, :C] = [[np.sum((clusters == k) & (labels == c)) for c in range(C)] for k in range(K)]
    return max(n[range(len(n)), p].sum() for p in permutations(range(len(n)))) / len(labels)


@pytest.mark.parametrize("K, C", [(2, 4), (4, 4), (6, 3), (1, 3), (5, 1)])
def test_one_to_one_is_the_best_of_all(K, C):
    rng = np.random.default_rng(10 * K + C)
    k, c = rng.integers(K, size=40), rng.integers(C, size=40)
    assert np.mean(one_to_one(k, c) == c) == pytest.approx(brute_acc(k, c, K, C))


def test_agreement_does_not_know_names():
    a, b = np.random.default_rng(0).integers(3, size=60), np.random.default_rng(1).integers(4, size=60)
    assert agreement(a, b) == agreement(b, 2 - a) and agreement(a, a)["agreement"] == 1
    big = np.random.default_rng(2).permutation(np.repeat([0, 1, 2], [80, 10, 10]))
    assert agreement(big, np.random.default_rng(3).permutation(big))["by_chance"] > 0.6      # one large cluster: chance is high
