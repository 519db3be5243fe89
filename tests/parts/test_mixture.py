"Mixtures as priors: density, responsibilities, divergences, the bank, and where it starts."
import math

import numpy as np
import pytest
import torch
import torch.distributions as D
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from medstrat.parts import mixture
from medstrat.parts.mixture import (
    STARVED,
    MixtureBank,
    check_distinct,
    first_mixture,
    fit_mixture,
    kl_c,
    kl_z,
    log_joint,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def toy(b=20, k=4, d=3, seed=0, scale=1.0, dtype=torch.float64):
    "Points, shares, centres, log-variances"
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    return tuple(t.to(dtype) for t in (scale * r(b, d), r(k).log_softmax(0), scale * r(k, d), 0.5 * r(k, d) + 2 * math.log(scale)))


def mixture_of(log_pi, mu, logvar): return D.MixtureSameFamily(D.Categorical(logits=log_pi), D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1))


# ---- the density


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 6), st.integers(1, 6), st.floats(-3, 3))
def test_log_joint_against_scipy(seed, b, k, d, power):
    z, log_pi, mu, logvar = toy(b, k, d, seed, 10**power)
    expected = np.stack([log_pi[c].item() + np.atleast_1d(multivariate_normal(mu[c].numpy(), np.diag(logvar[c].exp().numpy()), allow_singular=True).logpdf(z.numpy())) for c in range(k)], 1)
    got = log_joint(z, log_pi, mu, logvar)
    assert got.dtype == torch.float64 and got.shape == (b, k)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_density_and_responsibilities_against_torch():
    z, log_pi, mu, logvar = toy()
    joint, m = log_joint(z, log_pi, mu, logvar), mixture_of(log_pi, mu, logvar)
    torch.testing.assert_close(joint.logsumexp(1), m.log_prob(z))
    each = m.component_distribution.log_prob(z[:, None]) + log_pi
    torch.testing.assert_close(joint, each)
    bayes = each.exp() / each.exp().sum(1, keepdim=True)
    torch.testing.assert_close(joint.softmax(1), bayes)
    assert log_joint(*(t.float() for t in (z, log_pi, mu, logvar))).dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.permutations(range(5)))
def test_clusters_have_no_order(seed, b, order):
    z, log_pi, mu, logvar = toy(b, 5, 3, seed)
    v_log = torch.randn(b, 3, dtype=torch.float64)
    one, two = log_joint(z, log_pi, mu, logvar), log_joint(z, log_pi[order], mu[order], logvar[order])
    torch.testing.assert_close(one[:, order], two)
    torch.testing.assert_close(kl_z(z, v_log, one.softmax(1), mu, logvar), kl_z(z, v_log, two.softmax(1), mu[order], logvar[order]))
    torch.testing.assert_close(kl_c(one.log_softmax(1), log_pi), kl_c(two.log_softmax(1), log_pi[order]))


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e3, 1e4])
def test_a_shift_changes_nothing(offset):
    "As far as float32 can tell the shifted points apart"
    z, log_pi, mu, logvar = (t.float() for t in toy(40, 5, 10))
    z, mu = z + offset, mu + offset
    exact = log_joint(*(t.double() for t in (z, log_pi, mu, logvar)))
    torch.testing.assert_close(log_joint(z, log_pi, mu, logvar), exact.float(), atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e2, 1e5, 1e8])
def test_any_unit_of_length(scale):
    z, log_pi, mu, logvar = toy(40, 5, 4, scale=scale)
    got = log_joint(*(t.float() for t in (z, log_pi, mu, logvar)))
    exact = log_joint(*(t.float().double() for t in (z, log_pi, mu, logvar)))
    assert got.isfinite().all()
    np.testing.assert_allclose(got.softmax(1), exact.softmax(1), atol=1e-3)


