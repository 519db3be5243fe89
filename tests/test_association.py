"""Association of clusters with columns, agreement of clusterings, and their figures: properties, bad input, the untidy cases."""
from itertools import combinations, permutations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import assume, given
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
from medstrat.evaluation.subgroups import plot_agreement, plot_columns, plot_scores

codes = lambda n, k=4: arrays(np.int64, n, elements=st.integers(0, k - 1))
pairs = st.integers(2, 40).flatmap(lambda n: st.tuples(codes(n), codes(n, 5)))
scored = st.integers(3, 40).flatmap(lambda n: st.tuples(codes(n), arrays(np.float64, n, elements=st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 2)))))


# --- the measures ------------------------------------------------------------------------------

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
    (lambda: permutation_p(cramers_v, [0, 1], [0, 0]), "one value only"),
    (lambda: permutation_p(cramers_v, [0, 1], [0, 1], n_permutations=0), "at least one"),
    (lambda: permutation_p(cramers_v, [0, 1, 1], [0, 1, 1], patients=[0, 1]), "3 images, but 2"),
    (lambda: permutation_p(cramers_v, [0, 1, 1], [0, 1, 1], patients=[5, 5, 5]), "none of the 1 patients"),
    (lambda: permutation_p(lambda k, c: np.nan if c[0] else 1., [0, 1, 1], [0, 1, 1], n_permutations=50), "nan for"),
])
def test_refused(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value)


def test_a_statistic_is_a_function():
    with pytest.raises(TypeError, match="correlation_ratio"): permutation_p("V", [0, 1], [0, 1])


# --- permutations ------------------------------------------------------------------------------

def test_as_scipy_when_all_orders_are_listed():
    k, x = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([1., 2, 2.5, 4, 3, 2, 6])
    exact = scipy.stats.permutation_test((x,), lambda x: correlation_ratio(k, x), permutation_type="pairings", alternative="greater", n_resamples=np.inf).pvalue
    assert abs(permutation_p(correlation_ratio, k, x, n_permutations=4999) - exact) < .02


@pytest.mark.parametrize("patients", [None, [0, 0, 1, 1, 2, 2, 3, 4, 5, 5]])
@pytest.mark.parametrize("fast", [cramers_v, correlation_ratio])
def test_fast_and_slow_agree(fast, patients):
    k, c = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0]), np.array([1, 2, 1, 1, 2, 2, 1, 1, 2, 1])
    slow = (lambda k, c: cramers_v(k, c, corrected=False)) if fast is cramers_v else lambda k, c: correlation_ratio(k, c)
    assert permutation_p(fast, k, c, patients, 99) == permutation_p(slow, k, c, patients, 99)
    assert permutation_p(fast, k, c, patients, 99) == permutation_p(fast, k, c, patients, 99, random_state=0)


def test_one_image_a_patient_is_the_test_of_images():
    rng = np.random.default_rng(0)
    k, c = rng.integers(3, size=50), rng.integers(3, size=50)
    assert permutation_p(cramers_v, k, c, np.arange(50), 199) == permutation_p(cramers_v, k, c, None, 199)


def test_whole_patients_of_equal_size_change_places():
    "A column that varies within patients: exactly the orders in which patients of two images swap, listed by hand"
    k, c, patient = np.array([0, 0, 1, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 0, 2]), np.array([0, 0, 1, 1, 2, 2, 3])
    phi = lambda c: cramers_v(k, c, corrected=False)
    values = [phi(np.concatenate([*(c[2 * i:2 * i + 2] for i in order), c[6:]])) for order in permutations(range(3))]
    assert abs(permutation_p(cramers_v, k, c, patient, 2999) - np.mean(np.array(values) >= values[0] - 1e-9)) < .03


def test_order_of_rows_does_not_matter_for_the_patients_found():
    rng = np.random.default_rng(3)
    patient = rng.integers(20, size=100)
    k, c = rng.integers(3, size=20)[patient], rng.integers(2, size=20)[patient]
    shuffled = rng.permutation(100)
    a, b = permutation_p(cramers_v, k, c, patient), permutation_p(cramers_v, k[shuffled], c[shuffled], patient[shuffled].astype(str))
    assert abs(a - b) < .06


@pytest.mark.parametrize("few_large", [False, True])
def test_false_positives(few_large):
    "No association: patients exchanged keep the 5 % level, also where the value goes with the number of images; images exchanged do not"
    rng, p = np.random.default_rng(1), []
    for seed in range(100):
        size = np.r_[np.full(6, 40), np.ones(54, int)] if few_large else rng.integers(1, 9, 60)
        value = np.where(rng.random(60) < .2, rng.integers(2, size=60), size > np.median(size))
        u = np.repeat(np.arange(60), size)
        k = np.where(rng.random(len(u)) < .2, rng.integers(4, size=len(u)), rng.integers(4, size=60)[u])
        p.append([permutation_p(cramers_v, k, value[u], unit, 99, seed) for unit in (None, u)])
    images, patients = (np.array(p) <= .05).mean(0)
    assert patients <= .09 < .3 < images


