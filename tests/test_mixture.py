"The methods with a mixture as prior: VaDE, CDVaDE, GMVAE."
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.distributions as D
from conftest import images, interrupt, same_weights, tiny
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from torch import nn

from medstrat.data.images import ImageSet
from medstrat.methods.gmvae import ConditionalMixture
from medstrat.methods.vade import VaDE
from medstrat.parts.mixture import first_mixture, log_joint
from medstrat.training.fitting import Fit
from medstrat.training.phases import NonFiniteLoss
from medstrat.training.method import Batch, build
from medstrat.training.phases import Moment
from medstrat.training.presets import resolve
from medstrat.training.registry import get_method

pytestmark = pytest.mark.filterwarnings("ignore:.*clusters are empty:UserWarning", "ignore::sklearn.exceptions.ConvergenceWarning")


def quick(method="VaDE", **changes):
    "Fully connected, few starts: a fraction of a second"
    return tiny(method, **(dict(network="mlp") | dict(likelihood="bernoulli") | (dict(n_init=2, augment="none") if method != "GMVAE" else {}) | changes))


def mixture_of(log_pi, mu, logvar): return D.MixtureSameFamily(D.Categorical(logits=log_pi), D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1))
def net_input(x): return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
def shares(a): return a.module_.bank.log_pi.exp().detach().numpy()
def phase(a, name="train"): return a.history_[a.history_.phase == name].dropna(axis=1, how="all").reset_index(drop=True)