@pytest.mark.parametrize("std", [1.0, 0.1, 0.01])
def test_small_clusters_far_apart(std):
    "What a well trained embedding looks like: no divergence is below 0, and none is off by a tenth of a nat"
    _, log_pi, mu, _ = toy(k=10, d=5, scale=10.0)
    logvar, g = torch.full_like(mu, 2 * math.log(std)), torch.Generator().manual_seed(1)
    m = mu.repeat(5, 1) + std * torch.randn(50, 5, generator=g, dtype=torch.float64)
    v_log = torch.full_like(m, 2 * math.log(std))
    at = [t.float() for t in (m, v_log, mu, logvar, log_pi)]
    exact, got = log_joint(*(at[i].double() for i in (0, 4, 2, 3))), log_joint(*(at[i] for i in (0, 4, 2, 3)))
    np.testing.assert_allclose(got.softmax(1), exact.softmax(1), atol=1e-3)
    own = torch.arange(50) % 10
    np.testing.assert_allclose(got[range(50), own], exact[range(50), own], atol=0.1)
    gamma = exact.softmax(1)
    kl, true = kl_z(at[0], at[1], gamma.float(), at[2], at[3]), kl_z(at[0].double(), at[1].double(), gamma, at[2].double(), at[3].double())
    assert true.min() >= 0 and kl.min() >= -1e-3
    np.testing.assert_allclose(kl, true, atol=0.1)


def test_far_from_all_clusters():
    "Where every density underflows, the logarithms still tell who is nearest"
    z = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e6]])
    mu, logvar = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]]), torch.zeros(3, 2)
    gamma = log_joint(z, torch.zeros(3).log_softmax(0), mu, logvar).softmax(1)
    assert gamma.isfinite().all() and gamma.argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(gamma.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision(half):
    "Under autocast the squares are summed in float32; 16-bit points are taken at their value"
    z, log_pi, mu, logvar = (t.float() for t in toy(30, 6, 8, scale=5.0))
    v_log, gamma = torch.randn(30, 8), torch.rand(30, 6).softmax(1)
    exact = log_joint(*(t.double() for t in (z, log_pi, mu, logvar))), kl_z(*(t.double() for t in (z, v_log, gamma, mu, logvar)))
    with torch.autocast("cpu", torch.bfloat16): got = log_joint(z, log_pi, mu, logvar), kl_z(z, v_log, gamma, mu, logvar)
    for g, e in zip(got, exact, strict=True): assert g.dtype == torch.float32; np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-3)
    g = log_joint(z.to(half), log_pi, mu, logvar)
    assert g.dtype == torch.float32
    np.testing.assert_allclose(g, log_joint(z.to(half).double(), log_pi.double(), mu.double(), logvar.double()), rtol=1e-5, atol=1e-3)


def test_gradients():
    z, log_pi, mu, logvar = (t.requires_grad_() for t in toy(4, 3, 2))
    v_log = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_joint, (z, log_pi, mu, logvar))
    assert torch.autograd.gradcheck(lambda m, v, q, mu, lv: kl_z(m, v, q.softmax(1), mu, lv), (z, v_log, torch.randn(4, 3, dtype=torch.float64, requires_grad=True), mu, logvar))
    assert torch.autograd.gradcheck(lambda q, p: kl_c(q.log_softmax(1), p.log_softmax(0)), (torch.randn(4, 3, dtype=torch.float64, requires_grad=True), log_pi))


def test_clusters_of_each_image():
    "Means and variances may differ from image to image, (B,K,d): what GMVAE's clusters are"
    g = torch.Generator().manual_seed(0)
    m, v_log, mu, logvar = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 3), (6, 3), (6, 4, 3), (6, 4, 3)))
    gamma = torch.rand(6, 4, generator=g, dtype=torch.float64).softmax(1)
    each = D.kl_divergence(D.Normal(m[:, None], (0.5 * v_log).exp()[:, None]), D.Normal(mu, (0.5 * logvar).exp())).sum(2)
    torch.testing.assert_close(kl_z(m, v_log, gamma, mu, logvar), (gamma * each).sum(1))
    log_pi = gamma[0].log()
    torch.testing.assert_close(log_joint(m, log_pi, mu, logvar), D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1).log_prob(m[:, None]) + log_pi)
    same = mu[:1].expand(6, 4, 3), logvar[:1].expand(6, 4, 3)
    torch.testing.assert_close(log_joint(m, log_pi, *same), log_joint(m, log_pi, mu[0], logvar[0]))
    assert kl_z(m, v_log, torch.ones(6, 1, dtype=torch.float64), m[:, None], v_log[:, None]).abs().max() < 1e-12


