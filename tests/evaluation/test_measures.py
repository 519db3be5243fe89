"""Measures of association: properties that must hold for all clusters and columns, bad input."""
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medstrat.evaluation.measures import correlation_ratio, cramers_v, ordered_correlation

codes = lambda n, k=4: arrays(np.int64, n, elements=st.integers(0, k - 1))
pairs = st.integers(2, 40).flatmap(lambda n: st.tuples(codes(n), codes(n, 5)))
scored = st.integers(3, 40).flatmap(lambda n: st.tuples(codes(n), arrays(np.float64, n, elements=st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 2)))))


@given(pairs)
def test_v_lies_between_0_and_1_and_does_not_know_names(pair):
    k, c = pair
    v = cramers_v(k, c)
    constant = min(len(set(k)), len(set(c))) == 1 or max(len(set(k)), len(set(c))) == len(k)
    assert np.isnan(v) if constant else 0 <= v <= 1
    np.testing.assert_allclose([cramers_v(c, k), cramers_v(7 - k, np.array(list("vwxyz"))[c])], v, atol=1e-9)


@given(pairs)
def test_textbook_v_is_scipys(pair):
    k, c = pair
    assume(min(len(set(k)), len(set(c))) > 1)
    expected = scipy.stats.contingency.association(pd.crosstab(k, c))
    np.testing.assert_allclose(cramers_v(k, c, corrected=False), expected, atol=1e-9)
    if max(len(set(k)), len(set(c))) < len(k) and cramers_v(k, c) > 0 and len(set(k)) == len(set(c)): assert cramers_v(k, c) <= expected + 1e-9


@given(scored)
def test_correlation_ratio_is_the_f_test_and_bounds_r(pair):
    k, x = pair
    K, n = len(set(k)), len(k)
    eta, r = correlation_ratio(k, x), ordered_correlation(k, x)
    if K == 1 or np.ptp(x) == 0:
        assert np.isnan(eta) and np.isnan(r)
        return
    assert -1e-9 <= r <= eta + 1e-9 and eta <= 1
    np.testing.assert_allclose(correlation_ratio(9 - k, 3 - 2 * x), eta, atol=1e-6)
    within = sum(((x[k == i] - x[k == i].mean()) ** 2).sum() for i in set(k))
    if K < n and within > 1e-6:
        F = scipy.stats.f_oneway(*(x[k == i] for i in set(k))).statistic
        np.testing.assert_allclose(eta ** 2, F * (K - 1) / (F * (K - 1) + n - K), atol=1e-6)


def test_correction_removes_the_bias():
    rng = np.random.default_rng(0)
    drawn = [(rng.integers(30, size=200), rng.integers(4, size=200)) for _ in range(200)]
    assert np.mean([cramers_v(*d) for d in drawn]) < .07 < .2 < np.mean([cramers_v(*d, corrected=False) for d in drawn])


@pytest.mark.parametrize("measure", [cramers_v, correlation_ratio, ordered_correlation])
def test_nothing_to_compare_is_nan(measure):
    assert np.isnan(measure([0, 0, 0], [1, 2, 2])) and np.isnan(measure([0, 1, 1], [2, 2, 2])) and np.isnan(measure([0], [1]))


@pytest.mark.parametrize("call, words", [
    (lambda: cramers_v([0, 1], [0]), "(2,), the column (1,)"),
    (lambda: cramers_v([], []), "N ≥ 1"),
    (lambda: cramers_v([[0], [1]], [[0], [1]]), "(2, 1)"),
    (lambda: cramers_v([0, 1, 1], ["a", None, "b"]), "the first is image 1"),
    (lambda: cramers_v([0, np.nan], ["a", "b"]), "clusters have no value for 1"),
    (lambda: correlation_ratio([0, 1], ["a", "b"]), "cramers_v"),
    (lambda: ordered_correlation([0, 1], [np.inf, 1.]), "no value for 1 of 2"),
])
def test_refused(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value)
