"""Encoded splits and the scores of an embedding: bad input, and answers found in another way."""
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from medstrat.evaluation.metrics import (
    Encoded,
    bootstrap_interval,
    classification_scores,
    join,
    knn_predict,
    paper_probe_predict,
    probe_predict,
    stratified_subset,
)


def make(n, d=6, classes=3, clusters=5, seed=0, shift=2.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    z = rng.normal(size=(n, d)) + shift * np.eye(classes, d)[y]
    return Encoded(z, (y + classes * rng.integers(0, 2, n)) % clusters, y)


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


def test_splits_of_two_encoders_cannot_be_joined():
    with pytest.raises(ValueError, match="6 and 4 dimensions"): join(make(9), make(9, d=4))


# --- probes and neighbours ---------------------------------------------------------------------

def test_knn_neighbours_are_exact():
    train, test = make(400, d=20, shift=.5), make(50, d=20, seed=3, shift=.5)
    distance = np.linalg.norm(test.embedding[:, None].astype(float) - train.embedding, axis=-1)
    votes = [np.bincount(train.labels[i]).argmax() for i in np.argsort(distance, axis=1)[:, :7]]
    np.testing.assert_array_equal(knn_predict(train, test.embedding, k=7), votes)


@pytest.mark.parametrize("k", [0, 31])
def test_neighbours_that_are_not_there(k):
    with pytest.raises(ValueError, match=f"k={k} .* 30 training images"): knn_predict(make(30), make(5).embedding, k)


def test_probe_warns_when_not_converged():
    with pytest.warns(ConvergenceWarning): probe_predict(make(300), make(5).embedding, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe_predict(make(300), make(5).embedding)


def test_the_probe_takes_the_scale_it_is_given():
    train, z = make(300, shift=.5), make(200, seed=5, shift=.5).embedding
    scale, predicted = lambda x: StandardScaler().fit(x.astype(float)), probe_predict(train, z)
    np.testing.assert_array_equal(probe_predict(train, z, scale=scale(train.embedding)), predicted)
    assert (probe_predict(train, z, scale=scale(1e4 * train.embedding)) != predicted).any(), "the penalty is overwhelming then"


def test_subsets_hold_each_image_once_and_depend_on_the_seed():
    labels = make(300).labels
    subset = stratified_subset(labels, .2)
    assert len(np.unique(subset)) == len(subset) == 60 and not np.array_equal(subset, stratified_subset(labels, .2, seed=1))
    for fraction in (0, 20, np.nan):
        with pytest.raises(ValueError, match="0.2"): stratified_subset(labels, fraction)


def test_paper_probe_depends_on_its_seed_alone():
    import torch
    train, z = make(300, shift=.3), make(200, seed=5, shift=.3).embedding
    torch.manual_seed(1)
    a = paper_probe_predict(train, z, epochs=3)
    torch.manual_seed(2)
    with torch.no_grad(): np.testing.assert_array_equal(a, paper_probe_predict(train, z, epochs=3))
    assert (a != paper_probe_predict(train, z, epochs=3, seed=1)).any()


# --- scores ------------------------------------------------------------------------------------

def test_scores_of_a_constant_guess():
    scores = classification_scores(np.array([0] * 6 + [1] * 3 + [2]), np.zeros(10, int))
    assert scores == pytest.approx({"accuracy": .6, "balanced_accuracy": 1 / 3, "precision": .2, "recall": 1 / 3})


def test_a_label_that_was_never_shown_counts_as_wrong():
    assert classification_scores(np.array([0, 2]), np.array([0, 1]))["accuracy"] == .5


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 5))
def test_interval_holds_the_estimate(n, right, seed):
    correct = np.arange(n) < right
    low, high = bootstrap_interval(correct, seed=seed)
    assert 0 <= low <= correct.mean() <= high <= 1
    assert (low, high) == bootstrap_interval(correct, seed=seed)
