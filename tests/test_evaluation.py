"""Evaluation: bad input, properties, and figures for 2 and 40 clusters, gray and RGB."""
import json
import os
import warnings
from itertools import combinations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.exceptions import ConvergenceWarning

from medstrat.data.pictures import (
    cluster_colors,
    example_images,
    plot_prototypes,
    plot_reconstructions,
    style,
)
from medstrat.parts.figures import plot_composition
from medstrat.evaluation.metrics import (
    Encoded,
    bootstrap_interval,
    classification_scores,
    join,
    knn_predict,
    paper_probe_predict,
    probe_predict,
)
from medstrat.evaluation.protocol import evaluate


def make(n, d=6, classes=3, clusters=5, seed=0, shift=2.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    z = rng.normal(size=(n, d)) + shift * np.eye(classes, d)[y]
    return Encoded(z, (y + classes * rng.integers(0, 2, n)) % clusters, y)


def splits(): return {"train": make(300), "val": make(60, seed=1), "test": make(90, seed=2)}


# --- input that cannot be scored ---------------------------------------------------------------

@pytest.mark.parametrize("embedding, clusters, labels, words", [
    (np.zeros(4), [0] * 4, [0] * 4, "(4,)"),
    (np.zeros((0, 2)), [], [], "(0, 2)"),
    (np.zeros((4, 0)), [0] * 4, [0] * 4, "(4, 0)"),
    (np.full((4, 2), np.inf), [0] * 4, [0] * 4, "4 of 4 rows"),
    (np.full((4, 2), 1e300), [0] * 4, [0] * 4, "infinite"),
    (np.zeros((4, 2)), [0] * 3, [0] * 4, "clusters has shape (3,)"),
    (np.zeros((4, 2)), [0] * 4, np.zeros((4, 1), int), "labels.ravel()"),
    (np.zeros((4, 2)), [0] * 4, [0., 1., 0., 1.], "float64"),
    (np.zeros((4, 2)), [0] * 4, ["a", "b", "a", "b"], "whole numbers"),
    (np.zeros((4, 2)), [0, -1, 0, 0], [0] * 4, "contains -1"),
])
def test_encoded_refuses(embedding, clusters, labels, words):
    with pytest.raises(ValueError) as e: Encoded(embedding, clusters, labels)
    assert words in str(e.value)


def test_encoded_accepts_tensors_and_stays_as_it_is():
    import torch
    e = Encoded(torch.ones(3, 2), torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0]))
    assert e.embedding.dtype == np.float32 and e.labels.tolist() == [1, 1, 0] and len(e) == 3
    with pytest.raises(AttributeError): e.labels = np.zeros(3)


@pytest.mark.parametrize("change, arguments, words", [
    (lambda s: s.pop("train"), {}, "lacks ['train']"),
    (lambda s: s.pop("val"), {"on": "val+test"}, "lacks ['val']"),
    (lambda s: s.update(tets=s["test"]), {}, "tets"),
    (lambda s: s.update(test=s["train"]), {}, "share their embedding"),
    (lambda s: s.update(test=make(9, d=4)), {}, "4 dimensions, train 6"),
    (lambda s: None, {"on": "train"}, "never on train"),
    (lambda s: None, {"n_clusters": 3}, "n_clusters=3"),
    (lambda s: None, {"k": 0}, "k=0"),
    (lambda s: None, {"probe_fraction": 20}, "0.2"),
    (lambda s: None, {"n_boot": 0}, "n_boot=0"),
])
def test_evaluate_refuses(change, arguments, words):
    s = splits()
    change(s)
    with pytest.raises(ValueError) as e: evaluate(s, **({"n_clusters": 5} | arguments))
    assert words in str(e.value)


# --- the protocol ------------------------------------------------------------------------------

