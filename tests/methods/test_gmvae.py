"GMVAE: clusters that are functions of w, the bound and its floor, what it finds and draws."
import math

import numpy as np
import pytest
import torch
import torch.distributions as D
from conftest import images, mixed, net_input, phase, same_weights, tiny
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from torch import nn

from medstrat.methods.gmvae import ConditionalMixture
from medstrat.parts.mixture import log_joint
from medstrat.training.method import Batch
from medstrat.training.phases import Moment

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_conditional_mixture():
    torch.manual_seed(0)
    bank = ConditionalMixture(4, 3, 2, 8)
    w, z = torch.randn(6, 2), torch.randn(6, 3)
    mu, logvar = bank(w)
    assert mu.shape == logvar.shape == (6, 4, 3) and bank.centres.shape == (4, 3)
    torch.testing.assert_close(bank.centres, bank(torch.zeros(5, 2))[0][3])
    each = D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1).log_prob(z[:, None])
    assert float(bank.log_pi) == pytest.approx(-math.log(4))      # equal shares
    torch.testing.assert_close(log_joint(z, bank.log_pi, mu, logvar), each - math.log(4), atol=1e-5, rtol=1e-5)
    with torch.no_grad(): bank.body[2].bias.fill_(1e3)
    assert bank(w)[1].max() <= 10 and bank(w)[1].isfinite().all()


def test_gmvae_terms_against_torch(quarters, parted):
    a, x = parted["GMVAE"], net_input(quarters[0][:12])
    net = a.module_
    torch.manual_seed(3)
    with torch.no_grad():
        terms = net.loss(Batch(x), Moment())
        torch.manual_seed(3)
        m, v_log, m_w, v_log_w = net.encoder(x)
        z, w = (c + (0.5 * v).exp() * torch.randn_like(c) for c, v in ((m, v_log), (m_w, v_log_w)))
        mu, logvar = net.bank(w)
        component = D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1)
        c = D.Categorical(logits=component.log_prob(z[:, None]))
        expected = dict(reconstruction=nn.functional.binary_cross_entropy(net.decoder(z).sigmoid(), x, reduction="none").sum((1, 2, 3)).mean(),
                        kl_z=(c.probs * D.kl_divergence(D.Independent(D.Normal(m[:, None], (0.5 * v_log).exp()[:, None]), 1), component)).sum(1).mean(),
                        kl_w=D.kl_divergence(D.Normal(m_w, (0.5 * v_log_w).exp()), D.Normal(0.0, 1.0)).sum(1).mean(), kl_c=D.kl_divergence(c, D.Categorical(logits=torch.zeros(12, 4))).mean())
    assert set(terms) == {"loss", "z", *expected} and (terms["z"] == m).all()
    for name, value in expected.items(): assert terms[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4), name
    assert 0 <= terms["kl_c"] <= math.log(4) + 1e-6


def test_gmvae_bound_against_draws(quarters, parted):
    "All terms together are the mean of log q(z,w,c|x) - log p(x,z,w,c)"
    a, x, n = parted["GMVAE"], net_input(quarters[0][:1]), 4000
    net = a.module_
    torch.manual_seed(0)
    with torch.no_grad():
        loss = np.mean([net.loss(Batch(x.expand(50, -1, -1, -1)), Moment())["loss"].item() for _ in range(80)])
        m, v_log, m_w, v_log_w = (t[0] for t in net.encoder(x))
        q, q_w = D.Independent(D.Normal(m, (0.5 * v_log).exp()), 1), D.Independent(D.Normal(m_w, (0.5 * v_log_w).exp()), 1)
        z, w, z2 = q.sample((n,)), q_w.sample((n,)), q.sample((n,))
        mu, logvar = net.bank(w)
        component = D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1)
        posterior = D.Categorical(logits=component.log_prob(z2[:, None]))      # q(c|z,w), with a draw of its own, as the mean-field term has it
        c = posterior.sample()
        rec = nn.functional.binary_cross_entropy_with_logits(net.decoder(z), x.expand(n, -1, -1, -1), reduction="none").sum((1, 2, 3))
        prior_w = D.Independent(D.Normal(torch.zeros_like(w), 1.0), 1)
        total = rec + q.log_prob(z) - component.log_prob(z[:, None])[range(n), c] + q_w.log_prob(w) - prior_w.log_prob(w) + posterior.log_prob(c) + math.log(4)
    assert loss == pytest.approx(total.mean().item(), abs=6 * total.std().item() / n**0.5 + 0.1)


