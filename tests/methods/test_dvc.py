"DVC: DEC on a VAE, and the weights of its two terms."

import numpy as np
import pytest
import torch
from conftest import changed_parts, mlp, net_input, phase

from medstrat.training.presets import find_value
from medstrat.training.registry import get_method

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_it_is_dec_on_a_vae(X):
    "Its first phase is a VAE's own, with the prior; its clusters are found in the posterior means"
    a = mlp("DVC-2", beta=3.0, epochs=0).fit(X)
    h = phase(a, "pretrain")
    np.testing.assert_allclose(h.loss, h.reconstruction + 3 * h.kl, rtol=1e-4)
    net = a.module_
    with torch.no_grad(): mu, logvar = net.posterior(net_input(X))
    assert len(net.encoder.heads) == 2 and mu.shape == logvar.shape == (60, 4)
    np.testing.assert_allclose(a.transform(X), mu, atol=1e-5)


@pytest.mark.parametrize("method, lam", [("DVC", 0.25), ("DVC-2", 0.6), ("DVC-2", 0.0), ("DVC-2", 1.0)])
def test_weights_of_the_two_terms(method, lam, X):
    "Eq. 5: λ weighs the clustering term; the reconstruction counts per pixel"
    h = phase(mlp(method, update_interval=2, lr=1e-2, epochs=3, lam=lam).fit(X))
    assert ("reconstruction" in h) == (lam < 1) and "changed" in h and (h.clustering >= -1e-6).all()
    np.testing.assert_allclose(h.loss, lam * h.clustering + ((1 - lam) * h.reconstruction / 256 if lam < 1 else 0), rtol=1e-4)


def test_refinement_with_the_whole_elbo(X):
    for how in ("elbo", "reconstruction"):
        h = phase(mlp("DVC-2", refine_with=how, lam=0.2, beta=3.0, epochs=2).fit(X))
        np.testing.assert_allclose(h.loss, 0.2 * h.clustering + 0.8 * (h.reconstruction + (3.0 * h.kl if how == "elbo" else 0)) / 256, rtol=1e-4)
        assert (h.kl > 0).all()


def test_without_a_clustering_term_centres_stay(X):
    start = mlp("DVC-2", lam=0.0, epochs=0).fit(X)
    a = mlp("DVC-2", lam=0.0, lr=1e-2, epochs=2).fit(X)
    assert (a.cluster_centers_ == start.cluster_centers_).all() and changed_parts(start, a) == {"encoder", "decoder"}


def test_without_a_reconstruction_the_decoder_rests(X):
    a = mlp("DVC-2", lam=1.0, lr=1e-2, epochs=2).fit(X)
    assert changed_parts(mlp("DVC-2", lam=1.0, epochs=0).fit(X), a) == {"encoder", "bank"}


@pytest.mark.parametrize("method, name, iterations", [("DVC", "pretrain_epochs", 200_000), ("DVC-2", "layer_epochs", 100_000)])
def test_iterations_become_epochs(method, name, iterations):
    "Printed are iterations of 256 images, on the 60,000 of MNIST"
    assert find_value(get_method(method), name, "paper")[0].value == round(iterations * 256 / 60_000)


def test_the_released_weight_is_a_convex_one():
    "0.1 of the clustering term beside a whole reconstruction"
    lam = find_value(get_method("DVC"), "lam", "released")[0].value
    assert lam / (1 - lam) == pytest.approx(0.1)
