"""Evaluation: bad input, properties, and figures for 2 and 40 clusters, gray and RGB."""
import json
import os
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
from sklearn.exceptions import ConvergenceWarning

from medstrat.parts.choice import choose_n_clusters, find_elbow
from medstrat.data.pictures import (
    cluster_colors,
    example_images,
    plot_prototypes,
    plot_reconstructions,
    style,
)
from medstrat.parts.figures import embed_2d, plot_composition, plot_embedding, plot_history
from medstrat.evaluation.metrics import (
    Encoded,
    bootstrap_interval,
    classification_scores,
    join,
    knn_predict,
    paper_probe_predict,
    probe_predict,
)
from medstrat.parts.matching import StatisticalMapping, one_to_one
from medstrat.evaluation.protocol import evaluate


# --- properties --------------------------------------------------------------------------------

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


# --- choice of K -------------------------------------------------------------------------------

@pytest.mark.parametrize("embedding, candidates, words", [
    (np.zeros(5), range(2, 5), "(5,)"),
    (np.zeros((3, 2)), range(2, 9), "only 3 points"),
    (np.full((9, 2), np.nan), range(2, 5), "NaN"),
    (np.random.default_rng(0).normal(size=(9, 2)), [2, 3], "at least three"),
    (np.random.default_rng(0).normal(size=(9, 2)), [0, 2, 3], "≥ 1"),
])
def test_choice_refuses(embedding, candidates, words):
    with pytest.raises(ValueError) as e: choose_n_clusters(embedding, candidates)
    assert words in str(e.value)


def test_choice_without_an_elbow_explains():
    for curve in (np.zeros(5), 10. - np.arange(5)):
        with pytest.raises(ValueError, match="pass n_clusters"): find_elbow(np.arange(2, 7), curve)


def test_choice_finds_blobs_and_repeats():
    rng = np.random.default_rng(0)
    z = 20 * rng.normal(size=(6, 4))[rng.integers(6, size=500)] + rng.normal(size=(500, 4))
    choice = choose_n_clusters(z, range(2, 15), random_state=3)
    assert choice.n_clusters == 6 and choice.n_points == 500
    np.testing.assert_array_equal(choice.inertia, choose_n_clusters(z, range(2, 15), random_state=3).inertia)
    assert choice.plot().axes[0].get_xlabel() == "number of clusters K" and not plt.get_fignums()


# --- figures -----------------------------------------------------------------------------------

def pictures(n, kind, dtype, size=12):
    x = np.random.default_rng(0).random((n, size, size, 3) if kind == "rgb" else (n, size, size, 1) if kind == "gray1" else (n, size, size))
    return (255 * x).astype(np.uint8) if dtype == "uint8" else x.astype(dtype)


def overlapping(fig, texts):
    "Pairs of texts whose boxes overlap by more than a pixel when drawn."
    FigureCanvasAgg(fig).draw() # a closed figure has no canvas of its own
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()]
    return [(a, b) for (a, p), (b, q) in combinations(boxes, 2)
            if min(p.x1, q.x1) - max(p.x0, q.x0) > 1 and min(p.y1, q.y1) - max(p.y0, q.y0) > 1]


def check(fig):
    "Not left open in pyplot, not wider than a notebook, and drawable."
    assert not plt.get_fignums() and fig.get_size_inches()[0] <= 9.01
    FigureCanvasAgg(fig).draw()
    return fig


@pytest.mark.parametrize("kind", ["gray", "gray1", "rgb"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_pictures_of_every_kind(kind, dtype):
    x = pictures(40, kind, dtype)
    check(plot_reconstructions(x, x))
    check(plot_reconstructions(x[:1], x[:1]))
    check(example_images(x, np.arange(40) % 7, n=4, scores=np.arange(40.)))
    for K in (1, 2, 40): check(plot_prototypes(x[:K], np.arange(K)))


@pytest.mark.parametrize("K", [1, 2, 11, 13, 40, 100])
@pytest.mark.parametrize("size", [8, 28, 128])
def test_prototype_captions_do_not_overlap(K, size):
    sizes = np.random.default_rng(1).integers(0, 12_345, K)
    sizes[0] = 0
    fig = check(plot_prototypes(pictures(K, "gray", "uint8", size), sizes, names=["a rather long diagnosis"] * K))
    captions = fig.axes[0].texts
    assert len(captions) == K and not overlapping(fig, captions)
    assert captions[-1].get_text().startswith("0: dead")
    numbers = [int(t.get_text().split(":")[0]) for t in captions]
    assert numbers == np.argsort(-sizes, kind="stable").tolist()


def test_prototypes_in_their_own_order_and_without_sizes():
    x = pictures(3, "gray", "uint8")
    assert [t.get_text() for t in plot_prototypes(x, [1, 2, 3], order_by_size=False).axes[0].texts] == ["0: n=1", "1: n=2", "2: n=3"]
    assert [t.get_text() for t in plot_prototypes(x, names={1: "b"}).axes[0].texts] == ["0\n0", "1\nb", "2\n2"]


@pytest.mark.parametrize("K", [2, 40])
@pytest.mark.parametrize("with_prototypes", [True, False])
def test_embedding_pair_is_legible(K, with_prototypes):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, 2)) * 10
    clusters = rng.integers(K, size=800)
    xy = centres[clusters] + rng.normal(size=(800, 2))
    fig = check(plot_embedding(xy, np.arange(800) % 3, clusters, centres if with_prototypes else None, classes={0: "normal", 1: "pneumonia", 2: "other"}))
    left, right = fig.axes
    assert sorted(int(t.get_text()) for t in right.texts) == list(range(K))
    assert not overlapping(fig, right.texts)
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["normal", "pneumonia", "other"]