# --- the table ---------------------------------------------------------------------------------

@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    k = rng.integers(3, size=120)
    return k, pd.DataFrame({"scanner": np.array(["A", "B", "C"])[k], "age": np.where(rng.random(120) < .1, np.nan, 50 + 5. * k + rng.normal(size=120)), "site": "X", "file": [f"{i}.png" for i in range(120)],
                            "flag": rng.random(120) < .5, "grade": pd.Categorical(rng.choice(["low", "high"], 120), ["low", "high"]), "patient": np.arange(120) // 2, "empty": None,
                            "day": pd.date_range("2020-01-01", periods=120), "two": rng.integers(2, size=120) * 1.}, index=range(1000, 1120))


def test_table_of_everything(table):
    k, t = table
    found = associations(k, t, patient="patient", n_permutations=99)
    assert found.index.tolist() == t.columns.tolist()
    assert found["kind"].dropna().to_dict() == {"scanner": "category", "age": "number", "flag": "category", "grade": "category", "patient": "category", "two": "number"}
    for name, reason in {"site": "one value only", "file": "every image", "empty": "no values", "day": "datetime"}.items(): assert reason in found.loc[name, "remark"] and np.isnan(found.loc[name, "p"])
    assert found.loc["scanner", "cramers_v"] == pytest.approx(1) and found.loc["scanner", "p"] == .01
    assert found.loc["age", "n"] == t["age"].notna().sum() and "without a value" in found.loc["age", "remark"]
    use = t["age"].notna().to_numpy()
    assert found.loc["age", "correlation_ratio"] == pytest.approx(correlation_ratio(k[use], t["age"][use])) and found.loc["age", "p"] == .01
    assert found.loc["flag", "ami"] == pytest.approx(adjusted_mutual_info_score(k, t["flag"]))
    assert found.loc["flag", "remark"] == "60 of 60 patients, by number of images" and found.loc["patient", "remark"] == "120 images"
    pd.testing.assert_frame_equal(found, associations(k, t, patient="patient", n_permutations=99))


def test_chance_is_what_permutations_give(table):
    k, t = table
    found = associations(k, t, ["flag", "age"], n_permutations=199)
    assert found.loc["flag", "by_chance"] < .12 and abs(found.loc["age", "by_chance"] - np.sqrt(2 / 107)) < .03


def test_images_sets_dictionaries_and_sets_without_columns(table):
    k, t = table
    s = ImageSet(np.zeros((120, 2, 2), np.uint8), t)
    pd.testing.assert_frame_equal(associations(k, s, "scanner", n_permutations=9), associations(k, {"scanner": t["scanner"].to_numpy()}, n_permutations=9))
    assert len(associations(k, ImageSet(np.zeros((120, 2, 2), np.uint8)))) == 0


@pytest.mark.parametrize("error, change, words", [
    (KeyError, {"columns": ["scaner"]}, "Did you mean 'scanner'?"),
    (KeyError, {"patient": "Patients"}, "Did you mean 'patient'?"),
    (NotComparable, {"columns": ["site"]}, "column 'site': one value only"),
    (NotComparable, {"columns": "file"}, "column 'file': a different value"),
    (NotComparable, {"columns": ["day"]}, "datetime"),
    (ValueError, {"patient": "age"}, "have a patient"),
    (ValueError, {"n_permutations": 0}, "at least one"),
])
def test_table_refused(table, error, change, words):
    with pytest.raises(error) as e: associations(*table, **{"n_permutations": 9} | change)
    assert words in str(e.value)


def test_lengths_and_one_cluster(table):
    k, t = table
    with pytest.raises(ValueError, match="119 clusters, but the table has 120 rows"): associations(k[1:], t)
    assert (associations(np.zeros(120, int), t[["scanner", "age"]])["remark"] == "left out: one cluster only").all()


def test_patients_who_cannot_be_exchanged_are_a_remark():
    found = associations([0, 1, 0, 1, 1, 0], {"view": [0, 1, 0, 1, 1, 0], "patient": [0, 0, 0, 1, 1, 2]}, patient="patient")
    assert found.loc["view", "remark"].startswith("left out: none of the 3 patients")


# --- figures -----------------------------------------------------------------------------------

def overlapping(texts):
    "Pairs of texts, of a figure that was drawn, whose boxes overlap by more than a pixel."
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()]
    return [(a, b) for (a, p), (b, q) in combinations(boxes, 2) if min(p.x1, q.x1) - max(p.x0, q.x0) > 1 and min(p.y1, q.y1) - max(p.y0, q.y0) > 1]


