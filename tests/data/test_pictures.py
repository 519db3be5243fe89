"Pictures of images: gray and RGB, bytes and floats, one image or a hundred clusters; what is refused; one look."

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import check, overlapping

from medstrat.data.pictures import (
    cluster_colors,
    drawn,
    example_images,
    mosaic,
    plot_prototypes,
    plot_reconstructions,
    readable_names,
    style,
    unit_images,
)


def pictures(n, kind, dtype, size=12):
    x = np.random.default_rng(0).random((n, size, size, 3) if kind == "rgb" else (n, size, size, 1) if kind == "gray1" else (n, size, size))
    return (255 * x).astype(np.uint8) if dtype == "uint8" else x.astype(dtype)


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


def test_examples_are_the_most_typical_and_blanks_are_white():
    x = pictures(20, "gray", "float64", 8)
    clusters, score = np.r_[np.zeros(17, int), np.full(3, 7)], np.arange(20.)
    fig = check(example_images(x, clusters, n=4, scores=score, max_clusters=1))
    assert [t.get_text() for t in fig.axes[0].texts] == ["cluster 0\nn=17"] and np.array_equal(fig.axes[0].images[0].get_array()[:, :8], x[16])
    fig = check(example_images(x, clusters, n=4))
    canvas = fig.axes[0].images[0].get_array()
    assert [t.get_text() for t in fig.axes[0].texts] == ["cluster 0\nn=17", "cluster 7\nn=3"] and np.array_equal(canvas[9:, :8], x[17]) and (canvas[9:, 27:] == 1).all()


def test_a_mosaic_and_its_corners():
    x = pictures(7, "gray", "float64", 8)
    fig, ax = plt.subplots()
    corner, gap = mosaic(ax, x, 5, header=2)
    plt.close(fig)
    canvas = ax.images[0].get_array()
    assert canvas.shape == (2 * 10 + 1, 5 * 9 - 1) and gap == 1 and (corner[6] + .5 == [9, 13]).all() and np.array_equal(canvas[13:21, 9:17], x[6])


def test_names_of_codes():
    assert readable_names([0, 2], {0: "normal", 2: "pneumonia"}) == ["normal", "pneumonia"] and readable_names([0, 2, -1], ["a", "b"]) == ["a", "2", "no label"]
    assert readable_names([0, 2]) == ["0", "2"]


@pytest.mark.parametrize("draw, words", [
    (lambda: plot_reconstructions(np.zeros((2, 4, 4)), np.zeros((2, 5, 5))), "do not pair"),
    (lambda: plot_reconstructions(np.zeros((2, 4, 4)), np.full((2, 4, 4), 2.)), "reconstructions are float64 from 2 to 2"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4, 2))), "(2, 4, 4, 2)"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4), np.int64)), "int64"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4)), sizes=[1]), "one number a cluster"),
    (lambda: example_images(np.zeros((2, 4, 4)), [0]), "2 images, 1 clusters"),
    (lambda: plot_reconstructions(np.zeros((2, 4, 4)), np.zeros((3, 4, 4)), n=1), "do not pair"),
    (lambda: example_images(np.zeros((2, 4, 4)), [0, 1], scores=[1]), "2 images, 2 clusters and 1 scores"),
    (lambda: unit_images(np.full((2, 4, 4), np.nan)), "nan"),
    (lambda: unit_images(np.zeros((4, 4))), "(4, 4)"),
    (lambda: unit_images(np.zeros((0, 4, 4)), "originals"), "originals have shape (0, 4, 4)"),
])
def test_pictures_refuse(draw, words):
    with pytest.raises(ValueError) as e: draw()
    assert words in str(e.value) and not plt.get_fignums()


def test_style_leaves_no_trace():
    before = dict(plt.rcParams)
    with style(): assert plt.rcParams["font.size"] == 9
    check(drawn(lambda: plt.figure(figsize=(3, 2)))())
    assert dict(plt.rcParams) == before


def test_colors():
    assert cluster_colors(40).shape == (40, 3) and len(np.unique(cluster_colors(30).round(5), axis=0)) == 30 and np.array_equal(cluster_colors(40)[30:], cluster_colors(10))
