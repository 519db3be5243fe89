"Signs that a fit has not worked: each measure against another way to compute it."
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mutual_info_score

from medstrat.training.signs import (
    ENOUGH,
    Rebuilt,
    clusters_in_use,
    collapsed_embedding,
    collapsed_posterior,
    entropy,
    labels_changing,
    loss_falling,
    no_better_than_mean,
    uniform_responsibilities,
)


def test_the_information_of_hard_assignments_is_that_of_their_table():
    "For hard assignments the mutual information of image and cluster is the entropy of the labels"
    labels = np.random.default_rng(0).integers(0, 4, 200)
    r = torch.eye(4)[labels]
    assert float(entropy(r.mean(0)) - entropy(r).mean()) == pytest.approx(mutual_info_score(np.arange(200), labels), rel=1e-5)


@pytest.mark.parametrize("own, joint, k, doubt", [
    (2.30, 2.3025, 10, True),       # uniform
    (1.0, 1.0, 10, True),           # the same for all, not uniform
    (0.0, 0.0, 10, False),          # hard, all in one cluster: the sizes say so
    (0.0, 2.30, 10, False),         # hard, as many images in each
    (1.8, 2.29, 10, False),         # soft, as DEC's are
    (2.29, 2.3025, 10, True)])
def test_uniform_responsibilities(own, joint, k, doubt): assert bool(uniform_responsibilities(own, joint, k)) == doubt


@pytest.mark.parametrize("sizes, name", [
    ([10] * 10, None), ([30, 5, 5, 5, 5, 5, 5, 5, 5, 5], None), ([60, 40], None), ([85, 15], None),
    ([95, 5], "few-clusters"), ([91, 1, 1, 1, 1], "few-clusters"), ([10, 0, 10, 10], "empty-clusters"),
    ([40, 40, 1, 1, 1, 1, 1, 1, 1, 1], "few-clusters"), ([5] * 4 + [0] * 16, "few-clusters"), ([1, 0], "few-clusters")])
def test_clusters_in_use(sizes, name): assert clusters_in_use(np.repeat(np.arange(len(sizes)), sizes), len(sizes))[0] == name


def test_empty_clusters_have_their_numbers():
    text = clusters_in_use(np.array([0, 1, 3, 3]), 5)[1]
    assert "2 of 5 clusters are empty (numbers 2, 4)" in text and "In use: 3 of 5 clusters, as uneven as 2.8" in text and "the largest has 50%" in text
    assert "1 of 4 clusters is empty (number 2)" in clusters_in_use(np.array([0, 1, 3, 3]), 4)[1]
    assert "(numbers 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)" in clusters_in_use(np.zeros(9, int), 20)[1]


def test_collapsed_embeddings():
    rng = np.random.default_rng(0)
    def found(z, trained=True): return collapsed_embedding(z.var(0), np.square(z).mean(0), trained)
    z = rng.normal(size=(100, 8))
    assert found(z) is None and found(z + 50) is None and found(1e-6 * z) is None
    assert "nearly the same embedding" in found(z + 1000) and "nearly the same embedding" in found(np.ones((5, 3))) and "nearly" in found(np.zeros((5, 3)))
    z[:, :5] = 1.0
    assert "5 of 8 dimensions of the embedding are the same" in found(z) and found(z, trained=False) is None
    z[:, 4] = rng.normal(size=100)
    assert found(z) is None     # half of them


def test_what_a_posterior_carries():
    "By the channel's capacity: one dimension with signal-to-noise ratio e^(2 s log K) - 1 carries s log K nats exactly"
    just = 10.0 ** (2 * ENOUGH) - 1
    assert collapsed_posterior(np.array([1.001 * just, 0]), np.ones(2), 10) is None
    text = collapsed_posterior(np.array([0.999 * just, 0]), np.ones(2), 10)
    assert f"at most {ENOUGH * math.log(10):.2f} nats" in text and "tell 10 clusters apart takes 2.30" in text and "1 of 2 dimensions carry" in text
    assert collapsed_posterior(np.ones(3), np.zeros(3), 10) is None     # no noise at all


@pytest.mark.parametrize("codes", [False, True])
def test_the_yardstick_is_a_regression_on_the_condition(codes):
    rng = np.random.default_rng(0)
    y = np.eye(3)[rng.integers(0, 3, 90)] if codes else np.zeros((90, 0))
    if codes: y = np.concatenate([y, rng.normal(size=(90, 1))], 1)      # a category, and a number
    x = rng.normal(size=(90, 2, 4, 5)) + (y @ rng.normal(size=(y.shape[1], 40))).reshape(90, 2, 4, 5) + 3
    guess = x + rng.normal(size=x.shape)
    flat, seen = x.reshape(90, -1), Rebuilt()
    left = flat - (LinearRegression().fit(y, flat).predict(y) if codes else flat.mean(0))
    for i in range(0, 90, 40): seen.add(*(torch.from_numpy(t[i:i + 40]) for t in (x, guess)), torch.from_numpy(y[i:i + 40]) if codes else None)
    assert seen.ratio() == pytest.approx(np.square(x - guess).sum() / np.square(left).sum(), rel=1e-6)


def test_where_there_is_nothing_to_compare_with():
    same, seen = torch.ones(4, 1, 2, 2), Rebuilt()
    seen.add(same, same)
    assert seen.ratio() is None and no_better_than_mean(None) is None
    x, few = torch.rand(12, 1, 2, 2), Rebuilt()     # as many codes as images explain everything: held against the mean alone
    few.add(x, x.mean(0).expand_as(x), torch.eye(12))
    assert few.ratio() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("losses, doubt", [
    ([20, 12, 9, 8, 7.8], False), ([20, 19, 18, 17, 16], True), ([20, 10], False), ([20], False), ([], False),
    ([5, 5, 5, 5], False), ([5, 6, 7, 8], False), ([20, 10, 10, 9.95], False), ([1, float("nan"), 0], False),
    (list(np.linspace(3, 1, 50)), True), (list(1 + 2 * np.exp(-np.arange(50) / 5)), False), ([100, 100 - 1e-6, 100 - 2e-6], False), ([-1, -2, -3, -4], True)])
def test_falling_losses(losses, doubt): assert bool(loss_falling("train", losses)) == doubt


@pytest.mark.parametrize("changed, tol, doubt", [(.001, 0, False), (.019, .001, False), (.05, .001, True), (.05, .1, False), (1.0, .001, False)])
def test_changing_labels(changed, tol, doubt): assert bool(labels_changing(changed, tol)) == doubt
