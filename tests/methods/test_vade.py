"VaDE: the bound and its terms, the start, what it finds and draws, and what can go wrong."

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.distributions as D
from conftest import four_kinds, images, interrupt, mixed, net_input, phase, same_weights, tiny
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from torch import nn

from medstrat.data.arrays import as_images
from medstrat.methods.vade import VaDE
from medstrat.parts.mixture import first_mixture, log_joint
from medstrat.parts.student import Target
from medstrat.training.method import Batch, build
from medstrat.training.phases import Moment, NonFiniteLoss
from medstrat.training.presets import resolve
from medstrat.vae.networks import to_network

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def mixture_of(log_pi, mu, logvar): return D.MixtureSameFamily(D.Categorical(logits=log_pi), D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1))
def shares(a): return a.module_.bank.log_pi.exp().detach().numpy()


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
    a = mixed(beta=2.0, epochs=3, pretrain_epochs=2, refine_epochs=1).fit(quarters[0], validation=quarters[0][:20])
    h = phase(a)
    np.testing.assert_allclose(h.loss, h.reconstruction + 2 * (h.kl_z + h.kl_c), rtol=1e-4)
    assert {"val_loss", "val_kl_z", "val_kl_c"} <= set(h) and (h.kl_z >= 0).all() and (h.kl_c >= -1e-4).all() and (h.kl_c <= 20).all()
    assert list(a.history_.phase) == ["pretrain"] * 2 + ["refine"] + ["train"] * 3 and "kl" not in phase(a, "pretrain")
    np.testing.assert_allclose(phase(a, "pretrain").loss, phase(a, "pretrain").reconstruction)


def test_refinement_is_that_of_idec(quarters):
    "The loss from its equation, word by word; the target from Student's t of the centres; nothing of it in the paper's recipe"
    x = quarters[0]
    a = mixed(pretrain_epochs=3, refine_epochs=2, likelihood="gaussian", sigma=.4, augment="none", batch_size=len(x), epochs=0).fit(x)
    net, x = a.module_.cpu(), to_network(torch.from_numpy(as_images(x)))
    with torch.no_grad():
        z = net.embed(x)
        q = 1 / (1 + torch.cdist(z, net.bank.Q).square())
        q = q / q.sum(1, keepdim=True)
        p = q.square() / q.sum(0)
        p = p / p.sum(1, keepdim=True)
        target = Target()
        target.renew(q, "dec", 2.0, 0.0)
        terms = net.refine_loss(Batch(x, index=torch.arange(len(x))), Moment(memory=target))
        kl, error = (p * (p / q).log()).sum(1).mean(), (net.decode(z) - x).square().mean()
    np.testing.assert_allclose([terms["clustering"], terms["reconstruction"], terms["loss"]], [kl, error, 0.1 * kl + error], rtol=1e-4)
    stages = lambda **more: [s.name for s in build(VaDE.method, resolve(tiny("VaDE", **more))[0], (16, 16, 1), 3).recipe() if hasattr(s, "name")]
    assert stages(refine_epochs=0) == stages(preset="paper") == ["first mixture", "train"]
    assert stages(init="full") == stages(refine_epochs=0) and resolve(tiny("VaDE", init="full"))[0].refine_epochs == 0
    assert stages(refine_epochs=2) == ["first clusters", "first target", "refine", "first mixture", "train"]


def test_the_refinement_makes_clusters_sharper(quarters):
    x = quarters[0]
    more = dict(pretrain_epochs=20, pretrain_lr=5e-3, epochs=0, n_clusters=4)
    before, after = (mixed(**more, refine_epochs=n).fit(x) for n in (0, 40))
    assert (phase(after, "refine").clustering > 0).all()
    spread = lambda a: np.mean([a.transform(x)[a.labels_ == k].var(0).sum() for k in np.unique(a.labels_)]) / a.transform(x).var(0).sum()
    assert spread(after) < spread(before)


def test_pretraining_as_a_vae(quarters):
    h = phase(mixed(pretrain_kl=0.5).fit(quarters[0]), "pretrain")
    np.testing.assert_allclose(h.loss, h.reconstruction + 0.5 * h.kl, rtol=1e-4)
    means = [np.abs(mixed(pretrain_kl=k, pretrain_epochs=20, epochs=0).fit(quarters[0]).transform(quarters[0])).mean() for k in (0.0, 100.0)]
    assert means[1] < means[0]


@pytest.mark.parametrize("init", ["full", "diag"])
@pytest.mark.parametrize("pretrain_kl", [0.0, 1.0])
def test_vade_begins_with_the_first_mixture(init, pretrain_kl, quarters):
    a = mixed(epochs=0, init=init, n_init=3, n_clusters=4, pretrain_kl=pretrain_kl, refine_epochs=0).fit(quarters[0])
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
    a = mixed(pretrain_epochs=1, pretrain_lr=1e-5, epochs=0).fit(x)
    begin = a.module_.encoder.heads[1].bias.detach().clone(), a.module_.bank.log_variances.detach().clone()
    assert all((t.abs() <= 9 + 1e-5).all() for t in begin)
    b = mixed(pretrain_epochs=1, pretrain_lr=1e-5, epochs=2).fit(x)
    assert not torch.equal(b.module_.encoder.heads[1].bias, begin[0]) and b.module_.encoder.heads[1].weight.abs().max() > 0


