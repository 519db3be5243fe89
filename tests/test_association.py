"""Association of clusters with columns, agreement of clusterings, and their figures: properties, bad input, the untidy cases."""
from itertools import combinations, permutations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import adjusted_mutual_info_score

from medstrat.data.images import ImageSet
from medstrat.evaluation.association import (
    NotComparable,
    associations,
    correlation_ratio,
    cramers_v,
    ordered_correlation,
    permutation_p,
)
from medstrat.parts.matching import agreement, match_clusters
from medstrat.evaluation.subgroups import plot_agreement, plot_columns, plot_scores

codes = lambda n, k=4: arrays(np.int64, n, elements=st.integers(0, k - 1))
pairs = st.integers(2, 40).flatmap(lambda n: st.tuples(codes(n), codes(n, 5)))


@pytest.mark.parametrize("call, words", [
    (lambda: match_clusters([0, 1], [0, -1]), "from 0"),
    (lambda: match_clusters(["a"], ["b"]), "factorize"),
    (lambda: agreement([0, 1], [0]), "(2,) and (1,)"),
])
def test_refused(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value)


# --- two clusterings ---------------------------------------------------------------------------

@settings(max_examples=60)
@given(pairs)
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