def test_embedding_pair_survives_odd_maps():
    check(plot_embedding(np.zeros((3, 2)), [0, 1, 1], [0, 0, 3]))
    check(plot_embedding(np.zeros((1, 2)), [0], [0], np.zeros((2, 2))))
    check(plot_embedding(np.c_[np.arange(50.), np.zeros(50)], np.arange(50) % 2, np.arange(50) % 4))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
def test_tiny_embeddings(n):
    z = np.random.default_rng(0).normal(size=(n, 4))
    xy, index, prototypes = embed_2d(z, z[:1])
    assert xy.shape == (n, 2) and prototypes.shape == (1, 2) and np.isfinite(xy).all() and index.tolist() == list(range(n))


def test_embedding_is_subsampled_and_repeats():
    z = np.random.default_rng(0).normal(size=(200, 4))
    xy, index, none = embed_2d(z, max_points=90, seed=4)
    again, index_again, _ = embed_2d(z, max_points=90, seed=4)
    assert none is None and len(np.unique(index)) == 90 and (np.diff(index) > 0).all()
    np.testing.assert_array_equal(xy, again)
    np.testing.assert_array_equal(index, index_again)
    assert np.isfinite(embed_2d(np.ones((30, 3)))[0]).all()


@pytest.mark.parametrize("K", [2, 40, 80])
def test_composition_is_legible(K):
    rng = np.random.default_rng(0)
    fig = check(plot_composition(rng.integers(K, size=4000), rng.integers(9, size=4000)))
    assert len(fig.axes[1].get_xticklabels()) == K
    assert not overlapping(fig, fig.axes[1].get_xticklabels())
    heights = np.array([p.get_height() for p in fig.axes[1].patches]).reshape(9, K)
    np.testing.assert_allclose(heights.sum(0), 1)


def test_composition_of_any_column():
    fig = check(plot_composition(np.array([3, 3, 8]), np.array(["PA", "AP", "PA"]), top=1))
    assert [t.get_text() for t in fig.axes[1].get_xticklabels()] == ["3"]
    with pytest.raises(ValueError, match="pd.cut"): plot_composition(np.zeros(99, int), np.arange(99))


@pytest.mark.parametrize("n_terms", [1, 2, 7])
def test_history_of_any_shape(n_terms):
    rows = [{"phase": p, "epoch": e, "loss": 1., "lr": .1, "seconds": 1.} | {f"{v}t{i}": float(e) for i in range(n_terms - 1) for v in ("", "val_")} for p in "abcd" for e in range(3)]
    fig = check(plot_history(pd.DataFrame(rows)))
    assert [ax.get_title() for ax in fig.axes if ax.get_visible()] == ["loss", *(f"t{i}" for i in range(n_terms - 1))]
    assert not overlapping(fig, fig.legends[0].get_texts())
    assert {"phase: a", "phase: b", "phase: c", "phase: d", "training"} <= {t.get_text() for t in fig.legends[0].get_texts()}


@pytest.mark.parametrize("draw, words", [
    (lambda: plot_reconstructions(np.zeros((2, 4, 4)), np.zeros((2, 5, 5))), "do not pair"),
    (lambda: plot_reconstructions(np.zeros((2, 4, 4)), np.full((2, 4, 4), 2.)), "reconstructions are float64 from 2 to 2"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4, 2))), "(2, 4, 4, 2)"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4), np.int64)), "int64"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4)), sizes=[1]), "one number a cluster"),
    (lambda: plot_embedding(np.zeros((2, 2)), [0, 1], [0]), "labels[index]"),
    (lambda: plot_history(pd.DataFrame({"phase": ["a"], "lss": [1.]})), "lss"),
    (lambda: plot_history(pd.DataFrame({"phase": [], "loss": []})), "0 rows"),
    (lambda: example_images(np.zeros((2, 4, 4)), [0]), "2 images, 1 clusters"),
    (lambda: plot_composition([0, 1], [0]), "2 clusters and 1 values"),
    (lambda: embed_2d(np.zeros((3, 2)), np.zeros((1, 5))), "same number of columns"),
    (lambda: embed_2d(np.full((3, 2), np.nan)), "NaN"),
])
def test_figures_refuse(draw, words):
    with pytest.raises(ValueError) as e: draw()
    assert words in str(e.value) and not plt.get_fignums()


def test_style_leaves_no_trace():
    before = dict(plt.rcParams)
    with style(): assert plt.rcParams["font.size"] == 9
    plot_composition([0, 1], [0, 1])
    assert dict(plt.rcParams) == before
    assert len(np.unique(cluster_colors(30).round(5), axis=0)) == 30
