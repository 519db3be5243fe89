"The contrastive autoencoder: the loss, LARS and the learning rate, both phases of a fit, and what can go wrong."
import math
import warnings
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import Lazy, images, interrupt, same_weights, tiny
from helpers import slow_nt_xent
from sklearn.base import clone
from sklearn.cluster import KMeans
from torch import nn

from medstrat.parts.augmentation import augment
from medstrat.data.images import ImageSet
from medstrat.parts.choice import choose_n_clusters
from medstrat.methods import contrastive
from medstrat.methods.contrastive import ContrastiveNetwork, two_views
from medstrat.training.phases import NonFiniteLoss
from medstrat.training.method import Batch, Told
from medstrat.training.phases import Moment
from medstrat.training.saving import load_model
from medstrat.training.signs import DoubtfulFit

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def small(**changes): return tiny("contrastive AE", **(dict(n_init=2) | changes))
def mlp(**changes): return small(**(dict(network="mlp", augment=dict(flip=0.5, noise=0.5)) | changes))
def history(a): return a.history_.drop(columns="seconds")
def phase(a, name): return a.history_[a.history_.phase == name].dropna(axis=1, how="all").reset_index(drop=True)
def weights(a): return {k: v.clone() for k, v in a.module_.state_dict().items()}
def net_input(x): return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
def spied(*callbacks): return dict(trainer_options=dict(callbacks=list(callbacks)))
def begins(k, *names): return k.startswith(names)


PAPER = dict(preset="paper", n_clusters=3, lr_warmup=2)      # LARS, the printed denominator, no normalisation, one curve of rates
KINDS = dict(best=dict(), paper=PAPER, elbow=dict(preset="paper", n_clusters="elbow"))


@pytest.fixture(scope="module")
def fitted():
    "One fitted estimator of each kind; tests must not change them"
    return {k: small(**more).fit(images()) for k, more in KINDS.items()}


class Spy(pl.Callback):
    "Calls a function of (trainer, module) at the start of each phase, before each step of the optimiser, and after each batch"
    def __init__(self, start=None, step=None, batch=None, epoch=None): self.start, self.step, self.batch, self.epoch = start, step, batch, epoch
    def on_train_start(self, trainer, module): self.start and self.start(trainer, module)
    def on_before_optimizer_step(self, trainer, module, optimizer): self.step and self.step(trainer, module)
    def on_train_batch_end(self, trainer, module, *args): self.batch and self.batch(trainer, module)
    def on_train_epoch_end(self, trainer, module): self.epoch and self.epoch(trainer, module)


# ---- the contrastive loss


# ---- who is found

def close_pairs(b=200, p=16):
    "Cosines beyond 0.99 between all, beyond 0.9999 within a pair"
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1, p, generator=g) + 0.05 * torch.randn(b, p, generator=g)
    return [base + 5e-4 * torch.randn(b, p, generator=g) for _ in range(2)]


# ---- LARS

def named(net): return {p: n for n, p in net.named_parameters()}


@pytest.mark.parametrize("more", [dict(norm="none"), dict(norm="batch"), dict(norm="batch", network="resize"), dict(network="mlp"), dict(likelihood="gaussian")], ids=str)
def test_groups_of_lars_in_a_fit(more, X):
    "Biases, the scales of normalisation and σ are neither adapted nor decayed; each parameter that learns is in one group"
    seen = {}
    def look(trainer, module):
        optimizer, names = trainer.optimizers[0], named(module.net)
        norms = {f"{n}.{k}" for n, m in module.net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for k in ("weight", "bias")}
        assert type(optimizer).__name__ == "Lars"
        for g in optimizer.param_groups:
            assert g["momentum"] == 0.9 and not g["nesterov"] and g["trust_coeff"] == 0.001
            for p in g["params"]:
                plain = names[p].endswith("bias") or names[p] in norms or names[p] == "log_sigma"
                assert (g["weight_decay"], g["always_adapt"]) == ((0, False) if plain else (1e-6, True)), names[p]
        seen[module.phase.name] = [names[p] for g in optimizer.param_groups for p in g["params"]]
    a = small(**(PAPER | dict(epochs=1, decoder_epochs=1) | more), **spied(Spy(start=look))).fit(X)
    all_names, own = {n for n, _ in a.module_.named_parameters()}, {"log_sigma"} & dict(a.module_.named_parameters()).keys()
    assert sorted(seen["contrast"]) == sorted({n for n in all_names if begins(n, "encoder.", "projector.", "decoder.")} | own)
    assert sorted(seen["decode"]) == sorted({n for n in all_names if begins(n, "decoder.", "labels.")} | own)


def test_steps_of_lars_in_a_fit(X):
    "Each step of both phases again, in float64, from the gradients: momentum, trust, decay"
    before, momentum, checked = {}, {}, []
    def note(trainer, module):
        before.clear()
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        for n, p in module.net.named_parameters():
            if p.grad is not None and p.requires_grad: before[n] = (p.detach().double().clone(), p.grad.double().clone(), rate)
    def check(trainer, module):
        for n, p in module.net.named_parameters():
            if n not in before: continue
            w, g, rate = before[n]
            if p.ndim > 1 and w.norm() > 0 and g.norm() > 0: g = (g + 1e-6 * w) * 0.001 * w.norm() / (g.norm() + 1e-6 * w.norm() + 1e-8)
            momentum[n] = 0.9 * momentum[n] + g if n in momentum else g
            np.testing.assert_allclose(p.detach(), w - rate * momentum[n], rtol=1e-4, atol=2e-6, err_msg=n)
            checked.append(n)
    def forget(trainer, module): momentum.clear()
    small(**(PAPER | dict(norm="batch")), **spied(Spy(start=forget, step=note, batch=check))).fit(X)
    assert len(checked) > 150 and any(begins(n, "projector") for n in checked) and any(begins(n, "labels") for n in checked)


