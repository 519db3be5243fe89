"Networks and likelihoods: properties that hold for every size."
import math

import pytest
import torch
from conftest import images, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medstrat.vae.elbo import kl_normal, reconstruction_loss, reparameterise
from medstrat.vae.networks import (
    ConvDecoder,
    Encoder,
    conv_body,
    halved_sides,
    mlp_body,
    mlp_decoder,
)

few = settings(max_examples=25, deadline=None)
sizes = st.integers(8, 64)


# ---- networks

@few
@given(h=sizes, w=sizes, c=st.sampled_from([1, 3]), channels=st.lists(st.integers(1, 4), min_size=1, max_size=3), norm=st.sampled_from(["batch", "none"]),
       d=st.integers(1, 5))
def test_conv_networks_return_the_input_size(h, w, c, channels, norm, d):
    shape = (h, w, c)
    encoder = Encoder(conv_body(shape, tuple(channels), norm), shape, (d, d)).eval()
    decoder = ConvDecoder(d + 2, shape, tuple(channels), norm).eval()
    mu, logvar = encoder(torch.rand(3, c, h, w))
    assert mu.shape == logvar.shape == (3, d)
    out = decoder(torch.cat([mu, torch.ones(3, 2)], 1))
    assert out.shape == (3, c, h, w) and out.dtype == torch.float32 and out.isfinite().all()


@few
@given(h=sizes, w=sizes, c=st.sampled_from([1, 3]), hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3), d=st.integers(1, 5))
def test_mlp_networks_return_the_input_size(h, w, c, hidden, d):
    shape = (h, w, c)
    z, = Encoder(mlp_body(shape, tuple(hidden)), shape, (d,))(torch.rand(2, c, h, w))
    assert z.shape == (2, d) and mlp_decoder(d, shape, tuple(hidden))(z).shape == (2, c, h, w)


def test_decoder_is_not_blind_to_its_input():
    "Every pixel of the decoder's output depends on z, also at the border of odd sizes"
    decoder = ConvDecoder(3, (13, 11, 1), (8, 8), "none", "leaky_relu")
    a, b = decoder(torch.zeros(1, 3)), decoder(torch.ones(1, 3) * 3)
    assert ((a - b).abs() > 0).all()


def test_too_many_blocks_say_what_to_do():
    assert halved_sides(224, 5) == [224, 112, 56, 28, 14, 7]
    with pytest.raises(ValueError, match="at least 16 pixels a side, got 8.*fewer channels"): conv_body((8, 30, 1), (2, 2, 2, 2))
    with pytest.raises(ValueError, match="at least 16 pixels"): tiny(channels=(2, 2, 2, 2), image_size=8).fit(images(8, 8))


def test_encoder_leaves_a_module_as_it_was():
    body = conv_body((8, 8, 1), (2,), "batch")
    body.eval()
    before = {k: v.clone() for k, v in body.state_dict().items()}
    body.train(); Encoder(body, (8, 8, 1), (2,))
    assert body.training and all(v.equal(before[k]) for k, v in body.state_dict().items())


def test_encoder_that_loses_the_batch_is_refused():
    class Lost(nn.Module):
        def forward(self, x): return x.flatten()
    with pytest.raises(ValueError, match="batch dimension first"): Encoder(Lost(), (8, 8, 1), (2,))


# ---- likelihoods

def _pair(seed=0, n=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 5, 3, generator=g), torch.rand(n, 2, 5, 3, generator=g)


@pytest.mark.parametrize("kind", ["squared", "bernoulli", "gaussian"])
def test_reconstruction_is_summed_over_pixels_of_each_image(kind):
    logits, x = _pair()
    whole = reconstruction_loss(logits, x, kind)
    assert whole.shape == (4,)
    torch.testing.assert_close(reconstruction_loss(logits[2:3], x[2:3], kind), whole[2:3])
    double = reconstruction_loss(torch.cat([logits, logits], 2), torch.cat([x, x], 2), kind)   # twice the pixels, twice the loss
    torch.testing.assert_close(double, 2 * whole)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.5])
def test_likelihoods_against_torch_distributions(sigma):
    logits, x = _pair(1)
    normal = -torch.distributions.Normal(logits.sigmoid(), sigma).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction_loss(logits, x, "gaussian", math.log(sigma)), normal, rtol=1e-4, atol=1e-4)
    b = x.round()
    bernoulli = -torch.distributions.Bernoulli(logits=logits).log_prob(b).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction_loss(logits, b, "bernoulli"), bernoulli, rtol=1e-4, atol=1e-4)


def test_learned_sigma_ends_at_the_error():
    "The best fixed σ of a Gaussian is the root mean squared error: the derivative is zero there"
    logits, x = _pair(2)
    rmse = (x - logits.sigmoid()).square().mean().sqrt()
    log_sigma = rmse.log().requires_grad_()
    slope, = torch.autograd.grad(reconstruction_loss(logits, x, "gaussian", log_sigma).sum(), log_sigma)
    assert abs(slope) < 1e-3


@few
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.floats(0.2, 3))
def test_kl_is_never_negative_and_right(mu, logvar, prior):
    mu, logvar = torch.tensor([mu]), torch.tensor([logvar])
    kl = kl_normal(mu, logvar, prior)
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(mu.double(), (0.5 * logvar.double()).exp()), torch.distributions.Normal(0.0, prior)).sum(1)
    assert kl.item() > -1e-5
    torch.testing.assert_close(kl.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", [0.8, 1.0, 2.0])
def test_kl_is_zero_at_the_prior_only(prior):
    at = torch.full((1, 4), 2 * math.log(prior))
    assert abs(kl_normal(torch.zeros(1, 4), at, prior).item()) < 1e-5
    assert kl_normal(torch.full((1, 4), 0.1), at, prior).item() > 1e-3
    assert kl_normal(torch.zeros(1, 4), at + 0.2, prior).item() > 1e-3 and kl_normal(torch.zeros(1, 4), at - 0.2, prior).item() > 1e-3


def test_reparameterised_draws_have_the_moments_and_a_gradient():
    torch.manual_seed(0)
    mu, logvar = torch.tensor([[1.0, -2.0]], requires_grad=True), torch.tensor([[0.0, -2.0]], requires_grad=True)
    z = reparameterise(mu.expand(40_000, 2), logvar.expand(40_000, 2))
    torch.testing.assert_close(z.mean(0), mu[0], atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0.03, rtol=0)
    z.square().mean().backward()
    assert mu.grad.abs().min() > 0 and logvar.grad.abs().min() > 0