# ---- the divergences


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
def test_divergences_against_torch(seed, k, d):
    m, log_pi, mu, logvar = toy(7, k, d, seed)
    v_log = torch.randn(7, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gamma = D.Categorical(logits=torch.randn(7, k, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64))
    each = D.kl_divergence(D.Normal(m[:, None], (0.5 * v_log).exp()[:, None]), D.Normal(mu, (0.5 * logvar).exp())).sum(2)
    torch.testing.assert_close(kl_z(m, v_log, gamma.probs, mu, logvar), (gamma.probs * each).sum(1))
    torch.testing.assert_close(kl_c(gamma.logits, log_pi), D.kl_divergence(gamma, D.Categorical(logits=log_pi.expand(7, k))))
    assert (kl_z(m, v_log, gamma.probs, mu, logvar) >= 0).all() and (kl_c(gamma.logits, log_pi) >= -1e-12).all()


def test_divergences_against_draws():
    "kl_z + kl_c is the mean of log q(z,c|x) - log p(z,c)"
    m, log_pi, mu, logvar = toy(1, 4, 3)
    v_log, gamma = torch.tensor([[-1.0, 0.3, -2.0]], dtype=torch.float64), torch.tensor([[0.5, 0.1, 0.15, 0.25]], dtype=torch.float64)
    torch.manual_seed(0)
    q, n = D.Independent(D.Normal(m[0], (0.5 * v_log[0]).exp()), 1), 200_000
    z, c = q.sample((n,)), D.Categorical(gamma[0]).sample((n,))
    ratio = q.log_prob(z) + gamma[0].log()[c] - log_joint(z, log_pi, mu, logvar)[range(n), c]
    error = ratio.std() / n**0.5
    assert abs(ratio.mean() - (kl_z(m, v_log, gamma, mu, logvar) + kl_c(gamma.log(), log_pi))[0]) < 5 * error


def test_where_the_divergences_vanish():
    mu, logvar, log_pi = torch.randn(1, 4), torch.randn(1, 4), torch.zeros(1)
    assert kl_z(mu, logvar, torch.ones(1, 1), mu, logvar).abs().max() < 1e-5 and kl_c(torch.zeros(1, 1), log_pi).abs().max() == 0
    shares = torch.tensor([0.2, 0.8]).log()
    assert kl_c(shares.expand(3, 2), shares).abs().max() < 1e-6


def test_probabilities_that_underflow():
    log_gamma = torch.tensor([[0.0, -200.0, -1e5]])
    assert kl_c(log_gamma, torch.tensor([-1e3, -0.1, -0.1])).tolist() == [1000.0]


# ---- the bank


def test_bank():
    bank, (z, log_pi, mu, logvar) = MixtureBank(4, 3), toy(dtype=torch.float32)
    assert bank.log_pi.exp().tolist() == [0.25] * 4
    bank.set(log_pi.exp().double().numpy(), mu.double().numpy(), logvar.exp().double().numpy())
    torch.testing.assert_close(bank.log_pi, log_pi); torch.testing.assert_close(bank.logvar, logvar); torch.testing.assert_close(bank.spread, (0.5 * logvar).exp())
    torch.testing.assert_close(bank.responsibilities(z), log_joint(z, log_pi, mu, logvar).softmax(1))
    np.testing.assert_allclose(bank.responsibilities(z).sum(1).detach(), 1, atol=1e-6)
    assert all(p.requires_grad for p in bank.parameters()) and len(list(bank.parameters())) == 3
    with torch.no_grad(): bank.logits.add_(100.0)      # shares do not depend on it
    torch.testing.assert_close(bank.log_pi, log_pi, atol=1e-4, rtol=1e-4)


# ---- the first mixture


def blobs(n=90, d=3, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = 5 * rng.standard_normal((3, d))
    return (centres[np.arange(n) % 3] + spread * rng.standard_normal((n, d))).astype(np.float32), centres


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("n_init", [1, 4])
@pytest.mark.parametrize("seed", [0, 3])
def test_fit_mixture_is_sklearns(covariance, n_init, seed):
    Z, _ = blobs(seed=seed)
    found = fit_mixture(Z, 3, covariance, n_init, seed)
    expected = GaussianMixture(3, covariance_type=covariance, n_init=n_init, random_state=seed, reg_covar=1e-4).fit(Z.astype(np.float64))
    assert expected.weights_.min() * 3 > STARVED
    for name in ("weights_", "means_", "covariances_", "lower_bound_"): np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.predict(Z) == expected.predict(Z)).all()


def test_starved_components_come_last():
    "One point far away: a component of its own has the best likelihood, and is nobody's idea of a cluster"
    rng = np.random.default_rng(0)
    Z = np.concatenate([rng.normal(0, 1, (100, 2)), rng.normal(4, 1, (100, 2)), [[40.0, 40.0]]])
    plain = GaussianMixture(3, n_init=20, random_state=0, covariance_type="diag", reg_covar=1e-4).fit(Z)
    found = fit_mixture(Z, 3, "diag", 20, 0)
    rng = np.random.RandomState(0)
    starts = [GaussianMixture(3, random_state=rng, covariance_type="diag", reg_covar=1e-4).fit(Z) for _ in range(20)]
    fed = [f for f in starts if f.weights_.min() * 3 >= STARVED]
    best = max(fed or starts, key=lambda f: f.lower_bound_)
    assert plain.weights_.min() * 3 < STARVED
    np.testing.assert_allclose(found.weights_, best.weights_)
    assert not fed or found.weights_.min() * 3 >= STARVED


def test_starts_on_some_the_best_on_all(monkeypatch):
    "As good as all starts on all, though each start has seen a quarter"
    monkeypatch.setattr(mixture, "SEEN", 1000)
    rng = np.random.default_rng(0)
    Z = np.concatenate([rng.normal(c, s, (1000, 4)) for c, s in ((0, 1), (2, 0.5), (-2, 1.5), (4, 1))])
    Z, sizes, real = rng.permutation(Z), [], mixture._one_start
    def counted(mixture_, Z):
        sizes.append(len(Z))
        return real(mixture_, Z)
    monkeypatch.setattr(mixture, "_one_start", counted)
    found = fit_mixture(Z, 4, "full", 5, 0)
    assert sizes == [1000] * 5
    everywhere = GaussianMixture(4, n_init=5, random_state=0, reg_covar=1e-4).fit(Z)
    assert found.score(Z) == pytest.approx(everywhere.score(Z), abs=1e-3)
    # it did go on: the best of the starts, left as it was, is worse on all
    monkeypatch.setattr(mixture, "_go_on", lambda found, Z: found)
    assert fit_mixture(Z, 4, "full", 5, 0).score(Z) < found.score(Z)


@pytest.mark.parametrize("kind", ["constant axis", "line", "duplicates", "tiny spread", "integers", "one per component", "long vectors"])
@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_data_that_make_covariances_singular(kind, covariance):
    Z, _ = blobs(60, 4)
    if kind == "constant axis": Z[:, 1] = 7
    if kind == "line": Z = Z[:, :1] * np.float32([[1, 2, 3, 4]])
    if kind == "duplicates": Z = np.repeat(Z[:6], 10, 0)
    if kind == "tiny spread": Z = blobs(60, 4, spread=1e-7)[0]
    if kind == "integers": Z = np.round(Z)
    if kind == "one per component": Z = Z[:3]
    if kind == "long vectors": Z = blobs(60, 100)[0]
    pi, mu, variance = first_mixture(Z, 3, covariance, 3, 0)
    assert pi.shape == (3,) and mu.shape == variance.shape == (3, Z.shape[1]) and pi.sum() == pytest.approx(1) and (variance > 0).all() and np.isfinite(mu).all()
    bank = MixtureBank(3, Z.shape[1])
    bank.set(pi, mu, variance)
    assert all(p.isfinite().all() for p in bank.parameters()) and bank.responsibilities(torch.from_numpy(Z)).isfinite().all()


def test_a_larger_ridge_where_it_fails(monkeypatch):
    ridges = []
    def fails(mixture_, Z):
        ridges.append(mixture_.reg_covar)
        if mixture_.reg_covar < 0.05: raise ValueError("Fitting the mixture model failed because some components have ill-defined empirical covariance")
        return GaussianMixture(3, random_state=0).fit(Z)
    monkeypatch.setattr(mixture, "_one_start", fails)
    fit_mixture(blobs()[0], 3, n_init=2)
    assert sorted(set(np.round(ridges, 6))) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    def never(mixture_, Z): raise ValueError("some components have ill-defined empirical covariance")
    monkeypatch.setattr(mixture, "_one_start", never)
    with pytest.raises(ValueError, match="ill-defined"): fit_mixture(blobs()[0], 3)
    def other(mixture_, Z): raise ValueError("something else")
    monkeypatch.setattr(mixture, "_one_start", other)
    with pytest.raises(ValueError, match="something else"): fit_mixture(blobs()[0], 3)


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("scale, shift", [(1e-3, 0.0), (1e4, 0.0), (1.0, 500.0), (0.1, -3.0)])
def test_unit_and_place_do_not_matter(covariance, scale, shift):
    Z, _ = blobs()
    Z = Z.astype(np.float64)
    pi, mu, variance = first_mixture(Z, 3, covariance, 3, 0)
    pi2, mu2, variance2 = first_mixture(Z * scale + shift, 3, covariance, 3, 0)
    np.testing.assert_allclose(pi2, pi, rtol=1e-6); np.testing.assert_allclose(mu2, mu * scale + shift, rtol=1e-6, atol=1e-6 * scale); np.testing.assert_allclose(variance2, variance * scale**2, rtol=1e-5)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_first_mixture_finds_blobs(covariance):
    Z, centres = blobs(300)
    pi, mu, variance = first_mixture(Z, 3, covariance, 5, 0)
    order = ((mu[:, None] - centres) ** 2).sum(2).argmin(0)
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(mu[order], centres, atol=0.15); np.testing.assert_allclose(pi, 1 / 3, atol=0.01); np.testing.assert_allclose(variance, 0.09, rtol=0.5)
    one, same = first_mixture(Z, 3, covariance, 5, 7), first_mixture(Z, 3, covariance, 5, 7)
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    pi, mu, variance = first_mixture(Z, 1, covariance, 1, 0)
    np.testing.assert_allclose(mu[0], Z.mean(0), atol=1e-5); np.testing.assert_allclose(variance[0], Z.var(0), rtol=1e-2)


def test_a_collapsed_embedding_is_refused():
    with pytest.raises(ValueError, match="n_clusters=2, but the images have only 1 distinct embeddings. Choose n_clusters ≤ 1.*collapsed.*pretrain_lr"): first_mixture(np.ones((20, 3), np.float32), 2)
    with pytest.raises(ValueError, match="only 2 distinct"): check_distinct(np.repeat(np.eye(2), 10, 0), 3)
    pi, mu, variance = first_mixture(np.ones((20, 3), np.float32), 1)
    assert pi.tolist() == [1] and mu.tolist() == [[1, 1, 1]] and (variance > 0).all()