def test_a_prior_without_effect_is_refused(quarters):
    with pytest.raises(ValueError, match="prior_std has no effect"): mixed(prior_std=0.5).fit(quarters[0])
    mixed(prior_std=0.5, pretrain_kl=1.0, epochs=0).fit(quarters[0])


def test_kl_warmup_of_vade(quarters):
    a = mixed(kl_warmup=2.0, beta=3.0, epochs=4, batch_size=80).fit(quarters[0])      # one step an epoch
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
        net = build(VaDE.method, resolve(mixed(n_clusters=k))[0], (16, 16, 1), k)
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
def test_likelihoods_and_networks(likelihood, network, channels):
    x = images(30, channels=channels)
    a = mixed("VaDE", likelihood=likelihood, network=network, epochs=1, n_init=1).fit(x)
    assert np.isfinite(a.history_.loss).all() and a.reconstruct(x).shape == x.shape and a.sample(2).shape == (2, 16, 16, channels) and a.prototypes().shape == (3, 16, 16, channels)
    assert hasattr(a.module_, "log_sigma") == (likelihood == "gaussian")


def test_half_precision_training(quarters):
    x = quarters[0]
    exact, half = (mixed("VaDE", precision=p, epochs=3).fit(x) for p in ("32-true", "bf16-mixed"))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.module_.parameters()) and half.predict_proba(x).dtype == np.float32
    np.testing.assert_allclose(half.history_.loss, exact.history_.loss, rtol=0.05)
    np.testing.assert_allclose(half.predict_proba(x).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "released", "best"])
def test_presets_train(preset, quarters):
    a = tiny("VaDE", preset=preset, n_init=1).fit(quarters[0])
    assert np.isfinite(a.history_.loss).all() and same_weights(a, clone(a).fit(quarters[0]))


@pytest.mark.parametrize("bad, says", [(dict(init="fulll"), "Did you mean 'full'"), (dict(pretrain_kl=-1.0), "pretrain_kl=-1"), (dict(n_init=0), "n_init=0"), (dict(n_clusters="elbow"), "n_clusters='elbow'")])
def test_values_that_are_refused(bad, says, X):
    with pytest.raises(ValueError, match=says): mixed(**bad).fit(X)


@pytest.mark.parametrize("name, term", [("Q", "kl_z"), ("log_variances", "kl_z"), ("logits", "kl_z|kl_c")])
def test_a_mixture_that_breaks_is_named(name, term, quarters):
    "And the weights of the epoch before are put back"
    class Break(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, i):
            if module.phase.name == "train" and module.step == 9:
                with torch.no_grad(): getattr(module.net.bank, name)[0] = float("nan")
    a = mixed(epochs=4, trainer_options=dict(callbacks=[Break()]))      # four steps an epoch
    with pytest.raises(NonFiniteLoss, match=rf"the term '({term})' of the loss became nan in phase 'train', epoch 3, step 10"): a.fit(quarters[0])
    assert a.interrupted_ is True and len(phase(a)) == 2 and all(v.isfinite().all() for v in a.module_.state_dict().values())
    assert (a.predict(quarters[0]) == a.labels_).all() and np.isfinite(a.sample(4, cluster=0)).all()
    good = []
    class Note(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if module.phase.name == "train": good.append({k: v.clone() for k, v in module.net.state_dict().items()})
    mixed(epochs=4, trainer_options=dict(callbacks=[Note()])).fit(quarters[0])
    assert all(v.equal(good[1][k]) for k, v in a.module_.state_dict().items())


@pytest.mark.parametrize("stop", [6, 8, 15])      # in the pre-training, at its last batch, while the weight of the KL term rises
def test_vade_resume(stop, quarters, tmp_path):
    x, more = quarters[0], dict(epochs=3, augment="affine", kl_warmup=2.0)
    whole = mixed(**more).fit(x, validation=x[:20])
    with pytest.warns(UserWarning, match="interrupted"): mixed(**more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(stop)])).fit(x, validation=x[:20])
    a = mixed(**more).fit(x, validation=x[:20], resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all()
    pd.testing.assert_frame_equal(a.history_.drop(columns="seconds"), whole.history_.drop(columns="seconds"))


def test_vade_from_other_methods(quarters, tmp_path):
    x = quarters[0]
    for i, other in enumerate(["VAE + k-means", "AE + k-means", "DEC", "VaDE"]):
        first = tiny(other, network="mlp", likelihood="bernoulli", epochs=1, n_init=2)
        first.fit(x).save(tmp_path / str(i))
        a = mixed(pretrained=tmp_path / str(i), epochs=0, refine_epochs=0).fit(x)
        assert (a.transform(x) == first.transform(x)).all() and (a.reconstruct(x) == first.reconstruct(x)).all()
    assert np.isfinite(mixed(pretrained=tmp_path / "1").fit(x).history_.loss).all()