def four_kinds(n=80):
    "Images (n,16,16,1) with one bright quarter, and which"
    y = np.arange(n) % 4
    x = np.random.default_rng(0).integers(0, 60, (n, 16, 16, 1))
    for i, k in enumerate(y): x[i, 8 * (k // 2):8 * (k // 2) + 8, 8 * (k % 2):8 * (k % 2) + 8] += 180
    return x.astype(np.uint8), y


@pytest.fixture(scope="module")
def quarters(): return four_kinds()


@pytest.fixture(scope="module")
def parted():
    "Fitted until the four kinds are four clusters; tests must not change them"
    x, _ = four_kinds()
    return dict(VaDE=quick(n_clusters=4, pretrain_epochs=20, pretrain_lr=6e-3, epochs=20, lr=3e-3, n_init=5).fit(x),
                GMVAE=quick("GMVAE", n_clusters=4, epochs=100, lr=3e-3, w_dim=4, prior_hidden=32).fit(x))


# ---- VaDE

def test_vade_terms_against_torch(quarters, parted):
    "With the same noise: the reconstruction and both divergences, from torch.distributions"
    a, x = parted["VaDE"], net_input(quarters[0][:12])
    net, bank = a.module_, a.module_.bank
    torch.manual_seed(3)
    with torch.no_grad():
        terms = net.loss(Batch(x), Moment())
        torch.manual_seed(3)
        m, v_log = net.encoder(x)
        q = D.Normal(m, (0.5 * v_log).exp())
        z = q.mean + q.stddev * torch.randn_like(m)
        p = mixture_of(bank.logits, bank.Q, bank.log_variances)
        c = D.Categorical(logits=p.component_distribution.log_prob(z[:, None]) + p.mixture_distribution.logits)
        each = D.kl_divergence(D.Independent(D.Normal(m[:, None], q.stddev[:, None]), 1), p.component_distribution)
        reconstruction = nn.functional.binary_cross_entropy(net.decoder(z).sigmoid(), x, reduction="none").sum((1, 2, 3))
        expected = dict(reconstruction=reconstruction.mean(), kl_z=(c.probs * each).sum(1).mean(), kl_c=D.kl_divergence(c, p.mixture_distribution).mean())
    assert a.settings_.likelihood == "bernoulli" and set(terms) == {"loss", *expected}
    for name, value in expected.items(): assert terms[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-3), name
    assert terms["loss"].item() == pytest.approx(sum(v.item() for v in expected.values()), rel=1e-3)


def test_vade_elbo_is_a_bound(quarters, parted):
    "The evidence of an image, by importance sampling with many draws, is not below the bound"
    a, x = parted["VaDE"], net_input(quarters[0][:1])
    net, bank = a.module_, a.module_.bank
    torch.manual_seed(0)
    with torch.no_grad():
        bound = -np.mean([net.loss(Batch(x), Moment())["loss"].item() for _ in range(200)])
        m, v_log = net.encoder(x)
        q = D.Independent(D.Normal(m[0], (0.5 * v_log[0]).exp()), 1)
        z = q.sample((4000,))
        rec = nn.functional.binary_cross_entropy_with_logits(net.decoder(z), x.expand(4000, -1, -1, -1), reduction="none").sum((1, 2, 3))
        ratio = -rec + log_joint(z, bank.log_pi, bank.Q, bank.logvar).logsumexp(1) - q.log_prob(z)
    evidence = logsumexp(ratio.numpy()) - np.log(4000)
    assert bound <= evidence + 0.3 and evidence - bound < 20


def test_vade_history(quarters):
    a = quick(beta=2.0, epochs=3, pretrain_epochs=2).fit(quarters[0], validation=quarters[0][:20])
    h = phase(a)
    np.testing.assert_allclose(h.loss, h.reconstruction + 2 * (h.kl_z + h.kl_c), rtol=1e-4)
    assert {"val_loss", "val_kl_z", "val_kl_c"} <= set(h) and (h.kl_z >= 0).all() and (h.kl_c >= -1e-4).all() and (h.kl_c <= 20).all()
    assert list(a.history_.phase) == ["pretrain"] * 2 + ["train"] * 3 and "kl" not in phase(a, "pretrain")
    np.testing.assert_allclose(phase(a, "pretrain").loss, phase(a, "pretrain").reconstruction)


def test_pretraining_as_a_vae(quarters):
    h = phase(quick(pretrain_kl=0.5).fit(quarters[0]), "pretrain")
    np.testing.assert_allclose(h.loss, h.reconstruction + 0.5 * h.kl, rtol=1e-4)
    means = [np.abs(quick(pretrain_kl=k, pretrain_epochs=20, epochs=0).fit(quarters[0]).transform(quarters[0])).mean() for k in (0.0, 100.0)]
    assert means[1] < means[0]


@pytest.mark.parametrize("init", ["full", "diag"])
@pytest.mark.parametrize("pretrain_kl", [0.0, 1.0])
def test_vade_begins_with_the_first_mixture(init, pretrain_kl, quarters):
    a = quick(epochs=0, init=init, n_init=3, n_clusters=4, pretrain_kl=pretrain_kl).fit(quarters[0])
    pi, mu, variance = first_mixture(a.transform(quarters[0]), 4, init, 3, 0)
    np.testing.assert_allclose(a.cluster_centers_, mu, rtol=1e-4, atol=1e-5); np.testing.assert_allclose(shares(a), pi, atol=1e-5)
    np.testing.assert_allclose(a.module_.bank.spread.detach() ** 2, variance.clip(np.exp(-9), np.exp(9)), rtol=1e-3)
    head = a.module_.encoder.heads[1]
    if pretrain_kl: assert head.weight.abs().max() > 0
    else:
        assert head.weight.abs().max() == 0
        np.testing.assert_allclose(head.bias.detach().exp(), (0.1 * pi @ variance).clip(np.exp(-9), np.exp(9)), rtol=1e-4)


def test_narrow_latent_spaces_still_learn_their_variances():
    "At the clamp of the log-variances there is no gradient: neither the encoder's nor the clusters' may begin there"
    x = (four_kinds()[0].astype(float) * 0.01).astype(np.uint8)
    a = quick(pretrain_epochs=1, pretrain_lr=1e-5, epochs=0).fit(x)
    begin = a.module_.encoder.heads[1].bias.detach().clone(), a.module_.bank.log_variances.detach().clone()
    assert all((t.abs() <= 9 + 1e-5).all() for t in begin)
    b = quick(pretrain_epochs=1, pretrain_lr=1e-5, epochs=2).fit(x)
    assert not torch.equal(b.module_.encoder.heads[1].bias, begin[0]) and b.module_.encoder.heads[1].weight.abs().max() > 0


def test_a_prior_without_effect_is_refused(quarters):
    with pytest.raises(ValueError, match="prior_std has no effect"): quick(prior_std=0.5).fit(quarters[0])
    quick(prior_std=0.5, pretrain_kl=1.0, epochs=0).fit(quarters[0])
    with pytest.raises(ValueError, match="prior_std has no effect"): quick("GMVAE", prior_std=0.5).fit(quarters[0])


def test_kl_warmup_of_vade(quarters):
    a = quick(kl_warmup=2.0, beta=3.0, epochs=4, batch_size=80).fit(quarters[0])      # one step an epoch
    h = phase(a)
    np.testing.assert_allclose(h.loss - h.reconstruction, np.array([0, 1.5, 3, 3]) * (h.kl_z + h.kl_c), rtol=1e-3, atol=1e-3)


def test_vade_probabilities(quarters, parted):
    a, x = parted["VaDE"], quarters[0]
    p, Z, bank = a.predict_proba(x), a.transform(x), a.module_.bank
    assert (p.argmax(1) == a.labels_).all() and (a.predict(x) == a.labels_).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    m = GaussianMixture(4, covariance_type="diag")      # scikit-learn's own responsibilities
    m.weights_, m.means_, m.covariances_ = shares(a), a.cluster_centers_.astype(np.float64), bank.spread.detach().double().numpy() ** 2
    m.precisions_cholesky_ = 1 / np.sqrt(m.covariances_)
    np.testing.assert_allclose(p, m.predict_proba(Z.astype(np.float64)), atol=1e-3)


def test_vade_finds_and_makes_the_four_kinds(quarters, parted):
    (x, y), a = quarters, parted["VaDE"]
    assert adjusted_rand_score(y, a.labels_) == 1
    for k in range(4):
        made = a.sample(50, cluster=k)
        assert made.shape == (50, 16, 16, 1) and made.dtype == np.float32 and 0 <= made.min() <= made.max() <= 1
        assert (a.predict(made) == k).mean() > 0.8, k
        np.testing.assert_allclose(made.mean(0), x[a.labels_ == k].mean(0) / 255, atol=0.1)
    assert a.predict(a.prototypes()).tolist() == [0, 1, 2, 3]


def test_shares_of_draws():
    "They sum to 1 as exactly as numpy's draw wants it, whatever the logits"
    for k in (1, 2, 3, 10, 40):
        net = build(VaDE.method, resolve(quick(n_clusters=k))[0], (16, 16, 1), k)
        for seed in range(30):
            with torch.no_grad(): net.bank.logits.copy_(torch.randn(k, generator=torch.Generator().manual_seed(seed)))
            assert net.draw(5, np.random.default_rng(0)).shape == (5, 4)


def test_vade_samples(parted):
    a, rng = parted["VaDE"], np.random.default_rng(0)
    spread, z = a.module_.bank.spread.detach().numpy(), a.module_.draw(20000, rng, 1)
    np.testing.assert_allclose(z.mean(0), a.cluster_centers_[1], atol=0.05 * spread[1].max()); np.testing.assert_allclose(z.std(0), spread[1], rtol=0.05)
    everything = torch.from_numpy(a.module_.draw(20000, rng)).float()
    with torch.no_grad(): found = a.module_.bank.responsibilities(everything).mean(0).numpy()
    np.testing.assert_allclose(found, shares(a), atol=0.02)      # as often as the mixture says


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", ["mlp", "conv", "resize"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "squared"])
@pytest.mark.parametrize("method", ["VaDE", "GMVAE"])
def test_likelihoods_and_networks(method, likelihood, network, channels):
    x = images(30, channels=channels)
    a = quick(method, likelihood=likelihood, network=network, epochs=1, n_init=1) if method == "VaDE" else quick(method, likelihood=likelihood, network=network, epochs=1)
    a.fit(x)
    assert np.isfinite(a.history_.loss).all() and a.reconstruct(x).shape == x.shape and a.sample(2).shape == (2, 16, 16, channels) and a.prototypes().shape == (3, 16, 16, channels)
    assert hasattr(a.module_, "log_sigma") == (likelihood == "gaussian")


@pytest.mark.parametrize("method", ["VaDE", "GMVAE"])
def test_half_precision_training(method, quarters):
    x = quarters[0]
    exact, half = (quick(method, precision=p, epochs=3).fit(x) for p in ("32-true", "bf16-mixed"))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.module_.parameters()) and half.predict_proba(x).dtype == np.float32
    np.testing.assert_allclose(half.history_.loss, exact.history_.loss, rtol=0.05)
    np.testing.assert_allclose(half.predict_proba(x).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("name, term", [("Q", "kl_z"), ("log_variances", "kl_z"), ("logits", "kl_z|kl_c")])
def test_a_mixture_that_breaks_is_named(name, term, quarters):
    "And the weights of the epoch before are put back"
    class Break(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, i):
            if module.phase.name == "train" and module.step == 9:
                with torch.no_grad(): getattr(module.net.bank, name)[0] = float("nan")
    a = quick(epochs=4, trainer_options=dict(callbacks=[Break()]))      # four steps an epoch
    with pytest.raises(NonFiniteLoss, match=rf"the term '({term})' of the loss became nan in phase 'train', epoch 3, step 10"): a.fit(quarters[0])
    assert a.interrupted_ is True and len(phase(a)) == 2 and all(v.isfinite().all() for v in a.module_.state_dict().values())
    assert (a.predict(quarters[0]) == a.labels_).all() and np.isfinite(a.sample(4, cluster=0)).all()
    good = []
    class Note(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if module.phase.name == "train": good.append({k: v.clone() for k, v in module.net.state_dict().items()})
    quick(epochs=4, trainer_options=dict(callbacks=[Note()])).fit(quarters[0])
    assert all(v.equal(good[1][k]) for k, v in a.module_.state_dict().items())


def test_empty_clusters_are_reported(quarters, monkeypatch):
    monkeypatch.setattr(Fit, "assign", lambda self: np.zeros(len(self.images), np.int64))
    with pytest.warns(UserWarning, match=r"2 of 3 clusters are empty \(numbers 1, 2\).*random_state.*more training"): quick().fit(quarters[0])
    monkeypatch.setattr(Fit, "assign", lambda self: np.arange(len(self.images)) % 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quick().fit(quarters[0])


def test_too_many_clusters_for_what_differs():
    with pytest.raises(ValueError, match="n_clusters=5, but .*only 4"): quick(n_clusters=5).fit(np.repeat(images(4), 5, 0))
    assert quick(n_clusters=4, n_init=1).fit(np.repeat(images(4), 5, 0)).labels_.shape == (20,)


@pytest.mark.parametrize("stop", [6, 8, 15])      # in the pre-training, at its last batch, while the weight of the KL term rises
def test_vade_resume(stop, quarters, tmp_path):
    x, more = quarters[0], dict(epochs=3, augment="affine", kl_warmup=2.0)
    whole = quick(**more).fit(x, validation=x[:20])
    with pytest.warns(UserWarning, match="interrupted"): quick(**more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(stop)])).fit(x, validation=x[:20])
    a = quick(**more).fit(x, validation=x[:20], resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all()
    pd.testing.assert_frame_equal(a.history_.drop(columns="seconds"), whole.history_.drop(columns="seconds"))


def test_vade_cache(quarters, tmp_path):
    def fit(**more): return quick(cache_dir=tmp_path, **more).fit(quarters[0]), len(list(tmp_path.iterdir()))
    a, n = fit(); assert n == 1 and same_weights(a, quick().fit(quarters[0]))
    for same in (dict(), dict(n_clusters=4), dict(beta=2.0), dict(kl_warmup=1.0), dict(init="diag"), dict(n_init=1), dict(lr=1e-2), dict(epochs=1)):
        a, n = fit(**same)
        assert n == 1 and same_weights(a, quick(**same).fit(quarters[0])), same
    for i, other in enumerate([dict(pretrain_kl=1.0), dict(likelihood="gaussian"), dict(latent_dim=3), dict(random_state=1), dict(augment="affine"), dict(pretrain_kl=1.0, prior_std=2.0)], 2): assert fit(**other)[1] == i, other


def test_vade_from_other_methods(quarters, tmp_path):
    x = quarters[0]
    for i, other in enumerate(["VAE + k-means", "AE + k-means", "DEC", "VaDE"]):
        first = tiny(other, network="mlp", likelihood="bernoulli", epochs=1, n_init=2)
        first.fit(x).save(tmp_path / str(i))
        a = quick(pretrained=tmp_path / str(i), epochs=0).fit(x)
        assert (a.transform(x) == first.transform(x)).all() and (a.reconstruct(x) == first.reconstruct(x)).all()
    assert np.isfinite(quick(pretrained=tmp_path / "1").fit(x).history_.loss).all()


@pytest.mark.parametrize("preset", ["paper", "released", "best"])
@pytest.mark.parametrize("method", ["VaDE", "GMVAE"])
def test_presets_train(method, preset, quarters):
    a = tiny(method, preset=preset, **(dict(n_init=1) if method == "VaDE" else {})).fit(quarters[0])
    assert np.isfinite(a.history_.loss).all() and same_weights(a, clone(a).fit(quarters[0]))


def test_printed_values():
    s = resolve(get_method("VaDE")(preset="paper"))[0]
    assert (s.network, s.hidden, s.latent_dim, s.lr, s.lr_schedule, s.lr_drop, s.lr_drop_every, s.batch_size, s.likelihood) == ("mlp", (500, 500, 2000), 10, 2e-3, "step", 0.9, 10, 100, "bernoulli")
    s = resolve(get_method("CDVaDE")(preset="paper"))[0]
    assert (s.network, s.channels, s.norm, s.activation, s.likelihood, s.latent_dim) == ("conv", (32, 64, 128), "batch", "leaky_relu", "gaussian", 20)
    her2 = resolve(get_method("CDVaDE")(preset="paper"), "her2")[0]
    assert (her2.latent_dim, her2.n_clusters, her2.image_size) == (500, 3, 128)
    s = resolve(get_method("GMVAE")(preset="paper"))[0]
    assert (s.latent_dim, s.w_dim, s.prior_hidden) == (200, 150, 500)


# ---- CDVaDE

def test_cdvade_looks_beyond_what_it_is_told():
    "Loud: bright or dark. Quiet: where the bar is. Told about the brightness, the clusters are the bars"
    rng = np.random.default_rng(0)
    n = 160
    loud, quiet = rng.integers(0, 2, n), rng.integers(0, 2, n)
    x = rng.integers(0, 25, (n, 16, 16)) + 130 * loud[:, None, None]
    for i in range(n): x[i, :, 3:6] += 70 * (quiet[i] == 0); x[i, :, 10:13] += 70 * (quiet[i] == 1)
    S = ImageSet(x.clip(0, 255).astype(np.uint8), dict(light=np.array(["dark", "bright"])[loud]))
    more = dict(n_clusters=2, hidden=(64,), latent_dim=2, pretrain_epochs=40, pretrain_lr=3e-3, epochs=10, lr=3e-3, likelihood="gaussian", sigma=0.2, pretrain_kl=1.0, n_init=5)
    plain, told = quick("VaDE", **more).fit(S), quick("CDVaDE", **more).fit(S, condition="light")
    agree = lambda a, y: adjusted_rand_score(y, a.labels_)
    assert agree(plain, loud) > 0.9 and agree(told, quiet) > 0.9 and agree(told, loud) < 0.05
    light, dark = (told.prototypes(dict(light=v)) for v in ("bright", "dark"))
    assert (light.mean((1, 2, 3)) > dark.mean((1, 2, 3)) + 0.3).all()


# ---- GMVAE


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
    terms = quick("GMVAE", epochs=0, floor=floor).fit(quarters[0]).module_.loss(Batch(net_input(quarters[0][:20])), Moment())
    slope, = torch.autograd.grad(terms["loss"], terms["kl_c"], retain_graph=True)
    assert slope == float(flows)
    expected = sum(terms[k] for k in ("reconstruction", "kl_z", "kl_w")) + max(terms["kl_c"].item(), floor)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_floor_lets_clusters_be_more_certain(quarters):
    kl = [phase(quick("GMVAE", n_clusters=4, epochs=20, lr=2e-2, floor=f).fit(quarters[0])).kl_c.iloc[-5:].mean() for f in (0.0, 1.2)]
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
    h = quick("GMVAE", epochs=3).fit(quarters[0]).history_
    np.testing.assert_allclose(h.loss, h.reconstruction + h.kl_z + h.kl_w + h.kl_c, rtol=1e-4)
    h = quick("GMVAE", epochs=2, floor=5.0, beta=0.5).fit(quarters[0]).history_
    np.testing.assert_allclose(h.loss, h.reconstruction + 0.5 * (h.kl_z + h.kl_w + 5), rtol=1e-4)


def test_gmvae_takes_no_pretraining_parameters():
    assert not {"pretrain_epochs", "pretrained", "cache_dir", "init"} & set(get_method("GMVAE").__dataclass_fields__)
    with pytest.raises(ValueError, match="floor=-1"): quick("GMVAE", floor=-1).fit(images())
    with pytest.raises(ValueError, match="w_dim=0"): quick("GMVAE", w_dim=0).fit(images())
    for bad, says in [(dict(init="fulll"), "Did you mean 'full'"), (dict(pretrain_kl=-1.0), "pretrain_kl=-1"), (dict(n_init=0), "n_init=0"), (dict(n_clusters="elbow"), "n_clusters='elbow'")]:
        with pytest.raises(ValueError, match=says): quick("VaDE", **bad).fit(images())
