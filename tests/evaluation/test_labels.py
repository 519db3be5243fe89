"Label efficiency: which images get a label, what the curve must equal, and what may be pooled."
import warnings
from itertools import combinations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from medstrat.evaluation.labels import (
    FRACTIONS,
    labelled_subsets,
    label_efficiency,
    plot_label_efficiency,
    summarise_label_efficiency,
)
from medstrat.evaluation.metrics import Encoded
from medstrat.evaluation.protocol import evaluate, scored_split


def make(n, d=6, classes=3, seed=0, shift=2.):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return Encoded(rng.normal(size=(n, d)) * np.arange(1, d + 1) + shift * np.eye(classes, d)[y], np.zeros(n, int), y)


@pytest.fixture(scope="module")
def pair(): return make(400), make(200, seed=1)


@pytest.fixture(scope="module")
def curve(pair): return label_efficiency(*pair, draws=4)


# --- which images get a label ------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.lists(st.floats(.001, .999), min_size=1, max_size=5, unique=True), st.integers(0, 99))
def test_subsets_are_nested_stratified_and_whole_at_one(labels, fractions, seed):
    labels, fractions = np.array(labels), [*sorted(fractions), 1]
    found = {(f, r): i for f, r, i in labelled_subsets(labels, fractions, 2, seed)}
    assert sorted(found) == sorted([(f, r) for f in fractions[:-1] for r in (0, 1)] + [(1, 0)])
    for (f, _), i in found.items():
        assert (np.diff(i) > 0).all()
        assert [np.sum(labels[i] == c) for c in np.unique(labels)] == [max(1, round(f * np.sum(labels == c))) for c in np.unique(labels)]
    for r in (0, 1):
        for small, large in zip(fractions[:-2], fractions[1:-1], strict=True): assert set(found[small, r]) <= set(found[large, r])
    assert found[1, 0].tolist() == list(range(len(labels)))


def test_draws_and_seeds_are_all_different():
    labels = np.arange(3000) % 3
    found = [tuple(i) for seed in range(4) for _, _, i in labelled_subsets(labels, [.1], 4, seed)]
    assert len(set(found)) == 16        # seed 0, draw 1 is not seed 1, draw 0


def test_more_draws_and_other_fractions_change_no_draw(pair, curve):
    more = label_efficiency(*pair, fractions=[.05, .2, 1], draws=5)
    both = more.merge(curve, on=["fraction", "draw"])
    assert len(both) == 4 + 4 + 1
    assert (both.accuracy_x == both.accuracy_y).all() and (both.n_labels_x == both.n_labels_y).all()


# --- the curve ---------------------------------------------------------------------------------

def test_columns_rows_and_order(curve):
    assert curve.columns.tolist() == ["fraction", "n_labels", "draw", "accuracy", "balanced_accuracy"]
    assert curve.fraction.tolist() == [f for f in FRACTIONS[:-1] for _ in range(4)] + [1] and curve.draw.tolist() == [0, 1, 2, 3] * 5 + [0]
    assert curve.n_labels.is_monotonic_increasing and curve.n_labels.iloc[-1] == 400
    assert curve[["accuracy", "balanced_accuracy"]].stack().between(0, 1).all()


@pytest.mark.parametrize("on", ["test", "val", "val+test"])
@pytest.mark.parametrize("classes", [2, 5])
def test_with_all_labels_it_is_the_probe_of_evaluate(on, classes):
    splits = {s: make(n, classes=classes, seed=i, shift=.7) for i, (s, n) in enumerate(dict(train=300, val=70, test=90).items())}
    m = evaluate(splits, n_clusters=1, on=on).metrics
    last = label_efficiency(splits["train"], scored_split(splits, on), fractions=[1]).iloc[-1]
    assert (last.accuracy, last.balanced_accuracy) == (m["probe_accuracy"], m["probe_balanced_accuracy"])


def test_depends_on_its_seed_alone(pair, curve):
    np.random.seed(1)
    pd.testing.assert_frame_equal(curve, label_efficiency(*pair, draws=4))
    other = label_efficiency(*pair, draws=4, seed=1)
    assert (other.accuracy != curve.accuracy)[:-1].any() and other.accuracy.iloc[-1] == curve.accuracy.iloc[-1]


def test_every_method_gets_the_same_images(pair, curve):
    "The subsets follow from labels and seed; the embedding has no say"
    train, test = pair
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    other = label_efficiency(*(Encoded(e.embedding @ turn, e.clusters, e.labels) for e in pair), draws=4)
    assert other.n_labels.tolist() == curve.n_labels.tolist()
    scaled = label_efficiency(*(Encoded(1000 * e.embedding + 5, e.clusters, e.labels) for e in pair), draws=4)
    np.testing.assert_allclose(scaled.accuracy, curve.accuracy, atol=.02)      # standardised: blind to scale and place