@pytest.mark.parametrize("floor, flows", [(0.0, True), (1e-6, True), (10.0, False)])
def test_the_floor_of_the_c_prior(floor, flows, quarters):
    "Below λ the term is constant: no gradient. λ ≥ log K switches it off"
    terms = mixed("GMVAE", epochs=0, floor=floor).fit(quarters[0]).module_.loss(Batch(net_input(quarters[0][:20])), Moment())
    slope, = torch.autograd.grad(terms["loss"], terms["kl_c"], retain_graph=True)
    assert slope == float(flows)
    expected = sum(terms[k] for k in ("reconstruction", "kl_z", "kl_w")) + max(terms["kl_c"].item(), floor)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_floor_lets_clusters_be_more_certain(quarters):
    kl = [phase(mixed("GMVAE", n_clusters=4, epochs=20, lr=2e-2, floor=f).fit(quarters[0])).kl_c.iloc[-5:].mean() for f in (0.0, 1.2)]
    assert kl[1] > kl[0]


def test_gmvae_probabilities(quarters, parted):
    a, x = parted["GMVAE"], quarters[0]
    with torch.inference_mode():
        m, _, m_w, _ = a.module_.encoder(net_input(x))
        mu, logvar = a.module_.bank(m_w)
        expected = D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1).log_prob(m[:, None]).softmax(1)
    np.testing.assert_allclose(a.predict_proba(x), expected, atol=1e-4); np.testing.assert_allclose(a.transform(x), m, atol=1e-5)
    assert (a.predict_proba(x).argmax(1) == a.labels_).all()


def test_gmvae_finds_and_makes_the_four_kinds(quarters, parted):
    (x, y), a = quarters, parted["GMVAE"]
    assert adjusted_rand_score(y, a.labels_) == 1
    for k in range(4):
        made = a.sample(100, cluster=k)
        assert np.bincount(a.predict(made), minlength=4).argmax() == k
        quarter = lambda image: image.reshape(2, 8, 2, 8).mean((1, 3)).argmax()      # which one is bright
        assert quarter(made.mean(0)[..., 0]) == quarter(x[a.labels_ == k].mean(0)[..., 0])
    np.testing.assert_allclose(a.prototypes(), a.inverse_transform(a.cluster_centers_))
    with torch.no_grad(): np.testing.assert_allclose(a.cluster_centers_, a.module_.bank(torch.zeros(1, 4))[0][0], atol=1e-6)


def test_gmvae_samples(parted):
    net, rng = parted["GMVAE"].module_, np.random.default_rng(0)
    torch.manual_seed(0)
    with torch.no_grad():
        mu, logvar = net.bank(torch.randn(50_000, 4))
        mean, var = mu[:, 2].mean(0), logvar[:, 2].exp().mean(0) + mu[:, 2].var(0)      # over all w
    z = net.draw(50_000, rng, np.int64(2))
    np.testing.assert_allclose(z.mean(0), mean, atol=0.05); np.testing.assert_allclose(z.var(0), var, rtol=0.05)
    np.testing.assert_allclose(net.draw(40_000, rng).mean(0), mu.mean((0, 1)), atol=0.05)      # all clusters equally often
    assert all(p.requires_grad for p in net.bank.parameters())


def test_gmvae_history(quarters):
    h = mixed("GMVAE", epochs=3).fit(quarters[0]).history_
    np.testing.assert_allclose(h.loss, h.reconstruction + h.kl_z + h.kl_w + h.kl_c, rtol=1e-4)
    h = mixed("GMVAE", epochs=2, floor=5.0, beta=0.5).fit(quarters[0]).history_
    np.testing.assert_allclose(h.loss, h.reconstruction + 0.5 * (h.kl_z + h.kl_w + 5), rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", ["mlp", "conv", "resize"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "squared"])
def test_likelihoods_and_networks(likelihood, network, channels):
    x = images(30, channels=channels)
    a = mixed("GMVAE", likelihood=likelihood, network=network, epochs=1).fit(x)
    assert np.isfinite(a.history_.loss).all() and a.reconstruct(x).shape == x.shape and a.sample(2).shape == (2, 16, 16, channels) and a.prototypes().shape == (3, 16, 16, channels)
    assert hasattr(a.module_, "log_sigma") == (likelihood == "gaussian")


def test_half_precision_training(quarters):
    x = quarters[0]
    exact, half = (mixed("GMVAE", precision=p, epochs=3).fit(x) for p in ("32-true", "bf16-mixed"))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.module_.parameters()) and half.predict_proba(x).dtype == np.float32
    np.testing.assert_allclose(half.history_.loss, exact.history_.loss, rtol=0.05)
    np.testing.assert_allclose(half.predict_proba(x).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "released", "best"])
def test_presets_train(preset, quarters):
    a = tiny("GMVAE", preset=preset).fit(quarters[0])
    assert np.isfinite(a.history_.loss).all() and same_weights(a, clone(a).fit(quarters[0]))


@pytest.mark.parametrize("bad, says", [(dict(floor=-1), "floor=-1"), (dict(w_dim=0), "w_dim=0"), (dict(prior_std=0.5), "prior_std has no effect")])
def test_values_that_are_refused(bad, says, X):
    with pytest.raises(ValueError, match=says): mixed("GMVAE", **bad).fit(X)