def test_momentum_is_kept_in_checkpoints(X, tmp_path):
    a = small(**PAPER, checkpoint_dir=tmp_path).fit(X)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert len(state["state"]) == len([n for n, _ in a.module_.named_parameters() if begins(n, "decoder.", "labels.")])
    assert all(v["momentum_buffer"].abs().sum() > 0 for v in state["state"].values())
    assert [(g["weight_decay"], g["always_adapt"]) for g in state["param_groups"]] == [(1e-6, True), (0.0, False)]


def test_adam_is_the_other_one(X):
    seen = []
    small(**spied(Spy(start=lambda t, m: seen.append(type(t.optimizers[0]).__name__)))).fit(X)
    assert seen == ["Adam", "Adam"]


# ---- the learning rate

def slow_rate(epoch, epochs, start, peak, end, rise):
    if epoch <= rise: return start + (peak - start) * epoch / rise
    return end + (peak - end) * (1 + math.cos(math.pi * (epoch - rise) / (epochs - rise))) / 2


@pytest.mark.parametrize("epochs, decoder_epochs, rise", [(3, 4, 2), (2, 3, 4), (4, 1, 1.5), (3, 0, 1), (0, 3, 1), (2, 2, 10)])
def test_rates_of_a_fit(epochs, decoder_epochs, rise, X):
    "One curve over both phases: at every step, and at the end of every epoch in the history"
    steps, n = [], epochs + decoder_epochs
    a = mlp(preset="paper", n_clusters=3, epochs=epochs, decoder_epochs=decoder_epochs, lr_warmup=rise, **spied(Spy(step=lambda t, m: steps.append(t.optimizers[0].param_groups[0]["lr"])))).fit(X)
    rate = lambda e: slow_rate(e, n, 0.01, 0.25, 0.05, rise)
    assert len(steps) == 3 * n and steps == pytest.approx([rate(i / 3) for i in range(3 * n)])
    assert list(a.history_.lr) == pytest.approx([rate(i + 1) for i in range(n)]) and list(a.history_.phase) == ["contrast"] * epochs + ["decode"] * decoder_epochs


def test_all_groups_have_the_rate(X):
    seen = []
    mlp(**PAPER, **spied(Spy(batch=lambda t, m: seen.append({g["lr"] for g in t.optimizers[0].param_groups})))).fit(X)
    assert all(len(rates) == 1 for rates in seen) and len(seen) == 12


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "tenths"])
def test_other_schedules_begin_anew_in_the_second_phase(schedule, X):
    a = mlp(lr_schedule=schedule, epochs=4, decoder_epochs=4, lr_drop_every=1).fit(X)
    assert list(phase(a, "contrast").lr) == pytest.approx(list(phase(a, "decode").lr))


@pytest.mark.parametrize("more", [dict(lr_schedule="warmup-cosine"), dict(lr_schedule="warmup-cosine", optimizer="lars", lr=0.1), dict(preset="paper", optimizer="adam", lr=0.001)], ids=str)
def test_the_highest_rate_is_the_highest(more, X):
    "Refused with a word about lr_start or lr_end, or never above lr"
    try: a = mlp(**(dict(n_clusters=3, epochs=3, decoder_epochs=3, lr_warmup=2) | more)).fit(X)
    except ValueError as e: assert "lr_start" in str(e) or "lr_end" in str(e)
    else: assert a.history_.lr.max() <= a.settings_.lr * (1 + 1e-6)


# ---- the losses

def views_of(a, batch, seed=7):
    torch.manual_seed(seed)
    return two_views(a.settings_)(batch, True)


def by_hand(a, x, y=None, c=True):
    "Both losses of a fitted estimator on images (B,C,H,W), word by word"
    s, net = a.settings_, a.module_
    torch.manual_seed(7)
    views = augment(torch.cat([x, x]), s.augment, s.crop, s.exposure)
    h = net.encoder(views)[0]
    z = net.projector(h).detach().double().numpy()
    told = h
    if c:
        q = net.bank.Q
        cosine = (h / h.norm(dim=1, keepdim=True)) @ (q / q.norm(dim=1, keepdim=True)).T
        told = h + net.labels((cosine / s.assignment_tau).exp() / (cosine / s.assignment_tau).exp().sum(1, keepdim=True))
    out = net.decoder(told if y is None else torch.cat([told, torch.cat([y, y])], 1)).sigmoid()
    b = len(x)
    mse = sum(((out[i] - views[i]) ** 2).mean() for i in range(2 * b)) / b       # MSE(x₁,y₁) + MSE(x₂,y₂)
    return slow_nt_xent(z[:b], z[b:], s.tau, s.denominator), mse.item()


@pytest.mark.parametrize("kind", ["best", "paper"])
def test_losses_by_hand(kind, fitted, X):
    a, x = fitted[kind], net_input(X[:13])
    with torch.no_grad():
        second = a.module_.decoder_loss(views_of(a, Batch(x)), Moment())
        contrast, mse = by_hand(a, x)
        assert second["loss"].item() == pytest.approx(mse, rel=1e-4) == second["reconstruction"].item() and set(second) == {"loss", "reconstruction"}
        first = a.module_.loss(views_of(a, Batch(x)), Moment())               # which the decoder is told nothing in, whatever it has learned since
        contrast, mse = by_hand(a, x, c=False)
    assert first["contrastive"].item() == pytest.approx(contrast, rel=1e-4) and first["reconstruction"].item() == pytest.approx(mse, rel=1e-4)
    assert first["loss"].item() == pytest.approx(contrast + a.settings_.alpha * mse, rel=1e-4) and 0 <= first["partner_found"] <= 1


