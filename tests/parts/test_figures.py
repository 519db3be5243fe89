"Maps, curves and compositions for 2 and 40 clusters: legible, reproducible, and refused where they would mislead."

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import check, overlapping

from medstrat.parts import figures
from medstrat.parts.figures import embed_2d, plot_composition, plot_embedding, plot_history


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
    (lambda: plot_embedding(np.zeros((2, 2)), [0, 1], [0]), "labels[index]"),
    (lambda: plot_history(pd.DataFrame({"phase": ["a"], "lss": [1.]})), "lss"),
    (lambda: plot_history(pd.DataFrame({"phase": [], "loss": []})), "0 rows"),
    (lambda: plot_composition([0, 1], [0]), "2 clusters and 1 values"),
    (lambda: embed_2d(np.zeros((3, 2)), np.zeros((1, 5))), "same number of columns"),
    (lambda: embed_2d(np.full((3, 2), np.nan)), "NaN"),
])
def test_figures_refuse(draw, words):
    with pytest.raises(ValueError) as e: draw()
    assert words in str(e.value) and not plt.get_fignums()


def test_a_map_keeps_distances_where_there_is_nothing_to_arrange():
    z = np.random.default_rng(0).normal(size=(3, 4))
    xy, _, none = embed_2d(z)
    assert none is None
    np.testing.assert_allclose(np.linalg.norm(xy[0] - xy[1]) ** 2 + np.linalg.norm(xy[1] - xy[2]) ** 2, np.linalg.norm(z[0] - z[1]) ** 2 + np.linalg.norm(z[1] - z[2]) ** 2)
    np.testing.assert_allclose(embed_2d(np.ones((9, 3)))[0], 0)


def test_numbers_are_pushed_apart():
    none = np.zeros((0, 2))
    assert np.isfinite(figures._spread(np.zeros((5, 2)), 0.1, none)).all()
    assert np.linalg.norm(figures._spread(np.zeros((1, 2)), 0.1, np.zeros((1, 2)))) > 0.05      # away from an obstacle


def test_three_panels():
    xy, k = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 4
    fig = check(plot_embedding(xy, k % 2, k, mapped=k % 2))
    assert [ax.get_title() for ax in fig.axes] == ["true labels", "clusters", "labels of the clusters"]
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["0", "1"]
    assert [ax.get_title() for ax in check(plot_embedding(xy, None, k)).axes] == ["clusters"]
    assert sorted(t.get_text() for t in check(plot_embedding(xy, None, k + 4)).axes[0].texts) == ["4", "5", "6", "7"]


def test_one_phase_has_no_shades_to_tell_apart():
    fig = check(plot_history(pd.DataFrame(dict(phase=["a"] * 3, epoch=range(3), loss=1.0))))
    assert len(fig.axes) == 1 and [t.get_text() for t in fig.legends[0].get_texts()] == ["training"]


def test_figures_leave_no_trace():
    before = dict(plt.rcParams)
    plot_composition([0, 1], [0, 1])
    assert dict(plt.rcParams) == before