def check(fig):
    "Not left open, not wider than a notebook, drawable, no tick labels or titles over one another"
    assert not plt.get_fignums() and fig.get_size_inches()[0] <= 9.01
    FigureCanvasAgg(fig).draw()
    for ax in fig.axes:
        assert not overlapping(ax.get_xticklabels()) and not overlapping(ax.get_yticklabels())
        if ax.get_legend(): assert not overlapping(ax.get_legend().get_texts())
    assert not overlapping([ax.title for ax in fig.axes])
    return fig


@pytest.mark.parametrize("K", [2, 10, 40, 60])
def test_columns_are_legible(K):
    rng = np.random.default_rng(0)
    n, k = 20 * K, np.concatenate([np.arange(K), rng.integers(K, size=19 * K)])
    t = pd.DataFrame({"short": rng.integers(2, size=n), "many": [f"a very long name of a place, number {i}" for i in rng.integers(25, size=n)],
                      "gaps": np.where(rng.random(n) < .3, None, "known"), "a score whose name does not want to end either": np.where(k == 1, np.nan, rng.normal(size=n)), "grade": rng.choice(list("abc"), n)})
    fig = check(plot_columns(k, t, n_clusters=K + 2))
    assert [ax.get_title().split(" (")[0] for ax in fig.axes if ax.get_visible()][:3] == ["images", "short", "many"]
    many = fig.axes[2]
    assert len(many.get_legend().get_texts()) == 11 and many.get_legend().get_texts()[0].get_text() == f"other ({t['many'].nunique() - 10})"
    heights = sum(np.array([bar.get_height() for bar in c]) for c in many.containers)
    np.testing.assert_allclose(heights, [1] * K + [0] * 2)
    check(plot_scores(k, t.iloc[:, 3], "score", n_clusters=K + 2))


@pytest.mark.parametrize("K, L", [(2, 2), (3, 16), (16, 3), (10, 40), (60, 60), (1, 1)])
def test_agreement_is_legible(K, L):
    rng = np.random.default_rng(0)
    a, b = rng.permutation(np.arange(3000) % K), rng.permutation(np.arange(3000) % L)
    fig = check(plot_agreement(a, b))
    assert len(fig.axes[0].get_xticklabels()) == L and len(fig.axes[0].get_yticklabels()) == K
    if max(K, L) <= 16: assert sum(int(t.get_text().replace(",", "")) for t in fig.axes[0].texts) == 3000


def test_names_order_and_empty_clusters():
    s = ImageSet(np.zeros((6, 2, 2), np.uint8), {"label": [0, 1, 1, 0, 1, 1]}, target="label", classes=["benign", "malignant"])
    fig = check(plot_columns([4, 4, 4, 0, 0, 2], s, n_clusters=5))
    assert [t.get_text() for t in fig.axes[1].get_legend().get_texts()] == ["malignant", "benign"]
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["4", "0", "2", "1", "3"]
    grade = pd.Series(pd.Categorical(["low", "high", "low", "mid", "high", "low"], ["low", "mid", "high"], ordered=True), name="grade")
    assert [t.get_text() for t in plot_columns([0, 0, 1, 1, 0, 1], grade.to_frame()).axes[1].get_legend().get_texts()] == ["high", "mid", "low"]


def test_scores_are_ordered_by_mean():
    fig = check(plot_scores([0, 0, 1, 1, 2, 2], pd.array([5., 6, 1, 2, 3, None], dtype="Float64"), n_clusters=4))
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1\nn=2", "2\nn=1", "0\nn=2", "3\nn=0"]
    assert "1 images without" in fig.axes[0].get_title()


@pytest.mark.parametrize("error, draw, words", [
    (ValueError, lambda: plot_columns([0, 1], {"site": ["X", "X"]}), "none of the columns (site)"),
    (ValueError, lambda: plot_columns([0, 1], ImageSet(np.zeros((2, 2, 2), np.uint8))), "there are none"),
    (KeyError, lambda: plot_columns([0, 1], {"view": [0, 1]}, ["veiw"]), "Did you mean 'view'?"),
    (ValueError, lambda: plot_columns([0, 1, 1], {"view": [0, 1]}), "3 clusters"),
    (ValueError, lambda: plot_columns([0, 5], {"view": [0, 1]}, n_clusters=3), "cluster 5"),
    (ValueError, lambda: plot_columns([0, 1], {"view": [None, None]}, "view"), "'view' has no values"),
    (ValueError, lambda: plot_scores([0, 1], [0.]), "(1,) scores"),
    (ValueError, lambda: plot_scores([0, 1], ["a", "b"]), "plot_columns"),
    (ValueError, lambda: plot_agreement([0, 1], [0]), "(2,) and (1,)"),
])
def test_figures_refuse(error, draw, words):
    with pytest.raises(error) as e: draw()
    assert words in str(e.value) and not plt.get_fignums()


def test_bars_of_named_constants_and_identifiers_can_be_asked_for():
    check(plot_columns([0, 1, 1], {"site": ["X"] * 3, "file": list("abc")}, ["site", "file"]))