def test_more_labels_help_and_shuffled_ones_do_not(pair, curve):
    train, test = pair
    means = curve.groupby("fraction").accuracy.mean()
    assert means[1] > means[.01] + .1
    chance = label_efficiency(Encoded(train.embedding, train.clusters, np.random.default_rng(0).permutation(train.labels)), test, draws=4)
    assert chance.groupby("fraction").accuracy.mean().between(.2, .47).all()
    rng = np.random.default_rng(0)      # nine of ten in one class and nothing to learn: the majority rate
    z, y = rng.normal(size=(600, 3)), (np.arange(600) % 10 == 0).astype(int)
    rare = label_efficiency(Encoded(z[:400], np.zeros(400, int), y[:400]), Encoded(z[400:], np.zeros(200, int), y[400:]), fractions=[.5, 1], draws=3)
    assert (abs(rare.accuracy - .9) < .02).all() and (abs(rare.balanced_accuracy - .5) < .05).all()


def test_all_training_images_standardise():
    "Two labelled images that agree in a dimension would give it no spread at all"
    train, test = make(400, classes=2), make(200, classes=2, seed=1)
    i = next(i for _, _, i in labelled_subsets(train.labels, [.001], 1, 0))
    x = (train.embedding - train.embedding.mean(0)) / train.embedding.std(0)
    z = (test.embedding - train.embedding.mean(0)) / train.embedding.std(0)
    a, b = (x[i[train.labels[i] == c]][0] for c in (0, 1))
    nearer = (((z - a) ** 2).sum(1) > ((z - b) ** 2).sum(1)).astype(int)       # one image a class: the probe's border is half way
    got = label_efficiency(train, test, fractions=[.001]).query("draw == 0")
    assert got.n_labels.item() == 2 and got.accuracy.item() == pytest.approx(np.mean(nearer == test.labels), abs=.011)


def test_rare_class_and_codes_with_gaps():
    y = np.r_[np.zeros(97, int), 7, 7, 40]
    train = Encoded(np.random.default_rng(0).normal(size=(100, 2)), np.zeros(100, int), y)
    scored = Encoded(np.random.default_rng(1).normal(size=(9, 2)), np.zeros(9, int), np.full(9, 99))     # a class never shown
    got = label_efficiency(train, scored, fractions=[.01, .5], draws=2)
    assert got.n_labels.tolist() == [3, 3, 50, 50] and (got.accuracy == 0).all()


@pytest.mark.parametrize("arguments, words", [
    (dict(fractions=[]), "fractions=[]"), (dict(fractions=[0, .1]), "above 0"), (dict(fractions=[.1, 20]), "at most at 1"), (dict(fractions=[-.1]), "above 0"),
    (dict(fractions=[np.nan]), "above 0"), (dict(fractions=[.1, .5, .1]), "twice"), (dict(draws=0), "draws=0"), (dict(draws=-2), "draws=-2"),
    (dict(draws=1.5), "draws=1.5"), (dict(draws=True), "draws=True"), (dict(seed=-1), "seed=-1"), (dict(seed="x"), "seed='x'"), (dict(seed=None), "seed=None"),
], ids=str)
def test_refuses_before_it_fits(arguments, words, pair, monkeypatch):
    monkeypatch.setattr("medstrat.evaluation.labels.probe_predict", lambda *a, **k: pytest.fail("fitted"))
    with pytest.raises(ValueError) as e: label_efficiency(*pair, **arguments)
    assert words in str(e.value)


def test_refuses_splits_that_do_not_fit(pair):
    train, test = pair
    with pytest.raises(ValueError, match="all 5 training images have the label 2"): label_efficiency(Encoded(np.zeros((5, 6)), [0] * 5, [2] * 5), test)
    with pytest.raises(ValueError, match="share their embedding"): label_efficiency(train, train)
    with pytest.raises(ValueError, match="4 dimensions, train 6"): label_efficiency(train, make(30, d=4))


def test_nothing_is_said_on_easy_data(pair):
    with warnings.catch_warnings():
        warnings.simplefilter("error")      # no ConvergenceWarning, however few the labels
        label_efficiency(make(100, shift=50), make(50, seed=1, shift=50), draws=2)


# --- mean and spread ---------------------------------------------------------------------------

def test_summary_against_brute_force(curve):
    got = summarise_label_efficiency(curve, score="balanced_accuracy", level=.5).set_index("fraction")
    for f, group in curve.groupby("fraction"):
        x = np.sort(group.balanced_accuracy)
        at = lambda q, x=x: np.interp(np.clip(q * (len(x) + 1), 1, len(x)), np.arange(1, len(x) + 1), x)
        assert got.loc[f, ["n", "n_labels"]].tolist() == [len(x), group.n_labels.iloc[0]]
        np.testing.assert_allclose(got.loc[f, ["mean", "low", "high"]].astype(float), [x.mean(), at(.25), at(.75)])


def test_wider_levels_are_wider(curve):
    a, b = (summarise_label_efficiency(curve, level=level) for level in (.3, .8))
    assert (b.low <= a.low).all() and (b.high >= a.high).all() and (b.high > a.high).any()


