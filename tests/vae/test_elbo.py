"Likelihoods and the KL term: against torch's distributions, finite differences, and their own properties."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.vae.elbo import at_least_float32, kl_normal, reconstruction_loss, reparameterise

few = settings(max_examples=25, deadline=None)


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


def test_squared_error_is_a_gaussian_but_for_a_constant():
    "With σ² = 1/2"
    logits, x = _pair(3)
    half = torch.distributions.Normal(logits.sigmoid(), math.sqrt(0.5)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(reconstruction_loss(logits, x) + half, torch.full((4,), -30 * 0.5 * math.log(math.pi)), atol=1e-3, rtol=0)


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(ValueError, match="likelihood='poisson' is unknown; choose 'bernoulli', 'gaussian' or 'squared'"): reconstruction_loss(*_pair(), "poisson")


def test_gradients_against_finite_differences():
    double = dict(dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    mu, logvar, logits = torch.randn(2, 3, **double), torch.randn(2, 3, **double), torch.randn(2, 1, 3, 3, **double)
    target, log_sigma = torch.rand(2, 1, 3, 3, dtype=torch.float64), torch.tensor(-0.7, **double)
    assert torch.autograd.gradcheck(lambda m, v: kl_normal(m, v, 0.8), (mu, logvar))
    for likelihood in ("squared", "bernoulli"): assert torch.autograd.gradcheck(lambda l: reconstruction_loss(l, target, likelihood), (logits,))
    assert torch.autograd.gradcheck(lambda l, s: reconstruction_loss(l, target, "gaussian", s), (logits, log_sigma))


def test_sums_are_taken_in_32_bits():
    logits, x = _pair()
    for kind in (torch.bfloat16, torch.float16):
        assert at_least_float32(x.to(kind)).dtype == reconstruction_loss(logits.to(kind), x.to(kind)).dtype == kl_normal(logits[:, 0, 0].to(kind), x[:, 0, 0].to(kind)).dtype == torch.float32
    assert at_least_float32(x.double()).dtype == torch.float64