def test_evaluation_is_complete_reproducible_and_json():
    result = evaluate(splits(), n_clusters=5)
    m = result.metrics
    assert json.loads(json.dumps(m)) == m == evaluate(splits(), n_clusters=5).metrics
    for row in ("stat", "knn", "probe", "paper_probe", "one_to_one"):
        assert {f"{row}_{s}" for s in ("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "precision", "recall")} <= set(m)
        assert m[f"{row}_accuracy"] == np.mean(result.predictions[row] == splits()["test"].labels)
    assert {"nmi", "ari", "majority_rate", "n_clusters", "active_clusters", "n_scored", "n_train", "scored_on", "k_neighbors", "probe_fraction"} <= set(m)
    assert (m["n_scored"], m["n_train"], m["scored_on"], m["k_neighbors"]) == (90, 300, "test", 5)
    assert result.table().shape == (5, 5) and "scored on test (90 images)" in repr(result)


def test_scoring_data_never_reaches_a_fit():
    s = splits()
    base = evaluate(s, n_clusters=5).predictions
    t = s["test"]
    other = evaluate({**s, "val": make(7, seed=9), "test": Encoded(t.embedding, t.clusters, (t.labels + 1) % 3)}, n_clusters=5).predictions
    for row in ("stat", "knn", "probe", "paper_probe"): np.testing.assert_array_equal(base[row], other[row])
    half = evaluate({**s, "test": Encoded(t.embedding[:40], t.clusters[:40], t.labels[:40])}, n_clusters=5).predictions
    for row in ("stat", "knn", "probe", "paper_probe"): np.testing.assert_array_equal(base[row][:40], half[row])


def test_val_and_test_together():
    s = splits()
    m = evaluate(s, n_clusters=5, on="val+test").metrics
    assert m["scored_on"] == "val+test" and m["n_scored"] == 150
    assert m == evaluate({"train": s["train"], "test": join(s["val"], s["test"])}, n_clusters=5).metrics | {"scored_on": "val+test"}


def test_unseen_and_missing_classes():
    s = splits()
    s["train"] = Encoded(*(getattr(s["train"], f)[s["train"].labels < 2] for f in ("embedding", "clusters", "labels")))
    m = evaluate(s, n_clusters=5).metrics
    assert all(m[f"{r}_accuracy"] <= 2 / 3 for r in ("stat", "knn", "probe", "paper_probe"))
    only = s["test"].labels == 0
    s["test"] = Encoded(s["test"].embedding[only], s["test"].clusters[only], s["test"].labels[only])
    m = evaluate(s, n_clusters=5).metrics
    assert m["majority_rate"] == 1 and m["knn_balanced_accuracy"] == m["knn_accuracy"]


def test_one_class_one_image_constant_embedding():
    train = Encoded(np.ones((8, 3)), [0] * 8, [4] * 8)
    m = evaluate({"train": train, "test": Encoded(np.ones((1, 3)), [0], [4])}, n_clusters=1).metrics
    assert all(m[f"{r}_accuracy"] == 1 for r in ("stat", "knn", "probe", "paper_probe", "one_to_one"))


def test_codes_need_not_be_dense():
    s = {k: Encoded(e.embedding, e.clusters, e.labels * 100 + 7) for k, e in splits().items()}
    np.testing.assert_allclose([v for v in evaluate(s, n_clusters=5).metrics.values() if isinstance(v, float)],
                               [v for v in evaluate(splits(), n_clusters=5).metrics.values() if isinstance(v, float)])


def test_probe_warns_when_not_converged():
    with pytest.warns(ConvergenceWarning): probe_predict(make(300), make(5).embedding, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe_predict(make(300), make(5).embedding)


def test_paper_probe_depends_on_its_seed_alone():
    import torch
    train, z = make(300, shift=.3), make(200, seed=5, shift=.3).embedding
    torch.manual_seed(1)
    a = paper_probe_predict(train, z, epochs=3)
    torch.manual_seed(2)
    with torch.no_grad(): np.testing.assert_array_equal(a, paper_probe_predict(train, z, epochs=3))
    assert (a != paper_probe_predict(train, z, epochs=3, seed=1)).any()


# --- properties --------------------------------------------------------------------------------

pairs = st.integers(1, 60).flatmap(lambda n: st.tuples(*(st.lists(st.integers(0, 6), min_size=n, max_size=n).map(np.array) for _ in range(2))))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 5))
def test_interval_holds_the_estimate(n, right, seed):
    correct = np.arange(n) < right
    low, high = bootstrap_interval(correct, seed=seed)
    assert 0 <= low <= correct.mean() <= high <= 1
    assert (low, high) == bootstrap_interval(correct, seed=seed)


def test_knn_neighbours_are_exact():
    train, test = make(400, d=20, shift=.5), make(50, d=20, seed=3, shift=.5)
    distance = np.linalg.norm(test.embedding[:, None].astype(float) - train.embedding, axis=-1)
    votes = [np.bincount(train.labels[i]).argmax() for i in np.argsort(distance, axis=1)[:, :7]]
    np.testing.assert_array_equal(knn_predict(train, test.embedding, k=7), votes)


def test_scores_of_a_constant_guess():
    scores = classification_scores(np.array([0] * 6 + [1] * 3 + [2]), np.zeros(10, int))
    assert scores == pytest.approx({"accuracy": .6, "balanced_accuracy": 1 / 3, "precision": .2, "recall": 1 / 3})


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


@pytest.mark.parametrize("draw, words", [
    (lambda: plot_reconstructions(np.zeros((2, 4, 4)), np.zeros((2, 5, 5))), "do not pair"),
    (lambda: plot_reconstructions(np.zeros((2, 4, 4)), np.full((2, 4, 4), 2.)), "reconstructions are float64 from 2 to 2"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4, 2))), "(2, 4, 4, 2)"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4), np.int64)), "int64"),
    (lambda: plot_prototypes(np.zeros((2, 4, 4)), sizes=[1]), "one number a cluster"),
    (lambda: example_images(np.zeros((2, 4, 4)), [0]), "2 images, 1 clusters"),
])
def test_figures_refuse(draw, words):
    with pytest.raises(ValueError) as e: draw()
    assert words in str(e.value) and not plt.get_fignums()


# --- a set that is not embedded ----------------------------------------------------------------

def test_majority_rates_of_pneumoniamnist():
    path = os.path.join(os.environ.get("MEDSTRAT_DATA", ""), "pneumoniamnist.npz")
    if not os.path.isfile(path): pytest.skip("pneumoniamnist.npz is not in the folder named by MEDSTRAT_DATA")
    with np.load(path) as f:
        encoded = {s: Encoded(f[f"{s}_images"].reshape(len(f[f"{s}_images"]), -1)[:, ::40], np.zeros(len(f[f"{s}_labels"]), int), f[f"{s}_labels"].ravel()) for s in ("train", "val", "test")}
    assert evaluate(encoded, n_clusters=1).metrics["majority_rate"] == 390 / 624
    both = evaluate(encoded, n_clusters=1, on="val+test").metrics
    assert both["majority_rate"] == both["stat_accuracy"] == 779 / 1148
