"""Figures of subgroups: legible for few and many clusters, long names, gaps and clusters without images."""
from itertools import combinations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from medstrat.data.images import ImageSet
from medstrat.evaluation.subgroups import plot_agreement, plot_columns, plot_scores


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
    (ValueError, lambda: plot_scores([0, 1], [np.nan, np.nan]), "no image has a score"),
    (ValueError, lambda: plot_agreement([0, 1], [0]), "(2,) and (1,)"),
])
def test_figures_refuse(error, draw, words):
    with pytest.raises(error) as e: draw()
    assert words in str(e.value) and not plt.get_fignums()


def test_bars_of_named_constants_and_identifiers_can_be_asked_for():
    check(plot_columns([0, 1, 1], {"site": ["X"] * 3, "file": list("abc")}, ["site", "file"]))


def test_values_and_clusters_of_any_type():
    "Numbers beside texts, gaps, clusters with names: all keep their places"
    fig = check(plot_columns(list("baab"), {"odd": pd.Series([2, "x", None, 1], dtype=object)}, "odd"))
    assert [t.get_text() for t in fig.axes[1].get_legend().get_texts()] == ["missing", "x", "2", "1"]
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["a", "b"]
