"Scaling: against independent computations, and at the edges"
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from medstrat.parts.features import SCALINGS, Scaling, learn_scaling, principal_directions


def f(n=80, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.logspace(-2, 2, d) + 1000 * rng.normal(size=d)).astype(np.float32)


def scaled(x, *how, new=None):
    s = Scaling(x.shape[1], *how)
    s.learn(x)
    return s(torch.from_numpy(x if new is None else new)).numpy()


@pytest.mark.parametrize("how", SCALINGS)
@pytest.mark.parametrize("d", [None, 3])
def test_mean_and_variance(how, d):
    x = scaled(f(), how, d)
    assert x.dtype == np.float32 and x.shape == (80, d or 6)
    np.testing.assert_allclose(x.mean(0, dtype=np.float64), 0, atol=0.02)
    assert abs(x.var(0).mean() - 1) < 1e-3


@pytest.mark.parametrize("how", ["one", "standard"])
def test_components_against_pca(how):
    g = f().astype(np.float64) - f().mean(0, dtype=np.float64)
    if how == "standard": g /= g.std(0)
    expected = PCA(3, svd_solver="full").fit_transform(g)
    expected /= expected.std(0).__pow__(2).mean()**.5
    np.testing.assert_allclose(np.abs(scaled(f(), how, 3)), np.abs(expected), atol=5e-3)


def test_a_constant_feature_and_a_copy():
    "It becomes zero, also where later images differ in it; a copy adds no direction"
    x = f()
    x[:, 2] = 7
    new = x + np.float32(0.5)
    assert (scaled(x, "standard", new=new)[:, 2] == 0).all() and np.isfinite(scaled(x, "standard", new=new)).all()
    twice = np.concatenate([f(), f()], 1)
    w = scaled(twice, "whiten", 12)
    assert np.isfinite(w).all() and (np.abs(w).max(0) > .1).sum() == 6 and (w[:, 6:] == 0).all()
    np.testing.assert_allclose(np.cov(w[:, :6].T, bias=True), 2 * np.eye(6), atol=0.05)      # 12 numbers, on average a variance of 1


def test_all_the_same():
    for how in SCALINGS: assert (scaled(np.full((5, 4), 3, np.float32), how, 2 if how == "whiten" else None) == 0).all()


def test_fewer_vectors_than_features():
    x = np.random.default_rng(0).normal(size=(10, 40)).astype(np.float32)
    np.testing.assert_allclose(np.cov(scaled(x, "whiten", 9).T, bias=True), np.eye(9), atol=1e-3)
    with pytest.raises(ValueError, match="feature_dim=10 principal components cannot be had from 10 images with 40 features. Choose feature_dim ≤ 9"): learn_scaling(x, "whiten", 10)


def test_what_is_learned_is_float32_and_of_its_shape():
    mean, weight = learn_scaling(f(), "whiten", 2)
    assert (mean.dtype, weight.dtype, mean.shape, weight.shape) == (np.float32, np.float32, (6,), (6, 2))
    variances, directions = principal_directions(f().astype(np.float64) - f().mean(0, dtype=np.float64), 4)
    assert (np.diff(variances) < 0).all() and np.allclose(directions @ directions.T, np.eye(4))


def test_in_half_precision_around_it():
    s = Scaling(6, "whiten", 3)
    s.learn(f())
    with torch.autocast("cpu", torch.bfloat16): half = s(torch.from_numpy(f()))
    assert half.dtype == torch.float32 and torch.equal(half, s(torch.from_numpy(f())))