def test_gradients_of_the_losses(fitted, X):
    "First phase: none for the label layers. Second: none for encoder and projector, even if nothing were frozen"
    net = deepcopy(fitted["best"].module_).train()
    batch = views_of(fitted["best"], Batch(net_input(X[:8])))
    for loss, learn in ((net.decoder_loss, {"decoder", "labels"}), (net.loss, {"encoder", "projector", "decoder"})):
        net.zero_grad()
        loss(batch, Moment())["loss"].backward()
        assert {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == learn
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_two_different_views_of_each_image(fitted, X):
    "Each image twice, its views apart; validation images too; only the images change"
    batch = Batch(net_input(X[:20]), torch.arange(20), Told(torch.randn(20, 2)))
    for training in (True, False):
        made = two_views(fitted["best"].settings_)(batch, training)
        one, two = made.x.chunk(2)
        assert made.x.shape == (40, 1, 16, 16) and ((one != two).flatten(1).any(1)).sum() > 17     # with ½⁵ · ½⁵ both stay as they are
        assert made.told.covariates.equal(batch.told.covariates.repeat(2, 1)) and made.index.equal(batch.index)
        assert two_views(fitted["best"].settings_)(replace(batch, told=Told()), training).told == Told()


def test_how_the_views_are_made_is_a_parameter(X, monkeypatch):
    got, seen = [], []
    monkeypatch.setattr(contrastive, "augmenter", lambda *how: got.append(how) or (lambda x: seen.append(len(x)) or x))
    a = small(augment=dict(crop=0.7), crop=0.9, exposure=0.4, epochs=1, decoder_epochs=1).fit(X, validation=X[:20])
    assert {str(how) for how in got} == {"({'crop': 0.7}, 0.9, 0.4)"}
    assert seen == 2 * [40] * 5 and set(a.history_.partner_found.dropna()) == {1.0}       # each phase: three batches, validation images, the check after the epoch; views that are alike are found


def test_alpha(X):
    "With α = 0 the decoder learns nothing in the first phase"
    a, b = mlp(alpha=0.0, decoder_epochs=0).fit(X), mlp(alpha=0.0, epochs=0, decoder_epochs=0).fit(X)
    assert all(v.equal(weights(b)[k]) for k, v in weights(a).items() if begins(k, "decoder")) and not same_weights(a, b)
    h = phase(mlp(alpha=3.0).fit(X), "contrast")
    np.testing.assert_allclose(h.loss, h.contrastive + 3 * h.reconstruction, rtol=1e-4)


def test_history(fitted):
    for a in fitted.values():
        assert list(a.history_.phase) == ["contrast"] * 2 + ["decode"] * 2 and a.n_iter_ == 4
        assert {"loss", "contrastive", "reconstruction", "partner_found"} <= set(phase(a, "contrast")) and "contrastive" not in phase(a, "decode")
        np.testing.assert_allclose(phase(a, "contrast").loss, phase(a, "contrast").contrastive + 0.1 * phase(a, "contrast").reconstruction, rtol=1e-4)


def test_it_learns_to_find_partners():
    x = images(80, seed=3)
    a = small(epochs=25, decoder_epochs=8, lr=3e-3, augment=dict(noise=1.0), batch_size=40, latent_dim=8).fit(x)
    one, two = phase(a, "contrast"), phase(a, "decode")
    assert one.contrastive.iloc[-1] < one.contrastive.iloc[0] - 0.2 and one.partner_found.iloc[-1] > one.partner_found.iloc[0] + 0.2
    assert two.reconstruction.iloc[-1] < one.reconstruction.iloc[-1]


# ---- two phases

def between(store):
    "Note all weights when the second phase begins"
    def note(trainer, module):
        if module.phase.name == "decode": store.update({k: v.clone() for k, v in module.net.state_dict().items()})
    return spied(Spy(start=note))


@pytest.mark.parametrize("more", [dict(), dict(norm="batch", preset="paper"), PAPER, dict(network="mlp"), dict(network="resize"), dict(n_clusters="elbow"), dict(precision="bf16-mixed"), dict(likelihood="gaussian")], ids=str)
def test_frozen_is_frozen(more, X):
    "Encoder, projector and prototypes bit for bit, running means included; decoder and label layers learn"
    first = {}
    a = small(**({"n_clusters": 3} | more), **between(first)).fit(X, validation=images(20, seed=1))
    last = weights(a)
    assert first.keys() == last.keys()
    changed = {k for k, v in first.items() if not v.equal(last[k])}
    kept = {k for k in first if begins(k, "encoder", "projector", "bank", "decoder_is_told")}
    assert not changed & kept and any("running_mean" in k for k in kept)
    assert {k for k in first if begins(k, "decoder.", "labels.") and k.endswith(("weight", "bias"))} <= changed
    if a.settings_.norm == "batch" and a.settings_.network != "mlp": assert any(begins(k, "decoder") and "running_mean" in k for k in changed)
    assert all(p.requires_grad for n, p in a.module_.named_parameters())      # the flags are put back


def test_label_layers_rest_in_the_first_phase(X):
    a, b = mlp(decoder_epochs=0).fit(X), mlp(epochs=0, decoder_epochs=0).fit(X)
    assert all(v.equal(weights(b)[k]) for k, v in weights(a).items() if begins(k, "labels"))


def test_the_first_phase_does_not_know_of_the_second(X):
    "Weights after the first phase do not depend on how many epochs follow, but for the curve of rates"
    stored = {}
    small(**between(stored)).fit(X)
    a = weights(small(decoder_epochs=0).fit(X))
    assert all(v.equal(a[k]) for k, v in stored.items() if k != "decoder_is_told")
    assert stored["decoder_is_told"] == 1 and a["decoder_is_told"] == 0


def test_own_dropout_is_off_in_a_frozen_encoder(X):
    modes = []
    class Drop(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.linear = nn.Dropout(0.5), nn.Linear(256, 12)
        def forward(self, x): modes.append(self.training); return self.linear(self.drop(x.flatten(1)))
    in_phase = {}
    def note(trainer, module): in_phase.setdefault(module.phase.name, set()).add(modes[-1])
    small(encoder=Drop(), **spied(Spy(batch=note))).fit(X)
    assert in_phase == dict(contrast={True}, decode={False})


# ---- is the decoder told?

def differences(a, X):
    "Largest difference between an image decoded as a member of one cluster and of another"
    as_cluster = [a.reconstruct_as(X, k) for k in range(a.n_clusters_)]
    return [np.abs(one - two).max() for i, one in enumerate(as_cluster) for two in as_cluster[:i]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_uses_the_condition(kind, fitted, X):
    a = fitted[kind]
    assert a.module_.decoder_is_told == 1 and min(differences(a, X[:10])) > 1e-5
    net = a.module_.eval()
    with torch.no_grad():
        h = net.encoder(net_input(X))[0]
        c = net.bank.responsibilities(h)
        right, other = (net.decode(h, Told(assignments=c)) for c in (c, c.roll(1, 1)))
        assert net.decode(h).equal(right) and (right - other).abs().amax((1, 2, 3)).max() > 1e-5
    np.testing.assert_allclose(a.reconstruct(X), right.permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(a.inverse_transform(a.transform(X)), a.reconstruct(X), atol=1e-5)
    np.testing.assert_allclose(a.prototypes(), a.inverse_transform(a.cluster_centers_), atol=1e-6)


def test_reconstruct_as_by_hand(fitted, X):
    a = fitted["best"]
    net = a.module_.eval()
    for k in (0, 2, np.int64(1)):
        with torch.no_grad():
            h = net.encoder(net_input(X[:7]))[0]
            out = net.decoder(h + net.labels(torch.eye(3)[[int(k)] * 7])).sigmoid()
        got = a.reconstruct_as(X[:7], k)
        assert got.shape == (7, 16, 16, 1) and got.dtype == np.float32
        np.testing.assert_allclose(got, out.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("wrong", [-1, 3, 1.0, "0", True, None])
def test_reconstruct_as_a_cluster_that_does_not_exist(wrong, fitted, X):
    with pytest.raises(ValueError, match="cluster=.*clusters 0…2"): fitted["best"].reconstruct_as(X[:2], wrong)


def test_reconstruct_as_before_fit(X):
    with pytest.raises(Exception, match="not fitted"): small().reconstruct_as(X, 0)
    with pytest.raises(Exception, match="not fitted"): small().project(X)


def test_nothing_is_told_without_a_second_phase(X):
    a = small(decoder_epochs=0).fit(X)
    assert a.module_.decoder_is_told == 0 and max(differences(a, X[:10])) == 0 and set(a.labels_) <= {0, 1, 2} and list(a.history_.phase) == ["contrast"] * 2
    with torch.no_grad(): plain = a.module_.decoder(a.module_.encoder(net_input(X))[0]).sigmoid().permute(0, 2, 3, 1)
    np.testing.assert_allclose(a.reconstruct(X), plain, atol=1e-6)
    np.testing.assert_allclose(a.predict_proba(X).sum(1), 1, atol=1e-5)


def test_no_first_phase(X):
    a = small(epochs=0).fit(X)
    assert a.module_.decoder_is_told == 1 and list(a.history_.phase) == ["decode"] * 2 and np.isfinite(a.history_.loss).all()
    b = small(epochs=0, decoder_epochs=0).fit(X)
    assert b.n_iter_ == 0 and b.module_.decoder_is_told == 0 and b.cluster_centers_.any() and len(b.labels_) == 60


@pytest.mark.parametrize("n_clusters", [3, "elbow"])
def test_ctrl_c_in_the_first_phase(n_clusters, X):
    "Clusters all the same, and a decoder that is told nothing, for it has learned nothing of them"
    with pytest.warns(UserWarning, match="interrupted in phase 'contrast'"): a = small(n_clusters=n_clusters, epochs=3, **spied(interrupt(4))).fit(X)
    assert a.interrupted_ and set(a.history_.phase) == {"contrast"} and (a.predict(X) == a.labels_).all() and len(a.cluster_centers_) == a.n_clusters_ > 1
    assert a.module_.decoder_is_told == 0 and max(differences(a, X[:5])) == 0 and float(a.module_.bank.tau) == pytest.approx(0.1)
    if n_clusters == "elbow": assert a.choice_.n_clusters == a.n_clusters_


def test_ctrl_c_in_the_second_phase(X):
    with pytest.warns(UserWarning, match="interrupted in phase 'decode'"): a = small(**spied(interrupt(8))).fit(X)
    assert a.interrupted_ and a.module_.decoder_is_told == 1 and min(differences(a, X[:5])) > 0


def poison(name, in_phase, batch):
    seen = []
    def spoil(trainer, module):
        if module.phase.name != in_phase: return
        seen.append(1)
        if len(seen) == batch: module.net.get_parameter(name).data.fill_(float("nan"))
    return Spy(batch=spoil)


@pytest.mark.parametrize("in_phase, weight, term", [("contrast", "projector.0.weight", "contrastive"), ("contrast", "encoder.heads.0.weight", "contrastive"), ("contrast", "decoder.linear.weight", "reconstruction"),
                                                    ("decode", "decoder.linear.weight", "reconstruction"), ("decode", "labels.2.weight", "reconstruction")])
def test_a_nan_in_a_phase(in_phase, weight, term, X):
    a = small(n_clusters="elbow", **spied(poison(weight, in_phase, 4)))
    with pytest.raises(NonFiniteLoss, match=f"'{term}'.*nan.*phase '{in_phase}', epoch 2, step 5"): a.fit(X)
    assert a.interrupted_ and len(a.history_) == (1 if in_phase == "contrast" else 3) and (a.predict(X) == a.labels_).all() and a.module_.decoder_is_told == (in_phase == "decode")
    assert all(v.isfinite().all() for v in a.module_.state_dict().values()) and np.isfinite(a.reconstruct(X)).all()


# ---- clusters

@pytest.mark.parametrize("kind", KINDS)
def test_centres_are_those_of_kmeans_and_labels_go_by_cosine(kind, fitted, X):
    a = fitted[kind]
    Z = a.transform(X)
    found = KMeans(a.n_clusters_, n_init=2, random_state=0).fit(Z)
    np.testing.assert_allclose(a.cluster_centers_, found.cluster_centers_, atol=1e-5)
    for x in (X, images(30, seed=4)):
        z, Q = a.transform(x).astype(np.float64), a.cluster_centers_.astype(np.float64)
        cosine = (z @ Q.T) / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(Q, axis=1)
        e = np.exp(cosine / 0.1)
        np.testing.assert_allclose(a.predict_proba(x), e / e.sum(1, keepdims=True), atol=1e-4)
        assert (a.predict(x) == cosine.argmax(1)).all() and (a.encode(x)[1] == a.predict(x)).all()
    assert (a.labels_ == a.predict(X)).all() and a.predict_proba(X).shape == (60, a.n_clusters_)


@pytest.mark.parametrize("similarity, tau", [("cosine", 1.0), ("cosine", 1e-3), ("euclidean", 0.5)])
def test_temperature_and_similarity_of_the_labels(similarity, tau, X):
    a = mlp(similarity=similarity, assignment_tau=tau).fit(X)
    z, Q = a.transform(X).astype(np.float64), a.cluster_centers_.astype(np.float64)
    s = (z @ Q.T) / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(Q, axis=1) if similarity == "cosine" else -((z[:, None] - Q) ** 2).sum(2)
    e = np.exp((s - s.max(1, keepdims=True)) / tau)
    np.testing.assert_allclose(a.predict_proba(X), e / e.sum(1, keepdims=True), atol=1e-4 / min(tau, 1) + 1e-5)
    assert a.module_.bank.kind == similarity and (a.labels_ == s.argmax(1)).mean() > 0.98
    if similarity == "euclidean": assert (a.labels_ == KMeans(3, n_init=2, random_state=0).fit(a.transform(X)).labels_).all()


def test_elbow(fitted, X):
    a = fitted["elbow"]
    by_rule = choose_n_clusters(a.transform(X), candidates=range(2, 41, 2), random_state=0)
    k = a.n_clusters_
    assert k == by_rule.n_clusters == a.choice_.n_clusters and (a.choice_.inertia == by_rule.inertia).all() and k > 1
    shapes = {n: tuple(v.shape) for n, v in weights(a).items() if begins(n, "labels", "bank.Q", "bank.unused")}
    assert shapes == {"labels.0.weight": (4, k), "labels.0.bias": (4,), "labels.2.weight": (4, 4), "labels.2.bias": (4,), "bank.Q": (k, 4), "bank.unused": (k,)}
    assert a.predict_proba(X).shape == (60, k) and a.prototypes().shape == (k, 16, 16, 1) and a.n_clusters is None or a.n_clusters == "elbow"
    with pytest.raises(ValueError, match="at least 20 images"): small(n_clusters="elbow").fit(images(19))


def test_elbow_and_its_number_given_cluster_alike(fitted, X):
    "The same encoder; only the label layers have other first weights"
    a = fitted["elbow"]
    b = small(**(KINDS["elbow"] | dict(n_clusters=a.n_clusters_))).fit(X)
    assert all(v.equal(weights(b)[k]) for k, v in weights(a).items() if begins(k, "encoder", "projector", "bank")) and (a.labels_ == b.labels_).all()


def test_label_layers_of_the_elbow_are_repeatable(fitted, X):
    state = torch.random.get_rng_state()
    a = small(**KINDS["elbow"]).fit(X)
    a.reconstruct_as(X[:3], 0), a.project(X)
    assert same_weights(fitted["elbow"], a) and torch.random.get_rng_state().equal(state)
    other = small(**(KINDS["elbow"] | dict(random_state=1, epochs=0, decoder_epochs=0))).fit(X)
    again = small(**(KINDS["elbow"] | dict(epochs=0, decoder_epochs=0))).fit(X)
    if other.n_clusters_ == again.n_clusters_: assert not weights(other)["labels.0.weight"].equal(weights(again)["labels.0.weight"])


def test_a_later_fit_without_the_elbow_has_no_curve(X):
    a = mlp(n_clusters="elbow", epochs=0, decoder_epochs=0).fit(X)
    a.set_params(n_clusters=3).fit(X)
    assert a.n_clusters_ == 3 and not hasattr(a, "choice_")


def test_empty_clusters_are_told(X):
    "Embeddings on one half-line: the cosine cannot tell them apart"
    class Bright(nn.Module):
        def forward(self, x): return x.flatten(1).mean(1, keepdim=True)
    a = small(encoder=Bright(), latent_dim=1, epochs=0, decoder_epochs=1)
    with pytest.warns(UserWarning, match="clusters (is|are) empty"): a.fit(X)
    assert len(set(a.labels_)) < 3


# ---- interruption

RESUMED = dict(lars=dict(PAPER, norm="batch"), elbow=dict(preset="paper", n_clusters="elbow", augment="medical"))


@pytest.fixture(scope="module")
def uninterrupted(): return Lazy(lambda kind: small(**RESUMED[kind]).fit(images(), validation=images(20, seed=1)))


@pytest.mark.parametrize("kind, stop, in_phase", [("lars", 4, "contrast"), ("lars", 10, "decode"), ("elbow", 4, "contrast"), ("elbow", 7, "decode"), ("elbow", 10, "decode")])
def test_resumed_equals_uninterrupted(kind, stop, in_phase, X, uninterrupted, tmp_path):
    "With momenta, and as many clusters as were found: stopped in an epoch of either phase, at its last batch, at the very end"
    whole, validation = uninterrupted[kind], images(20, seed=1)
    with pytest.warns(UserWarning, match=f"interrupted in phase '{in_phase}'"): cut = small(**RESUMED[kind], checkpoint_dir=tmp_path, **spied(interrupt(stop))).fit(X, validation=validation)
    assert cut.interrupted_ and len(cut.history_) < 5
    a = small(**RESUMED[kind]).fit(X, validation=validation, resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all() and a.interrupted_ is False and a.module_.decoder_is_told == 1 and a.n_clusters_ == whole.n_clusters_
    pd.testing.assert_frame_equal(history(a), history(whole))
    assert (a.reconstruct(X) == whole.reconstruct(X)).all() and (a.predict_proba(X) == whole.predict_proba(X)).all()
    if kind == "elbow": assert a.choice_.n_clusters == a.n_clusters_ and (a.choice_.inertia == whole.choice_.inertia).all()


def test_a_finished_training_with_the_elbow_can_be_resumed(fitted, X, tmp_path):
    a = small(**KINDS["elbow"], checkpoint_dir=tmp_path).fit(X)
    b = small(**KINDS["elbow"]).fit(X, resume=tmp_path / "last.ckpt")
    assert same_weights(a, b) and same_weights(a, fitted["elbow"]) and (a.labels_ == b.labels_).all() and b.choice_.n_clusters == a.n_clusters_


# ---- repeatability

def test_order_of_earlier_fits_does_not_matter(X, fitted):
    "kornia's operations are kept between fits"
    small(augment="medical", image_size=20, crop=0.2).fit(X)
    assert same_weights(small().fit(X), fitted["best"])


def test_no_warnings(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DoubtfulFit)   # two epochs are few
        for more in (dict(), PAPER, dict(augment="medical")): small(**(dict(n_clusters=2, verbose=False) | more)).fit(X, validation=images(20))


# ---- files and parameters

@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, fitted, X, tmp_path):
    "Label layers for as many clusters as were found; the methods' own verbs"
    a = fitted[kind]
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert same_weights(a, b) and b.n_clusters_ == a.n_clusters_ and b.module_.decoder_is_told == 1 and same_weights(clone(b).fit(X), a)
    assert (a.project(X) == b.project(X)).all() and (a.reconstruct_as(X[:4], 1) == b.reconstruct_as(X[:4], 1)).all() and (a.prototypes() == b.prototypes()).all()
    assert not hasattr(b, "choice_") and hasattr(a, "choice_") == (kind == "elbow")


def test_a_dictionary_of_operations_in_a_file(X, tmp_path):
    a = mlp(augment=dict(noise=0.5, flip=1.0, crop=0.25)).fit(X)
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert b.augment == a.augment and list(b.augment) == ["noise", "flip", "crop"] and same_weights(clone(b).fit(X), a)


def test_projections(fitted, X):
    a = fitted["best"]
    with torch.no_grad(): z = a.module_.projector(torch.from_numpy(a.transform(X)))
    np.testing.assert_allclose(a.project(X), z, atol=1e-5)
    assert a.project(X).shape == (60, 8) and a.project(X).dtype == np.float32
    with pytest.raises(ValueError, match="shape"): a.project(images(3, 12, width=20, channels=3))


def test_networks(fitted):
    "METHODS: convolutions, average pooling 2, linear; a projector of three layers; a mirrored decoder"
    net = fitted["paper"].module_
    kinds = [type(m).__name__ for m in net.encoder.body]
    assert kinds[-2:] == ["AvgPool2d", "Flatten"] and kinds.count("Conv2d") == 2 and "GELU" in kinds and "BatchNorm2d" not in kinds
    assert all((m.kernel_size, m.stride) == ((4, 4), (2, 2)) for m in net.encoder.body if isinstance(m, nn.Conv2d)) and net.encoder.heads[0].in_features == 8 * 2 * 2
    assert [type(m).__name__ for m in net.projector].count("Linear") == 3 and net.projector[-1].out_features == 8
    assert small(pool=1, epochs=0, decoder_epochs=0).fit(images()).module_.encoder.heads[0].in_features == 8 * 4 * 4
    assert small(pool=4, epochs=0, decoder_epochs=0).fit(images()).module_.encoder.heads[0].in_features == 8


# ---- conditions

def known(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return ImageSet(images(n, seed=seed), pd.DataFrame(dict(color=np.array(["red", "green", "blue"])[rng.integers(0, 3, n)], age=rng.normal(50, 9, n))))


@pytest.fixture(scope="module")
def told(): return small(n_clusters="elbow").fit(known(), condition=["color", "age"], validation=known(20, 1))


def test_covariates_go_with_both_views(X, monkeypatch):
    "In both phases each view is decoded with the covariates of its own image"
    S, seen = known(), []
    def spied_on(name):
        loss = getattr(ContrastiveNetwork, name)
        monkeypatch.setattr(ContrastiveNetwork, name, lambda self, batch, at: seen.append((name, batch.x, batch.told.covariates)) or loss(self, batch, at))
    spied_on("loss"), spied_on("decoder_loss")
    monkeypatch.setattr(contrastive, "augmenter", lambda *how: lambda x: x)          # so that images can be recognised
    a = small(condition=("color", "age"), epochs=1, decoder_epochs=1).fit(S)
    codes = torch.from_numpy(a.covariates_.encode(S.table))
    plain = net_input(X).flatten(1)
    assert [name for name, *_ in seen] == ["loss"] * 4 + ["decoder_loss"] * 4                 # three batches and the check after the epoch
    for _, x, y in seen:
        assert y.shape == (len(x), 4) and len(x) % 2 == 0
        which = torch.cdist(x.flatten(1), plain).argmin(1)
        assert y.equal(codes[which]) and which[: len(which) // 2].equal(which[len(which) // 2 :])


@pytest.mark.parametrize("name, c", [("decoder_loss", True), ("loss", False)])
def test_losses_with_covariates_by_hand(name, c, told):
    S = known()
    x, y = net_input(S.images[:9]), torch.from_numpy(told.covariates_.encode(S.table)[:9])
    with torch.no_grad():
        found = getattr(told.module_, name)(views_of(told, Batch(x, told=Told(y))), Moment())
        assert found["reconstruction"].item() == pytest.approx(by_hand(told, x, y, c)[1], rel=1e-4)


def test_covariates_and_clusters_are_both_heard(told):
    a, S, X = told, known(), images()
    one, two = (a.reconstruct_as(X[:5], 0, condition=dict(color=c)) for c in ("red", "blue"))
    assert np.abs(one - two).max() > 1e-5 and np.abs(one - a.reconstruct_as(X[:5], 1, condition=dict(color="red"))).max() > 1e-5
    np.testing.assert_allclose(a.reconstruct_as(S, 1)[:5], a.reconstruct_as(X[:5], 1, condition=S.table[:5]), atol=1e-5)
    with pytest.raises(ValueError, match="come without a table"): a.reconstruct_as(X, 1)
    with pytest.raises(ValueError, match="not seen: 'pink'"): a.reconstruct_as(X, 1, condition=dict(color="pink"))
    assert (a.predict(X) == a.labels_).all() and a.prototypes(dict(color="red")).shape == (a.n_clusters_, 16, 16, 1)
    np.testing.assert_allclose(a.reconstruct(S), a.inverse_transform(a.transform(S), S.table), atol=1e-5)


def test_covariates_do_not_reach_the_encoder_but_through_the_decoder(X):
    "With α = 0 the embedding does not know of them"
    a, b = mlp(alpha=0.0).fit(known(), condition="color"), mlp(alpha=0.0).fit(known())
    assert a.transform(X).shape == b.transform(X).shape == (60, 4) and a.covariates_.width == 3


def test_resume_with_covariates(told, X, tmp_path):
    words = dict(condition=["color", "age"], validation=known(20, 1))
    for stop in (4, 10):
        with pytest.warns(UserWarning, match="interrupted"): small(n_clusters="elbow", checkpoint_dir=tmp_path, **spied(interrupt(stop))).fit(known(), **words)
        assert same_weights(small(n_clusters="elbow").fit(known(), resume=tmp_path / "last.ckpt", **words), told)


def test_no_condition_is_refused(fitted, X):
    with pytest.raises(ValueError, match="learned without a condition"): fitted["best"].reconstruct_as(X, 0, condition=dict(color="red"))


# ---- validation images

def test_validation_loss(X):
    a = small(lr=1e-3).fit(X, validation=images(20, seed=1))
    assert {"val_loss", "val_contrastive", "val_reconstruction", "val_partner_found"} <= set(phase(a, "contrast")) and {"val_loss", "val_reconstruction"} <= set(phase(a, "decode"))
    assert np.isfinite(history(a)[["val_loss", "val_reconstruction"]].to_numpy()).all()
    assert same_weights(a, small(lr=1e-3).fit(X))                           # looking does not change the training


def test_patience(X):
    noise = np.random.default_rng(1).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    a = small(epochs=40, decoder_epochs=40, lr=2e-2, lr_schedule="constant", patience=2).fit(X, validation=noise)
    for name in ("contrast", "decode"):
        h = phase(a, name)
        assert len(h) == min(int(h.val_loss.argmin()) + 3, 40)
    assert a.module_.decoder_is_told == 1 and not a.interrupted_


@pytest.mark.parametrize("denominator", ["all", "negatives"])
def test_one_validation_image(denominator, X):
    "Refused before the training, or a fit"
    rows = []
    try: a = small(denominator=denominator, **spied(Spy(batch=lambda t, m: rows.append(1)))).fit(X, validation=images(1))
    except ValueError as e: assert "validation" in str(e) and not rows
    else: assert np.isfinite(a.history_.val_loss).all()


def test_two_validation_images(X): assert np.isfinite(small(denominator="negatives").fit(X, validation=images(2)).history_.val_loss).all()


# ---- refusals

@pytest.mark.parametrize("bad, says", [
    (dict(batch_size=1), "batch_size=1.*at least 2.*256"), (dict(augment="none"), "augment='none' changes nothing.*'affine', 'contrastive', 'medical'"), (dict(augment={}), "augment={} changes nothing"),
    (dict(augment=dict(flip=0.0, noise=0)), "changes nothing"), (dict(augment="medcal"), "augment.*Did you mean 'medical'"), (dict(augment=dict(rotate=0.5)), "augment=.*'rotation'"), (dict(augment=dict(flip=1.1)), "augment=.*less than or equal"),
    (dict(exposure=1), "exposure=1 would make images black"), (dict(crop=0), "crop=0 would keep nothing"), (dict(crop=1.5), "crop=1.5"), (dict(crop=-0.1), "crop=-0.1"), (dict(pool=5), "pool=5.*4 pixels a side.*pool ≤ 4"), (dict(pool=0), "pool=0"), (dict(channels=(4, 4, 4), pool=3), "pool=3.*2 pixels.*pool ≤ 2"),
    (dict(channels=(4, 4, 4, 4), pool=2), "pool=2.*1 pixels?.*pool ≤ 1"), (dict(tau=0), "tau=0"), (dict(tau=-0.5), "tau=-0.5"), (dict(tau=float("inf")), "tau=inf"), (dict(tau="cold"), "tau='cold'"), (dict(assignment_tau=0), "assignment_tau=0"),
    (dict(optimizer="larss"), "optimizer.*Did you mean 'lars'"), (dict(denominator="both"), "denominator.*all, negatives"), (dict(lr_schedule="warmup"), "lr_schedule.*Did you mean 'warmup-cosine'"), (dict(lr_warmup=0), "lr_warmup=0"),
    (dict(lr_start=0), "lr_start=0"), (dict(lr_end=-1), "lr_end=-1"), (dict(similarity="dot"), "similarity.*cosine, euclidean"), (dict(projection_dim=0), "projection_dim=0"), (dict(decoder_epochs=-1), "decoder_epochs=-1"),
    (dict(decoder_epochs=True), "decoder_epochs=True"), (dict(alpha=-1), "alpha=-1"), (dict(n_clusters="knee"), "n_clusters.*elbow"), (dict(n_init=0), "n_init=0")], ids=str)
def test_refusals(bad, says, X):
    with pytest.raises(ValueError, match=says): small(**bad).fit(X)


def test_a_crop_of_the_whole_image_is_no_change(X):
    with pytest.raises(ValueError, match="changes nothing"): small(augment=dict(crop=1.0), crop=1.0).fit(X)


def test_pooling_of_the_resize_network_with_an_odd_side():
    a = small(network="resize", image_size=15, pool=4, epochs=0, decoder_epochs=0).fit(images(40, 15))
    assert a.module_.encoder.heads[0].in_features == 8


# ---- images and networks of all kinds

CASES = {
    "colour": (dict(), lambda: images(40, channels=3)),
    "colour, medical": (dict(augment="medical"), lambda: images(40, channels=3)),
    "not square": (dict(image_size=None), lambda: images(40, 28, width=36)),
    "not square, mlp": (dict(image_size=None, network="mlp"), lambda: images(40, 9, width=14)),
    "narrow": (dict(image_size=None, channels=(4,)), lambda: images(40, 30, width=31)),
    "8×8": (dict(image_size=None), lambda: images(40, 8)),
    "8×8, mlp": (dict(image_size=None, network="mlp"), lambda: images(40, 8)),
    "8×8 as they are": (dict(image_size=8), lambda: images(40, 8)),
    "8×8, two blocks, pool 1": (dict(image_size=8, channels=(4, 4, 4), pool=1), lambda: images(40, 8)),
    "floats": (dict(), lambda: images(40) / 255),
    "one batch": (dict(batch_size=1000), lambda: images(40)),
    "pairs": (dict(batch_size=2, epochs=1, decoder_epochs=1), lambda: images(11)),
    "pairs, printed": (dict(batch_size=2, epochs=1, decoder_epochs=1, denominator="negatives"), lambda: images(11)),
    "all black": (dict(n_clusters=1, augment="medical"), lambda: np.zeros((12, 16, 16), np.uint8)),
    "extreme contrast": (dict(augment="medical"), lambda: np.where(images(40) > 60, 255, 0).astype(np.uint8)),
    "resize": (dict(network="resize"), lambda: images(40)),
    "resize, odd": (dict(network="resize", image_size=15), lambda: images(40, 15)),
    "contiguous": (dict(channels_last=False), lambda: images(40, channels=3)),
    "half precision": (dict(precision="bf16-mixed"), lambda: images(40)),
    "every operation": (dict(augment=dict(affine=1.0, rotation=1.0, blur=1.0, noise=1.0, flip=1.0, crop=1.0, exposure=1.0), crop=0.01), lambda: images(40)),
    "gaussian": (dict(likelihood="gaussian", preset="paper"), lambda: images(40)),
    "bernoulli": (dict(likelihood="bernoulli"), lambda: images(40)),
    "cold": (dict(tau=0.01, assignment_tau=0.005), lambda: images(40)),
    "one dimension": (dict(latent_dim=1, projection_dim=1), lambda: images(40)),
}


@pytest.mark.parametrize("case", CASES)
def test_all_kinds(case, tmp_path):
    more, make = CASES[case]
    x = make()
    a = small(**(dict(n_clusters=3) | more)).fit(x, validation=x[:2])
    k, shape = a.n_clusters_, a.image_shape_
    assert np.isfinite(a.history_.loss).all() and len(a.history_) == a.settings_.epochs + a.settings_.decoder_epochs and (a.predict(x) == a.labels_).all()
    p = a.predict_proba(x)
    assert p.shape == (len(x), k) and np.isfinite(p).all() and a.transform(x).shape == (len(x), a.settings_.latent_dim) and np.isfinite(a.transform(x)).all()
    for made in (a.reconstruct(x), a.reconstruct_as(x, k - 1)): assert made.shape == (len(x), *shape) and np.isfinite(made).all() and 0 <= made.min() <= made.max() <= 1
    assert a.prototypes().shape == (k, *shape) and all(v.isfinite().all() for v in a.module_.state_dict().values())
    a.save(tmp_path / "m")
    assert (load_model(tmp_path / "m").predict(x) == a.labels_).all()
    if case == "8×8": assert shape == (32, 32, 1)
    if case == "8×8, mlp": assert shape == (8, 8, 1)


class Eyes(nn.Module):
    "Any number of things between the images and the linear layer"
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 5, 3, stride=2), nn.BatchNorm2d(5)
    def forward(self, x): return self.norm(self.conv(x)).relu().mean((2, 3))


class Hand(nn.Module):
    def __init__(self, d=4):
        super().__init__()
        self.linear = nn.Linear(d, 256)
    def forward(self, z): return self.linear(z).unflatten(1, (1, 16, 16))


@pytest.mark.parametrize("n_clusters", [3, "elbow"])
def test_own_networks(n_clusters, X, tmp_path):
    torch.manual_seed(0)
    mine = dict(encoder=Eyes(), decoder=Hand())
    before = {k: v.clone() for k, v in mine["encoder"].state_dict().items()}
    a = small(n_clusters=n_clusters, **mine).fit(X)
    assert all(v.equal(mine["encoder"].state_dict()[k]) for k, v in before.items()) and isinstance(a.module_.encoder.body, Eyes)      # a copy is trained
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m", **mine)
    assert same_weights(a, b) and (b.predict(X) == a.labels_).all()
    with pytest.raises(ValueError, match="networks of your own"): load_model(tmp_path / "m")


def test_half_precision_finds_the_same(X):
    a, b = (small(precision=p, lr=1e-3).fit(X) for p in ("32-true", "bf16-mixed"))
    np.testing.assert_allclose(phase(a, "contrast").contrastive, phase(b, "contrast").contrastive, rtol=0.02)
    np.testing.assert_allclose(phase(a, "contrast").partner_found, phase(b, "contrast").partner_found, atol=0.1)
    np.testing.assert_allclose(phase(a, "decode").reconstruction, phase(b, "decode").reconstruction, rtol=0.05)


def test_lars_wants_a_higher_rate(X):
    with pytest.raises(ValueError, match="lr=0.001 is too small for LARS"): small(optimizer="lars").fit(X)
    assert small(optimizer="lars", lr=0.01).fit(X).n_iter_ == 4
