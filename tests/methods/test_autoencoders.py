"The autoencoder and the VAE by themselves: their losses against formulas, networks of the user's own, what the decoder is told."
import numpy as np
import pytest
import torch
from conftest import SMALL, cohort, images, same_weights, tiny
from torch import nn
from torch.distributions import Normal

from medstrat.methods.autoencoders import VAE, Autoencoder, AutoencoderNetwork, VAENetwork
from medstrat.training.method import Batch, Told, build
from medstrat.training.phases import Moment
from medstrat.training.presets import resolve

BASES = dict(autoencoder=Autoencoder, vae=VAE)     # they find no clusters, so that they are not among the registered methods


def small(cls, **changes):
    words = {k: v for k, v in SMALL.items() if k in cls.__dataclass_fields__ and k != "n_clusters"}
    return cls(**words | changes)


def network(cls=Autoencoder, n_covariates=0, **changes):
    "Fresh networks for images of 5×5 pixels"
    s, _ = resolve(cls(**dict(network="mlp", hidden=(16,), latent_dim=3, random_state=0) | changes))
    return build(cls.method, s, (5, 5, 1), 1, n_covariates).requires_grad_(False)


@pytest.fixture
def x(): return torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))


# ---- the losses

def test_gaussian_loss(x):
    "From a standard deviation of one half on, which learns; the squared error has none"
    net = network(likelihood="gaussian")
    by_hand = -Normal(net.decode(net.embed(x)), 0.5).log_prob(x).sum((1, 2, 3)).mean()
    torch.testing.assert_close(net.loss(Batch(x), Moment())["loss"], by_hand, rtol=1e-4, atol=1e-4)
    assert not hasattr(network(), "log_sigma") and "log_sigma" in dict(net.named_parameters())


def test_learned_and_fixed_sigma(X):
    a = tiny("VAE + k-means", likelihood="gaussian", lr=1e-2, epochs=5).fit(X)
    b = tiny("VAE + k-means", likelihood="gaussian", sigma=0.3, lr=1e-2, epochs=5).fit(X)
    assert abs(a.module_.log_sigma.item() - np.log(0.5)) > 1e-2
    assert b.module_.log_sigma.item() == pytest.approx(np.log(0.3), abs=1e-6)


def test_kl_warm_up():
    beta = lambda warmup, progress: network(VAE, beta=2.0, kl_warmup=warmup).beta(Moment(0, 0, progress, 4))
    assert [beta(2.0, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, 1, 2, 2]) and beta(0.0, 0.0) == 2
    assert network(VAE, beta=0.5, kl_warmup=8.0).beta(Moment()) == pytest.approx(0.5 / 8)    # outside a training: the end of one epoch


def test_beta_pulls_the_posterior_to_the_prior(X):
    kl = [tiny("VAE + k-means", beta=b, epochs=8, lr=1e-2).fit(X).history_.kl.iloc[-1] for b in (0.0, 1.0, 100.0)]
    assert kl[0] > kl[1] > kl[2]


def test_the_embedding_of_a_vae_is_the_posterior_mean(x):
    net = network(VAE)
    mu, logvar = net.encoder(x)
    assert net.embed(x).equal(mu) and net.loss(Batch(x), Moment())["z"].equal(mu) and logvar.shape == (4, 3)
    assert net.posterior(1e6 * x)[1].abs().max() <= 10      # variances stay within a range that 32 bits can hold


# ---- the estimators

@pytest.mark.parametrize("name", BASES)
def test_a_fit(name, X):
    "One cluster, embeddings of d numbers, a loss that falls, and the same bits with the same seed"
    a = small(BASES[name], epochs=5, lr=3e-3).fit(X)
    assert not a.labels_.any() and a.transform(X).shape == (60, 4) and a.reconstruct(X[:3]).shape == (3, 16, 16, 1)
    np.testing.assert_array_equal(a.inverse_transform(a.transform(X[:3])), a.reconstruct(X[:3]))
    assert (a.predict_proba(X) == 1).all() and a.history_.loss.iloc[-1] < a.history_.loss.iloc[0]
    assert same_weights(small(BASES[name], epochs=5, lr=3e-3).fit(X), a)


def test_draws_from_the_prior(X):
    a = small(VAE, prior_std=2.0).fit(X)
    drawn = a.module_.draw(20000, np.random.default_rng(0))
    assert drawn.shape == (20000, 4) and drawn.std(0) == pytest.approx(2, rel=0.03) and abs(drawn.mean()) < 0.05
    assert (a.sample(4, random_state=1) == a.sample(4, random_state=1)).all() and a.sample(4).shape == (4, 16, 16, 1)
    with pytest.raises(AttributeError, match="its embeddings have no distribution"): small(Autoencoder).fit(X).sample()


def test_small_images_are_enlarged_for_convolutions_only():
    size = lambda cls=AutoencoderNetwork, shape=(8, 8, 1), **more: cls.working_size(resolve(Autoencoder(**more))[0], shape)
    assert size() == size(VAENetwork) == (32, "images smaller than 28 are resized to 32 for convolutions") and size(shape=(40, 27, 1))[0] == 32
    assert size(shape=(28, 28, 1)) == size(network="mlp") == size(encoder=nn.Flatten()) == (None, None) and size(image_size=9) == (9, None)
    assert small(Autoencoder, image_size=None, epochs=0).fit(images(20, 8)).provenance_["image_size"] == size()[1]


# ---- networks of the user's own

@pytest.mark.parametrize("wrong, says", [(dict(decoder=nn.Unflatten(1, (1, 1, 3))), r"shape \(C,H,W\) = \(1, 1, 3\), needed is \(1, 5, 5\)"), (dict(decoder=nn.Linear(7, 25)), "must take vectors of 3 numbers"),
                                         (dict(encoder="resnet"), "encoder='resnet' must be a torch.nn.Module"), (dict(decoder=3), "decoder=3 must be a torch.nn.Module"),
                                         (dict(network="conv", batch_size=1, image_size=8), "use batch_size ≥ 2")], ids=str)
def test_networks_that_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says): network(**wrong)


def test_own_networks_are_copied(x):
    torch.manual_seed(0)
    mine = dict(encoder=nn.Sequential(nn.Flatten(), nn.Linear(25, 7)), decoder=nn.Sequential(nn.Linear(3, 25), nn.Unflatten(1, (1, 5, 5))))
    net = network(**mine)
    assert net.encoder.heads[0].in_features == 7 and net.decode(net.embed(x)).shape == x.shape
    assert net.decoder[0].weight.equal(mine["decoder"][0].weight) and net.decoder[0].weight is not mine["decoder"][0].weight and net.encoder.body is not mine["encoder"]


# ---- what the decoder is told

def test_the_decoder_is_told_and_the_encoder_is_not(x):
    y = torch.rand(4, 2)
    net = network(n_covariates=2)
    one, other = (net.loss(Batch(x, told=Told(t)), Moment()) for t in (y, 1 - y))
    assert one["loss"] != other["loss"] and one["z"].equal(other["z"])


def test_reconstruct_with_and_without_the_table():
    S = cohort()
    a, b = small(VAE, condition="tone").fit(S), small(VAE).fit(S)
    told = a.reconstruct(S.images, condition=S.column("tone"))
    np.testing.assert_array_equal(a.reconstruct(S), told)
    np.testing.assert_array_equal(a.transform(S), a.transform(S.images))      # to embed, no condition is needed
    with pytest.raises(ValueError, match="images come without a table"): a.reconstruct(S.images)
    with pytest.raises(ValueError, match="learned without a condition"): b.inverse_transform(b.transform(S), condition=dict(tone="dark"))