def test_runs_are_pooled(curve):
    facts = dict(model="A", dataset="x", preset="best", parameters="", protocol=1, scored_on="test", interrupted=False)
    seed = lambda s, shift=0., **more: curve.assign(seed=s, accuracy=curve.accuracy + shift, **{**facts, **more})
    got = summarise_label_efficiency(pd.concat([seed(0), seed(1, -.1), seed(2, -.2)]))
    assert got.n.tolist() == [12] * 5 + [3]
    np.testing.assert_allclose(got["mean"], summarise_label_efficiency(curve)["mean"] - .1)
    assert got.high.iloc[-1] - got.low.iloc[-1] == pytest.approx(.2)       # at 100 %, the spread over runs is left
    same = summarise_label_efficiency(pd.concat([seed(0, -.3), seed(0)]))  # a seed counts once, the later one
    pd.testing.assert_frame_equal(same, summarise_label_efficiency(curve))
    pd.testing.assert_frame_equal(summarise_label_efficiency(pd.concat([seed(0), seed(1, -.4, interrupted=True)])), same)
    for column, value in dict(model="B", dataset="y", preset="paper", parameters="k=1", protocol=2, scored_on="val").items():
        with pytest.raises(ValueError, match=f"differ in {column}"): summarise_label_efficiency(pd.concat([seed(0), seed(1, **{column: value})]))
    with pytest.raises(ValueError, match="interrupted"): summarise_label_efficiency(seed(0, interrupted=True))


@pytest.mark.parametrize("arguments, words", [(dict(score="f1"), "score='f1'"), (dict(level=0), "level=0"), (dict(level=80), "0.8")], ids=str)
def test_summary_refuses(arguments, words, curve):
    with pytest.raises(ValueError) as e: summarise_label_efficiency(curve, **arguments)
    assert words in str(e.value)


# --- the picture -------------------------------------------------------------------------------

def legible(fig):
    "Drawable, closed, not too wide; no two texts of ticks and legend overlap, and none leaves the figure"
    FigureCanvasAgg(fig).draw()
    ax, = fig.axes
    texts = [t for t in [*ax.get_xticklabels(), *ax.get_legend().get_texts(), ax.get_legend().get_title()] if t.get_text()]
    boxes = [t.get_window_extent() for t in texts]
    assert not plt.get_fignums() and fig.get_size_inches()[0] <= 9.01
    for p, q in combinations(boxes, 2): assert min(p.x1, q.x1) - max(p.x0, q.x0) <= 1 or min(p.y1, q.y1) - max(p.y0, q.y0) <= 1
    assert all(b.x1 <= fig.bbox.x1 + 1 and b.y0 >= -1 for b in boxes)
    return ax


@pytest.mark.parametrize("n", [1, 3, 14])
@pytest.mark.parametrize("name", ["m{}", "a method with parameters=that are rather long, and more={}"])
def test_curves_are_legible(n, name, curve):
    ax = legible(plot_label_efficiency({name.format(i): curve.assign(accuracy=curve.accuracy - i / 50, n_labels=curve.n_labels * 150) for i in range(n)}, majority_rate=.4))
    ends = [line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata()) == 6]
    assert len(ends) == n and ends == sorted(ends, reverse=True)
    assert len({(line.get_marker(), tuple(line.get_color())) for line in ax.lines[:n]}) == n and len({line.get_marker() for line in ax.lines[:n]}) == n
    assert [t.get_text() for t in ax.get_xticklabels()][0].startswith("1 %\n") and ax.get_xticklabels()[-1].get_text() == "100 %\n60,000"
    assert ax.get_xscale() == "log" and "0.400" in ax.get_legend().get_texts()[-1].get_text()


@pytest.mark.parametrize("fractions", [[.1], [.001, 1], np.arange(1, 11) / 10, [.9, .95, 1], np.geomspace(.01, 1, 40).clip(max=1)])
def test_any_fractions_are_legible(fractions):
    n = len(fractions)
    ax = legible(plot_label_efficiency({"a": pd.DataFrame(dict(fraction=fractions, n_labels=10_000 + np.arange(n), draw=0, accuracy=.5, balanced_accuracy=.5))}))
    assert len(ax.get_xticks()) == n and ax.get_xticklabels()[-1].get_text()


def test_methods_may_have_different_fractions(curve):
    ax = legible(plot_label_efficiency({"a": curve, 3: curve[curve.fraction >= .1]}, score="balanced_accuracy"))
    assert ax.get_ylabel() == "balanced accuracy" and len(ax.get_xticks()) == 6


@pytest.mark.parametrize("draw, words", [
    (lambda c: plot_label_efficiency({}), "no curves"),
    (lambda c: plot_label_efficiency({"a": c.head(0)}), "no label-efficiency curves"),
    (lambda c: plot_label_efficiency({"a": c, "b": c.assign(n_labels=c.n_labels + 1)}), "different training sets"),
    (lambda c: plot_label_efficiency({"a": c}, .5, score="balanced_accuracy"), "majority rate"),
    (lambda c: plot_label_efficiency({"a": c}, score="nmi"), "score='nmi'"),
])
def test_the_picture_refuses(draw, words, curve):
    with pytest.raises(ValueError) as e: draw(curve)
    assert words in str(e.value) and not plt.get_fignums()
