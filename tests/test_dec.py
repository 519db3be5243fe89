"Self-training (DEC, IDEC, DVC-1, DVC-2) and the pre-training before it: the mathematics, the whole course of a fit, and what can go wrong."
import gc
import warnings

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import Lazy, images, interrupt, same_weights, tiny
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medstrat.methods.pretraining import pretraining
from medstrat.methods.self_training import self_training
from medstrat.vae.networks import activation_layer
from medstrat.methods.pretraining import distorted, layer_loss, layer_pairs, load_autoencoder
from medstrat.methods.self_training import first_clusters
from medstrat.parts.student import (
    Target,
)
from medstrat.training.checkpoints import read_checkpoint
from medstrat.training.inference import Engine, over_images
from medstrat.training.phases import NonFiniteLoss
from medstrat.training.method import Batch, build
from medstrat.training.phases import Moment
from medstrat.training.presets import lookup, resolve
from medstrat.training.registry import get_method
from medstrat.training.saving import load_model, read_tensors

FAMILY = ["DEC", "IDEC", "DVC", "DVC-2"]
pytestmark = pytest.mark.filterwarnings("ignore:.*clusters are empty:UserWarning", "ignore::sklearn.exceptions.ConvergenceWarning")


def mlp(method="DEC", **changes):
    "The fastest of each method, which never stops early and starts from k-means"
    own = dict(beta=1.0) if method.startswith("DVC") else {}
    return tiny(method, **(dict(network="mlp", tol=0.0, init="k-means", n_init=2, augment="none") | own | changes))


def phase(a, name="refine"): return a.history_[a.history_.phase == name].dropna(axis=1, how="all").reset_index(drop=True)
def history(a): return a.history_.drop(columns="seconds")
def weights(a): return {k: v.clone() for k, v in a.module_.state_dict().items()}
def net_input(x): return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255


def four_kinds():
    "Images (80,16,16,1) with one bright quarter, and which"
    y = np.arange(80) % 4
    x = np.random.default_rng(0).integers(0, 60, (80, 16, 16, 1))
    for i, k in enumerate(y): x[i, 8 * (k // 2):8 * (k // 2) + 8, 8 * (k % 2):8 * (k % 2) + 8] += 180
    return x.astype(np.uint8), y


@pytest.fixture(scope="module")
def quarters(): return four_kinds()


@pytest.fixture(scope="module")
def refined():
    "One fitted estimator of each, with three clusters for the four kinds; tests must not change them"
    return {m: mlp(m, pretrain_epochs=12, pretrain_lr=5e-3, update_interval=2).fit(four_kinds()[0]) for m in FAMILY}


class Spy(pl.Callback):
    "Calls `fn(module, batches seen in this phase)` after each batch of the phases whose name begins so"
    def __init__(self, name, fn): self.name, self.fn, self.seen = name, fn, {}
    def on_train_batch_end(self, trainer, module, *args):
        n = self.seen[module.phase.name] = self.seen.get(module.phase.name, 0) + 1
        if module.phase.name.startswith(self.name): self.fn(module, n)


def spied(*callbacks): return dict(trainer_options=dict(callbacks=list(callbacks)))


# ---- Student's t

def slow_log_q(z, m, alpha=1.0):
    "DEC Eq. 1, one pair at a time, in float64"
    z, m = np.asarray(z, np.float64), np.asarray(m, np.float64)
    out = np.zeros((len(z), len(m)))
    for i in range(len(z)):
        for j in range(len(m)): out[i, j] = -(alpha + 1) / 2 * np.log(1 + ((z[i] - m[j]) ** 2).sum() / alpha)
        out[i] -= out[i].max() + np.log(np.exp(out[i] - out[i].max()).sum())
    return out


# ---- the target distribution

def slow_weights(q, kind, gamma=2.0):
    q = np.asarray(q, np.float64)
    n, k = q.shape
    w = np.zeros(k)
    for j in range(k):
        u = sum(q[i, j] for i in range(n))
        v = sum(np.sqrt(n / u) * (1 - q[i, j]) ** gamma * -np.log(q[i, j]) for i in range(n))
        w[j] = u if kind == "dec" else u + v
    return w


def slow_target(q, kind="dec", gamma=2.0):
    q, w = np.asarray(q, np.float64), slow_weights(q, kind, gamma)
    p = np.array([[q[i, j] ** 2 / w[j] for j in range(q.shape[1])] for i in range(len(q))])
    return p / p.sum(1, keepdims=True)


def renewed(a, x, kind="dec", batch_size=20):
    "The target of a fitted estimator's images"
    s = a.settings_.but(batch_size=batch_size)
    t, q = Target(), torch.cat(list(over_images(a.module_, x, lambda x: a.module_.encode(x)[1], Engine.of(s))))
    assert t.renew(q, kind, s.target_gamma, s.tol) is False       # at the start there is nothing to have changed
    return t


@pytest.mark.parametrize("kind", ["dec", "dvc"])
@pytest.mark.parametrize("method", FAMILY)
def test_target_of_all_images(method, kind, quarters, refined):
    a, X = refined[method], quarters[0]
    t, q = renewed(a, X, kind), a.predict_proba(X)
    assert t.P.shape == (80, 3) and t.labels.tolist() == a.labels_.tolist()
    np.testing.assert_allclose(t.w, slow_weights(q, kind, a.settings_.target_gamma), rtol=1e-3)
    np.testing.assert_allclose(t.P, slow_target(q, kind, a.settings_.target_gamma), atol=1e-4)
    if kind == "dec": np.testing.assert_allclose(t.P, (p := q**2 / q.sum(0)) / p.sum(1, keepdims=True), atol=1e-5)


def test_target_does_not_depend_on_batches(quarters, refined, monkeypatch):
    a, X = refined["IDEC"], quarters[0]
    whole, seen, embed = renewed(a, X), [], a.module_.embed
    monkeypatch.setattr(a.module_, "shape", (1000, 1000, 1))      # inference takes small images in large batches; now it goes by batch_size
    monkeypatch.setattr(a.module_, "embed", lambda x: seen.append(len(x)) or embed(x))
    for size in (1, 7, 20, 64):
        parts = renewed(a, X, batch_size=size)
        np.testing.assert_allclose(parts.P, whole.P, atol=1e-5)
        np.testing.assert_allclose(parts.w, whole.w, rtol=1e-5)
        assert max(seen) == size; seen.clear()


class Largest(TorchDispatchMode):
    "The number of values in the largest tensor that any operation returns"
    size = 0
    def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
        out = fn(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor): self.size = max(self.size, t.numel())
        return out


def test_target_needs_no_more_than_n_times_k():
    "Never N×K×D over the whole set"
    n, k, d = 97, 31, 23
    x = images(n, 8)
    a = mlp(image_size=None, n_clusters=k, latent_dim=d, epochs=0, pretrain_epochs=1, batch_size=n).fit(x)
    with Largest() as seen: t = renewed(a, x)
    assert t.P.shape == (n, k) and n * k <= seen.size <= n * max(k, d, 64)


@pytest.mark.parametrize("method", ["DEC", "DVC-2"])
def test_each_image_meets_its_own_target(method, X, monkeypatch):
    "In a shuffled epoch, what is looked up belongs to the image in the batch"
    cls, checked = get_method(method).method, []
    loss = cls.loss
    def spy(self, batch, at):
        assert (X[batch.index.numpy()] == (batch.x * 255).round().permute(0, 2, 3, 1).numpy()).all()
        before = at.memory.P
        assert at.memory.of(None, batch.index).equal(before[batch.index])
        checked.append(batch.index)
        return loss(self, batch, at)
    monkeypatch.setattr(cls, "loss", spy)
    mlp(method, epochs=2, update_interval=4).fit(X)
    assert sorted(torch.cat(checked[:3]).tolist()) == list(range(60)) != torch.cat(checked[:3]).tolist()


def test_the_target_is_memory_of_the_fit(X, tmp_path):
    "N×K numbers: in checkpoints, not in saved models, and not kept after the fit"
    a = mlp(checkpoint_dir=tmp_path).fit(X)
    kept = read_checkpoint(tmp_path / "last.ckpt")["medstrat"]["memory"]
    assert kept["P"].shape == (60, 3) and kept["w"].shape == (3,) and kept["labels"].shape == (60,) and kept["finished"] is False
    a.save(tmp_path / "m")
    assert not [k for k, v in read_tensors(tmp_path / "m")[1].items() if v.ndim == 2 and v.shape[0] == 60]
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is Target]


def test_first_clustering_loss_is_kl_of_p_and_q(X):
    "A rate of almost zero: the epoch's loss is KL(P‖Q) over all images, from what the estimator predicts"
    a = mlp(lr=1e-30, epochs=1, update_interval=100, batch_size=17).fit(X)
    q = a.predict_proba(X).astype(np.float64)
    p = slow_target(q)
    assert phase(a).clustering[0] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-3)


# ---- when the target is renewed, and when the refinement stops

@pytest.mark.parametrize("interval, tol, steps, renewals", [(2, 1.0, 2, 2), (4, 1.0, 4, 2), ("epoch", 1.0, 3, 2), (1, 1.0, 1, 2),
                                                            (4, 0.0, 15, 4), ("epoch", 0.0, 15, 6), (1, 0.0, 15, 16), (100, 1.0, 15, 1)])
def test_update_interval_and_stop(interval, tol, steps, renewals, X, monkeypatch):
    "Three steps an epoch, five epochs. With tol=1 the first renewal after the start stops it, with 0 nothing does"
    renew, times = Target.renew, []
    monkeypatch.setattr(Target, "renew", lambda *args: times.append(1) or renew(*args))
    spy = Spy("refine", lambda *a: None)
    a = mlp(epochs=5, update_interval=interval, tol=tol, **spied(spy)).fit(X)
    assert spy.seen["refine"] == steps and len(times) == renewals
    assert len(phase(a)) == -(-steps // 3) and a.interrupted_ is False


def test_stop_by_the_share_of_changed_labels(X, monkeypatch):
    "The labels that `changed` counts are those of the probabilities that were given"
    renew, labels = Target.renew, []
    monkeypatch.setattr(Target, "renew", lambda self, q, *more: labels.append(q.argmax(1)) or renew(self, q, *more))
    a = mlp("IDEC", epochs=30, update_interval=1, tol=0.01, lr=1e-2, pretrain_epochs=1, **spied(spy := Spy("refine", lambda *a: None))).fit(X)
    changes = [(one != two).float().mean() for one, two in zip(labels, labels[1:])]
    assert spy.seen["refine"] == len(changes) < 90 and changes[-1] < 0.01 and all(c >= 0.01 for c in changes[:-1])
    assert (a.labels_ == labels[-1].numpy()).all()


@pytest.mark.parametrize("bad", [dict(update_interval=0), dict(update_interval="step"), dict(update_interval=1.5), dict(tol=-0.1), dict(tol=2), dict(alpha=0), dict(init="kmeans++"),
                                 dict(target="idec"), dict(optimizer="lbfgs"), dict(n_init=0), dict(budget=1.5), dict(dropout=-1), dict(pretrain="greedy"), dict(augment="yes")], ids=str)
def test_bad_values_are_refused(bad, X):
    with pytest.raises(ValueError, match=next(iter(bad))): mlp(**bad).fit(X)


# ---- interruption

RESUMED = {"DEC": dict(update_interval=2), "IDEC": dict(update_interval="epoch", optimizer="sgd", augment="affine"), "DVC": dict(network="resize", update_interval=4, target="dvc", lr_schedule="cosine"),
           "DVC-2": dict(preset="paper", update_interval=2, dropout=0.3, init="mixture")}     # layer by layer first


@pytest.fixture(scope="module")
def uninterrupted(): return Lazy(lambda m: mlp(m, epochs=4, **RESUMED[m]).fit(images(), validation=images(20, seed=1)))


@pytest.mark.parametrize("epoch, batches", [("first", 2), ("second", 4), ("second, at its end", 6)])
@pytest.mark.parametrize("method", FAMILY)
def test_resumed_refinement_equals_the_uninterrupted_one(method, epoch, batches, X, uninterrupted, tmp_path):
    "With a target from two steps before, momenta, distortions, layers that were trained first, and validation images"
    whole, validation, args = uninterrupted[method], images(20, seed=1), dict(epochs=4, **RESUMED[method])
    before = 3 * (len(whole.history_) - 4)        # batches of the pre-training
    assert before == (12 if method == "DVC-2" else 6) and len(phase(whole)) == 4
    with pytest.warns(UserWarning, match="interrupted in phase 'refine'"):
        cut = mlp(method, **args, checkpoint_dir=tmp_path, **spied(interrupt(before + batches))).fit(X, validation=validation)
    assert cut.interrupted_ and np.isfinite(cut.cluster_centers_).all() and (cut.predict(X) == cut.labels_).all()     # a clustering all the same
    a = mlp(method, **args).fit(X, validation=validation, resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all() and a.interrupted_ is False
    pd.testing.assert_frame_equal(history(a), history(whole))


def test_the_message_says_which_epoch_of_the_phase(X):
    with pytest.warns(UserWarning, match="phase 'refine', epoch 1;"): mlp(epochs=4, **spied(interrupt(7))).fit(X)       # the pre-training had six batches


def test_a_converged_refinement_stays_as_it_is(X, tmp_path):
    more = dict(epochs=9, update_interval=4, tol=1.0)
    a = mlp(**more, checkpoint_dir=tmp_path).fit(X)
    assert len(phase(a)) == 2
    b = mlp(**more).fit(X, resume=tmp_path / "last.ckpt")
    assert same_weights(a, b) and (a.labels_ == b.labels_).all() and b.interrupted_ is False
    pd.testing.assert_frame_equal(history(a), history(b))


def test_a_checkpoint_of_other_clusters_is_refused(X, tmp_path):
    mlp(checkpoint_dir=tmp_path).fit(X)
    for change in (dict(tol=0.5), dict(update_interval=3), dict(alpha=2.0), dict(pretrain_epochs=3), dict(n_clusters=4)):
        with pytest.raises(ValueError, match=f"another training.*{next(iter(change))}"): mlp(**change).fit(X, resume=tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="another training.*method"): mlp("IDEC").fit(X, resume=tmp_path / "last.ckpt")


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
@pytest.mark.parametrize("method", ["DEC", "DVC-2"])
def test_resume_on_an_accelerator(method, X, tmp_path):
    "Checkpoints are read to the memory of the host; the target has to go back to the device"
    with pytest.warns(UserWarning, match="interrupted"): mlp(method, epochs=4, update_interval=2, accelerator="auto", checkpoint_dir=tmp_path, **spied(interrupt(11))).fit(X)
    a = mlp(method, epochs=4, update_interval=2, accelerator="auto").fit(X, resume=tmp_path / "last.ckpt", validation=images(20))
    assert len(phase(a)) == 4 and not a.interrupted_


def poison(name, batch):
    "Put a NaN into a weight after so many batches of the refinement"
    def spoil(module, n):
        if n == batch: module.net.get_parameter(name).data[0].fill_(float("nan"))
    return Spy("refine", spoil)


@pytest.mark.parametrize("method, weight, term", [("DEC", "bank.Q", "clustering"), ("IDEC", "bank.Q", "clustering"), ("IDEC", "decoder.0.bias", "reconstruction"),
                                                  ("DVC", "encoder.heads.0.weight", "reconstruction|clustering"), ("DVC-2", "bank.Q", "clustering")])
def test_a_nan_in_the_refinement(method, weight, term, X):
    "After five batches: the weights are those after the first epoch, the history says so, and the term is named"
    a = mlp(method, epochs=4, update_interval=100, **spied(poison(weight, 5)))
    with pytest.raises(NonFiniteLoss, match=f"'({term})'.*nan.*phase 'refine', epoch 2, step 6"): a.fit(X)
    assert a.interrupted_ and len(phase(a)) == 1 and (a.predict(X) == a.labels_).all()
    assert all(v.isfinite().all() for v in a.module_.state_dict().values()) and np.isfinite(a.predict_proba(X)).all() and np.isfinite(a.sample(3)).all()
    good = mlp(method, epochs=1, update_interval=100, lr_schedule="constant")
    if method == "DEC":
        a = mlp(method, epochs=4, update_interval=100, lr_schedule="constant", **spied(poison(weight, 5)))
        with pytest.raises(NonFiniteLoss): a.fit(X)
        assert same_weights(a, good.fit(X))


def test_a_nan_at_a_renewal(X):
    "The target itself is made of what has become NaN"
    a = mlp(epochs=4, update_interval=2, **spied(poison("encoder.heads.0.weight", 3)))
    with pytest.raises(NonFiniteLoss, match="phase 'refine'"): a.fit(X)
    assert np.isfinite(a.predict_proba(X)).all()


def test_a_nan_in_the_pretraining_still_gives_clusters(X):
    def spoil(module, n):
        if n == 4: module.net.encoder.heads[0].weight.data.fill_(float("nan"))
    a = mlp(pretrain_epochs=3, **spied(Spy("pretrain", spoil)))
    with pytest.raises(NonFiniteLoss, match="'reconstruction'.*phase 'pretrain', epoch 2"): a.fit(X)
    assert list(a.history_.phase) == ["pretrain"] and np.isfinite(a.cluster_centers_).all() and set(a.labels_) == {0, 1, 2}


# ---- pitfalls

def stamped(n, value=100):
    "Images that differ in one pixel by one gray level"
    x = np.full((n, 16, 16, 1), value, np.uint8)
    x.reshape(n, -1)[np.arange(n), np.arange(n)] += 1
    return x


PITFALLS = {
    "nearly equal": (dict(), lambda: stamped(40)),
    "two kinds of constant": (dict(n_clusters=2), lambda: np.repeat(np.uint8([0, 255]), 20)[:, None, None, None] * np.ones((1, 16, 16, 1), np.uint8)),
    "extreme contrast": (dict(), lambda: np.where(images(40) > 60, 255, 0).astype(np.uint8)),
    "one cluster": (dict(n_clusters=1), lambda: images(40)),
    "as many clusters as images": (dict(n_clusters=12), lambda: images(12)),
    "colour": (dict(), lambda: images(40, channels=3)),
    "8×8": (dict(image_size=None), lambda: images(40, 8)),
    "not square": (dict(image_size=None), lambda: images(40, 9, width=14)),
    "one batch": (dict(batch_size=1000), lambda: images(40)),
    "floats": (dict(), lambda: images(40) / 255),
}


@pytest.mark.parametrize("case", PITFALLS)
@pytest.mark.parametrize("method", FAMILY)
def test_pitfalls(method, case):
    more, make = PITFALLS[case]
    x = make()
    a = tiny(method, **(dict(n_init=2, update_interval=2, tol=0.0) | more)).fit(x)
    n, k = len(x), a.n_clusters_
    q = a.predict_proba(x)
    assert q.shape == (n, k) and np.isfinite(q).all() and np.isfinite(a.transform(x)).all() and np.isfinite(a.cluster_centers_).all()
    np.testing.assert_allclose(q.sum(1), 1, atol=1e-5)
    assert len(phase(a)) == 2 and np.isfinite(phase(a).loss).all() and (a.labels_ == a.predict(x)).all()
    shape = a.image_shape_
    assert a.sample(3).shape == (3, *shape) and np.isfinite(a.sample(3)).all() and a.prototypes().shape == (k, *shape)
    if case == "one cluster": assert not a.labels_.any() and (q == 1).all() and np.abs(phase(a).clustering).max() < 1e-6


@pytest.mark.parametrize("method", FAMILY)
def test_more_clusters_than_distinct_images(method):
    with pytest.raises(ValueError, match="n_clusters=5, but only 4 of the 60 images are distinct. Choose n_clusters ≤ 4"): mlp(method, n_clusters=5).fit(np.repeat(images(4), 15, 0))


@pytest.mark.parametrize("far", [1e3, 1e19, 1e38])
@pytest.mark.parametrize("method", FAMILY)
def test_a_dead_cluster(method, far, X, monkeypatch):
    def centres(Z, k, *more):
        m = np.array([Z[::2].mean(0), Z[1::2].mean(0), Z[0]])
        m[2] = far
        return m
    monkeypatch.setattr(self_training, "first_clusters", centres)
    a = mlp(method, update_interval=2, epochs=3)
    with pytest.warns(UserWarning, match=r"of 3 clusters are empty \(numbers .*2\)"): a.fit(X)
    assert 2 not in a.labels_ and all(v.isfinite().all() for v in a.module_.state_dict().values())
    assert np.isfinite(history(a).loss).all() and np.isfinite(a.predict_proba(X)).all()
    assert not a.module_.bank.spread[2].any() and a.module_.bank.spread[0].all()
    dead = a.sample(3, cluster=2)
    assert np.isfinite(dead).all() and (dead == dead[0]).all() and np.isfinite(a.prototypes()).all()    # no members, no spread: its centre, decoded
    monkeypatch.setattr(type(a), "inverse_transform", lambda self, Z, condition=None: Z)
    assert np.abs(a.sample(200)).max() < 1e3 or far == 1e3 and np.abs(a.sample(200) - a.cluster_centers_[2]).sum(1).min() > 1      # never drawn among all


def test_no_warning_where_no_cluster_is_empty(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlp("IDEC", n_clusters=2).fit(X)


def test_float_images_are_told_apart():
    x = np.full((6, 16, 16, 1), 0.5, np.float32)
    x[::2] += 1e-6
    with pytest.raises(ValueError, match="only 2 of the 6 images are distinct"): mlp(n_clusters=3).fit(x)


# ---- which term moves what

def changed_parts(a, b):
    one, two = weights(a), weights(b)
    return {k.partition(".")[0] for k in one if not one[k].equal(two[k]) and "spread" not in k}


def test_the_decoder_rests_in_dec_only(X):
    for method, parts in dict(zip(FAMILY, [{"encoder", "bank"}] + [{"encoder", "decoder", "bank"}] * 3)).items():
        assert changed_parts(mlp(method, epochs=0).fit(X), mlp(method, epochs=2, lr=1e-2, update_interval=2).fit(X)) == parts, method


def test_no_gradient_reaches_the_decoder_of_dec(X):
    seen = []
    def look(module, n): seen.append(([p.grad is None or not p.grad.any() for p in module.net.decoder.parameters()], [p.requires_grad for p in module.net.decoder.parameters()],
                                      [p.grad.abs().sum().item() > 0 for p in module.net.bank.parameters()]))
    a = mlp(lr=1e-2, **spied(Spy("refine", look))).fit(X)
    assert len(seen) == 6 and all(all(untouched) and not any(learns) and all(moved) for untouched, learns, moved in seen)
    assert all(p.requires_grad for p in a.module_.parameters())      # afterwards, all is as it was


@pytest.mark.parametrize("method, more, a, b", [("DEC", {}, 1, 0), ("IDEC", dict(gamma=0.3), 0.3, 1), ("IDEC", dict(gamma=0.0), 0, 1), ("DVC", dict(lam=0.25), 0.25, 0.75), ("DVC-2", dict(lam=0.6), 0.6, 0.4),
                                                ("DVC-2", dict(lam=0.0), 0, 1), ("DVC-2", dict(lam=1.0), 1, 0)])
def test_weights_of_the_two_terms(method, more, a, b, X):
    "λ and γ weigh the clustering term; the reconstruction counts per pixel"
    h = phase(mlp(method, update_interval=2, lr=1e-2, epochs=3, **more).fit(X))
    assert ("reconstruction" in h) == (b > 0) and "changed" in h and (h.clustering >= -1e-6).all()
    np.testing.assert_allclose(h.loss, a * h.clustering + (b * h.reconstruction / 256 if b else 0), rtol=1e-4)


def test_refinement_with_the_whole_elbo(X):
    for how in ("elbo", "reconstruction"):
        h = phase(mlp("DVC-2", refine_with=how, lam=0.2, beta=3.0, epochs=2).fit(X))
        np.testing.assert_allclose(h.loss, 0.2 * h.clustering + 0.8 * (h.reconstruction + (3.0 * h.kl if how == "elbo" else 0)) / 256, rtol=1e-4)
        assert (h.kl > 0).all()


def test_colour_counts_every_channel():
    h = phase(mlp("IDEC", gamma=0.1, epochs=1).fit(images(40, channels=3)))
    np.testing.assert_allclose(h.loss, 0.1 * h.clustering + h.reconstruction / 768, rtol=1e-4)


def test_without_a_clustering_term_centres_stay(X):
    start = mlp("DVC-2", lam=0.0, epochs=0).fit(X)
    a = mlp("DVC-2", lam=0.0, lr=1e-2, epochs=2).fit(X)
    assert (a.cluster_centers_ == start.cluster_centers_).all() and changed_parts(start, a) == {"encoder", "decoder"}


def test_without_a_reconstruction_the_decoder_rests(X):
    a = mlp("DVC-2", lam=1.0, lr=1e-2, epochs=2).fit(X)
    assert changed_parts(mlp("DVC-2", lam=1.0, epochs=0).fit(X), a) == {"encoder", "bank"}


@pytest.mark.parametrize("method", FAMILY)
def test_self_training_sharpens(method, quarters):
    "The images become more certain of their clusters"
    more = dict(n_clusters=4, pretrain_epochs=10, pretrain_lr=5e-3, gamma=1.0, lam=0.5)
    more = {k: v for k, v in more.items() if k in get_method(method).__dataclass_fields__}
    x, y = quarters
    one, two = mlp(method, epochs=0, **more).fit(x), mlp(method, epochs=20, lr=3e-3, update_interval=3, **more).fit(x)
    assert two.predict_proba(x).max(1).mean() > one.predict_proba(x).max(1).mean() + 0.03
    assert phase(two).changed.iloc[-1] == 0 and adjusted_rand_score(y, two.labels_) > 0.9


# ---- pre-training

@pytest.mark.parametrize("method", ["DEC", "DVC-2"])
def test_layer_pairs(method, X):
    a = mlp(method, hidden=(9, 7), epochs=0, pretrain_epochs=0).fit(X)
    assert layer_pairs(a.module_) == [("encoder.body.1", "decoder.4"), ("encoder.body.3", "decoder.2"), ("encoder.heads.0", "decoder.0")]


@pytest.mark.parametrize("likelihood", ["squared", "bernoulli"])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_layer_loss_is_its_formula(i, likelihood, X):
    net_with = lambda dropout: build(get_method("DEC").method, resolve(mlp("DEC", hidden=(9, 7), dropout=dropout, likelihood=likelihood))[0], (16, 16, 1), 3)
    net, batch = net_with(0.0), Batch(net_input(X))
    pairs, g = layer_pairs(net), activation_layer("relu")
    W = {k: v.double().numpy() for k, v in net.state_dict().items()}
    apply = lambda name, h: h @ W[f"{name}.weight"].T + W[f"{name}.bias"]
    relu = lambda h: np.maximum(h, 0)
    x = X.astype(np.float64).reshape(60, -1) / 255
    h = x
    for name, _ in pairs[:i]: h = relu(apply(name, h))
    y = apply(pairs[i][0], h)
    out = apply(pairs[i][1], y if i == 2 else relu(y))
    if i: expected = ((relu(out) - h) ** 2).sum(1).mean()
    else:
        p = 1 / (1 + np.exp(-out))
        expected = (((p - x) ** 2) if likelihood == "squared" else -(x * np.log(p) + (1 - x) * np.log(1 - p))).sum(1).mean()
    loss = lambda net: layer_loss(net, pairs, g, i, batch, Moment())["loss"].item()
    assert loss(net.train()) == pytest.approx(expected, rel=1e-4)
    noisy = net_with(0.5)
    torch.manual_seed(0)
    assert loss(noisy.train()) != pytest.approx(expected, rel=1e-3) and loss(noisy.eval()) == pytest.approx(expected, rel=1e-4)     # denoising


@pytest.mark.parametrize("method", ["DEC", "DVC-2"])
def test_one_pair_learns_at_a_time(method, X):
    moved = {}
    class Watch(pl.Callback):
        def on_train_start(self, trainer, module): self.before = {k: v.clone() for k, v in module.net.state_dict().items()}
        def on_train_end(self, trainer, module): moved[module.phase.name] = {k.rpartition(".")[0] for k, v in module.net.state_dict().items() if not v.equal(self.before[k])}
    a = mlp(method, pretrain="layer-wise", hidden=(9, 7), layer_epochs=2, **spied(Watch())).fit(X)
    pairs = layer_pairs(a.module_)
    assert [moved[f"layer {i + 1}"] for i in range(3)] == [set(p) for p in pairs]
    assert moved["pretrain"] == {n for p in pairs for n in p} | ({"encoder.heads.1"} if method == "DVC-2" else set())
    assert list(a.history_.phase) == ["layer 1"] * 2 + ["layer 2"] * 2 + ["layer 3"] * 2 + ["pretrain"] * 2 + ["refine"] * 2


def test_layer_wise_is_repeatable_and_drops_by_chance(X):
    more = dict(pretrain="layer-wise", epochs=0)
    a, b, c = (mlp(dropout=d, **more).fit(X) for d in (0.0, 0.0, 0.4))
    assert same_weights(a, b) and not same_weights(a, c) and same_weights(c, mlp(dropout=0.4, **more).fit(X))
    assert not same_weights(a, mlp(epochs=0).fit(X))
    assert changed_parts(a, mlp(dropout=0.0, random_state=1, **more).fit(X)) == {"encoder", "decoder", "bank"}


def test_layer_wise_needs_layers(X):
    for network in ("conv", "resize"):
        with pytest.raises(ValueError, match="pretrain='layer-wise' needs network='mlp'.*end-to-end"): mlp(pretrain="layer-wise", network=network).fit(X)


def test_augmentation_distorts_while_training_only(X):
    a = mlp(augment="affine", epochs=0, pretrain_epochs=1, pretrain_lr=1e-30, batch_size=60)
    h, plain = a.fit(X).history_.loss[0], mlp(epochs=0, pretrain_epochs=1, pretrain_lr=1e-30, batch_size=60).fit(X).history_.loss[0]
    assert h != pytest.approx(plain, rel=1e-4)
    batch = Batch(net_input(X))
    assert distorted("affine")(batch, False) is batch and not distorted("affine")(batch, True).x.equal(batch.x)


@pytest.mark.parametrize("epochs, budget, rows", [(5, 1.0, 5), (5, 0.5, 3), (5, 0.01, 1), (5, 0.0, 0), (4, 0.25, 1)])
def test_budget(epochs, budget, rows, X):
    a = mlp(pretrain="layer-wise", layer_epochs=2, pretrain_epochs=epochs, budget=budget, epochs=1).fit(X)
    assert len(phase(a, "pretrain")) == rows and len(phase(a, "layer 1")) == (2 if budget > 0.5 else 1 if budget else 0) and len(phase(a)) == 1


def test_pretrain_learning_rate_follows_its_own_schedule(X):
    a = mlp(pretrain_epochs=10, pretrain_lr=0.02, pretrain_schedule="tenths", lr=0.003, lr_schedule="constant").fit(X)
    np.testing.assert_allclose(phase(a, "pretrain").lr[:3], [0.002, 0.0002, 0.00002], rtol=1e-6)
    np.testing.assert_allclose(phase(a).lr, 0.003)


# ---- handing on

def files(folder): return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("more", [dict(), dict(pretrain="layer-wise", augment="affine"), dict(network="conv", likelihood="gaussian")], ids=str)
def test_the_cache_changes_no_bit(more, X, tmp_path):
    plain, writes, reads = (mlp(**more, cache_dir=c).fit(X) for c in (None, tmp_path / "deep" / "c", tmp_path / "deep" / "c"))
    for a in (writes, reads):
        assert same_weights(a, plain) and (a.labels_ == plain.labels_).all() and a.n_iter_ == plain.n_iter_
        pd.testing.assert_frame_equal(history(a), history(plain))
    assert len(files(tmp_path / "deep" / "c")) == 1


class Count:
    "How often a pre-training phase was run"
    def __init__(self, monkeypatch):
        import medstrat.training.loop as loop
        self.names, run = [], loop.run_phase
        monkeypatch.setattr(loop, "run_phase", lambda net, phase, *a, **k: self.names.append(phase.name) or run(net, phase, *a, **k))


def test_one_pretraining_for_two_methods(X, tmp_path, monkeypatch):
    "DEC and IDEC begin alike"
    ran = Count(monkeypatch)
    mlp(cache_dir=tmp_path).fit(X)
    assert ran.names == ["pretrain", "refine"] and len(files(tmp_path)) == 1
    for gamma in (0.1, 0.5): a = mlp("IDEC", gamma=gamma, cache_dir=tmp_path, checkpoint_dir=tmp_path.parent / "ckpt").fit(X)
    assert len(files(tmp_path)) == 1 and ran.names.count("pretrain") == 1 and same_weights(a, mlp("IDEC", gamma=0.5).fit(X))


def test_other_images_and_methods_do_not_share_a_pretraining(X, tmp_path):
    mlp(epochs=0, cache_dir=tmp_path).fit(X)
    other = X.copy(); other[37, 5, 5] ^= 1      # one bit of one pixel
    for x in (other, X[:59], X[::-1], X / np.float32(255)): mlp(epochs=0, cache_dir=tmp_path).fit(x)
    assert len(files(tmp_path)) == 5
    for method in ("DVC", "DVC-2"): mlp(method, epochs=0, cache_dir=tmp_path, preset="paper", pretrain="end-to-end", hidden=(16,)).fit(X)
    assert len(files(tmp_path)) == 6      # two heads; the same network in both


def test_validation_images_with_patience_do_not_share_a_pretraining(X, tmp_path):
    "They decide when it stops"
    noise, more = np.random.default_rng(1).integers(0, 256, (30, 16, 16), dtype=np.uint8), dict(patience=1, pretrain_epochs=8, epochs=0, pretrain_lr=1e-2)
    mlp(cache_dir=tmp_path, **more).fit(X, validation=noise)
    a, b = (mlp(cache_dir=c, **more).fit(X, validation=images(20, seed=1)) for c in (tmp_path, None))
    assert same_weights(a, b)


def test_own_networks_are_not_kept(X, tmp_path):
    a = mlp(encoder=nn.Flatten(), cache_dir=tmp_path).fit(X)
    assert files(tmp_path) == [] and a.reconstruct(X).shape == X.shape


@pytest.mark.parametrize("stop, kept", [(4, 0), (8, 1)])
def test_only_a_whole_pretraining_is_kept(stop, kept, X, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "cache_file", lambda *args: tmp_path / "pretrained-x.safetensors")     # whatever the key is made of
    with pytest.warns(UserWarning, match="interrupted"): mlp(**spied(interrupt(stop))).fit(X)
    assert len(files(tmp_path)) == kept
    assert same_weights(mlp().fit(X), (monkeypatch.undo(), mlp().fit(X))[1])


def test_a_pretraining_that_failed_is_not_kept(X, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "cache_file", lambda *args: tmp_path / "pretrained-x.safetensors")
    with pytest.raises(NonFiniteLoss): mlp(pretrain_lr=1e30).fit(X)
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", ["cut", "empty", "text", "foreign"])
def test_a_damaged_file_in_the_cache(content, X, tmp_path):
    "A cache is there to save time: what cannot be read is pre-trained again, with a warning, and replaced"
    from safetensors.torch import save_file
    plain = mlp(cache_dir=tmp_path).fit(X)
    path, = tmp_path.iterdir()
    whole = path.read_bytes()
    if content == "foreign": save_file({"a": torch.ones(2)}, path)
    else: path.write_bytes(dict(cut=whole[:-50], empty=b"", text=b"hello, this is no model at all")[content])
    with pytest.warns(UserWarning, match=path.name): a = mlp(cache_dir=tmp_path).fit(X)
    assert same_weights(a, plain) and files(tmp_path) == [path.name]
    assert same_weights(mlp(cache_dir=tmp_path).fit(X), plain)      # and the new one can be read


@pytest.fixture
def saved(X, refined, tmp_path):
    path = tmp_path / "dec.safetensors"
    refined["DEC"].save(path)
    return path


def test_pretrained_is_taken_over(X, saved, refined, monkeypatch):
    ran = Count(monkeypatch)
    a = mlp(pretrained=saved, epochs=0).fit(X)
    one, two = weights(a), weights(refined["DEC"])
    assert ran.names == [] and a.n_iter_ == 0 and all(one[k].equal(two[k]) for k in one if k.startswith(("encoder.", "decoder.")))
    b = mlp("IDEC", pretrained=str(saved), n_clusters=5, pretrain="layer-wise").fit(X)      # other clusters, another method
    assert ran.names == ["refine"] and len(b.cluster_centers_) == 5


def test_a_vae_hands_its_embedding_to_dec_and_back(X, refined, tmp_path):
    "One head fewer, one head more"
    path = tmp_path / "m"
    tiny("VAE + k-means", network="mlp").fit(X).save(path)
    vae, a = load_model(path), mlp(pretrained=path, epochs=0).fit(X)
    assert (a.transform(X) == vae.transform(X)).all() and (a.reconstruct(X) == vae.reconstruct(X)).all() and "encoder.heads.1.weight" not in weights(a)
    refined["DEC"].save(path)
    b = mlp("DVC-2", pretrained=path, epochs=2).fit(X)
    assert "encoder.heads.1.weight" in weights(b) and np.isfinite(history(b).loss).all()
    assert (mlp("DVC-2", pretrained=path, epochs=0).fit(X).transform(X) == refined["DEC"].transform(X)).all()


def test_a_file_of_the_cache_can_be_given(X, tmp_path):
    a = mlp(cache_dir=tmp_path, epochs=0).fit(X)
    path, = tmp_path.iterdir()
    assert (mlp(pretrained=path, epochs=0).fit(X).transform(X) == a.transform(X)).all()


def test_pretrained_files_that_cannot_be_used(X, saved, tmp_path):
    from safetensors.torch import save_file
    with pytest.raises(FileNotFoundError, match="pretrained=.*no such file"): mlp(pretrained=tmp_path / "nowhere").fit(X)
    whole, bad = saved.read_bytes(), tmp_path / "bad"
    for content in (whole[:-50], whole[:20], b"", b"hello, this is no model at all"):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="pretrained=.*bad.*not a model saved by medstrat"): mlp(pretrained=bad).fit(X)
    torch.save(dict(a=1), bad)
    with pytest.raises(ValueError, match="not a model saved by medstrat"): mlp(pretrained=bad).fit(X)
    save_file({"a": torch.ones(2)}, bad)
    with pytest.raises(ValueError, match="not a model saved by medstrat"): mlp(pretrained=bad).fit(X)
    tiny("pixels + k-means").fit(X).save(bad)
    with pytest.raises(ValueError, match="does not fit.*absent there"): mlp(pretrained=bad).fit(X)


def test_pretrained_folder_is_refused(X, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError, IsADirectoryError), match="pretrained="): mlp(pretrained=tmp_path).fit(X)


@pytest.mark.parametrize("change", [dict(latent_dim=5), dict(hidden=(17,)), dict(hidden=(16, 16)), dict(image_size=12), dict(network="conv"), dict(likelihood="gaussian")], ids=str)
def test_networks_of_another_shape_are_refused(change, X, saved):
    with pytest.raises(ValueError, match=r"does not fit: .* there and .* here.*same image size and network parameters"): mlp(pretrained=saved, **change).fit(X)


def test_nothing_is_copied_from_a_file_that_does_not_fit(X, saved):
    net = mlp(epochs=0, hidden=(17,)).fit(X).module_
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError): load_autoencoder(net, saved)
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("as_text", [True, False])
def test_a_model_from_a_pretrained_one_can_be_saved(as_text, X, saved, tmp_path):
    a = mlp(pretrained=str(saved) if as_text else saved).fit(X)
    a.save(tmp_path / "again")
    b = load_model(tmp_path / "again")
    assert (b.predict(X) == a.labels_).all() and same_weights(clone(b).fit(X), a)


# ---- files and samples

@pytest.mark.parametrize("method", FAMILY)
def test_degrees_of_freedom_belong_to_the_model(method, quarters, tmp_path):
    X = quarters[0]
    a = mlp(method, alpha=3.0).fit(X)
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert b.module_.bank.alpha == 3.0 and (b.predict_proba(X) == a.predict_proba(X)).all() and (a.sample(4, cluster=1) == b.sample(4, cluster=1)).all()
    np.testing.assert_allclose(b.predict_proba(X), np.exp(slow_log_q(b.transform(X), b.cluster_centers_, 3.0)), atol=1e-4)


def test_samples_are_drawn_around_the_centre(quarters, refined, monkeypatch):
    a, X = refined["IDEC"], quarters[0]
    spread, Z = a.module_.bank.spread.numpy(), a.transform(X)
    for k in range(3): np.testing.assert_allclose(spread[k], Z[a.labels_ == k].std(0), rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(type(a), "inverse_transform", lambda self, Z, condition=None: Z)
    z = a.sample(20000, cluster=1)
    np.testing.assert_allclose(z.mean(0), a.cluster_centers_[1], atol=0.05 * spread[1].max() + 1e-6)
    np.testing.assert_allclose(z.std(0), spread[1], rtol=0.05)
    everything = a.sample(20000)
    nearest = ((everything[:, None] - a.cluster_centers_[None]) ** 2 / (spread**2 + 1e-12)[None]).sum(2) + np.log(spread**2 + 1e-12).sum(1) - 2 * np.log(np.bincount(a.labels_) / 80)
    np.testing.assert_allclose(np.bincount(nearest.argmin(1), minlength=3) / 20000, np.bincount(a.labels_) / 80, atol=0.03)     # as often as in training


@pytest.mark.parametrize("method", FAMILY)
def test_samples_of_a_cluster_are_found_in_it(method, quarters):
    x, y = quarters
    a = mlp(method, n_clusters=4, pretrain_epochs=40, pretrain_lr=5e-3, epochs=4, lr=1e-3, update_interval=4).fit(x)
    assert adjusted_rand_score(y, a.labels_) == 1
    for k in range(4): assert (a.predict(a.sample(50, cluster=k)) == k).mean() > 0.8, k


# ---- validation images

@pytest.mark.parametrize("method", FAMILY)
def test_validation_loss_of_the_refinement(method, X):
    "Their target comes from their own q and the training images' weights; they have no index there"
    new = images(20, seed=1)
    a = mlp(method, epochs=1, lr=1e-30, update_interval=100).fit(X, validation=new)
    q, w = a.predict_proba(new).astype(np.float64), slow_weights(a.predict_proba(X), a.settings_.target, a.settings_.target_gamma)
    p = q**2 / w / (q**2 / w).sum(1, keepdims=True)
    assert phase(a).val_clustering[0] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-2)
    assert same_weights(a, mlp(method, epochs=1, lr=1e-30, update_interval=100).fit(X))


@pytest.mark.parametrize("method", FAMILY)
def test_patience_in_the_refinement(method, X):
    noise = np.random.default_rng(1).integers(0, 256, (30, 16, 16), dtype=np.uint8)
    a = mlp(method, epochs=30, lr=2e-2, lr_schedule="constant", patience=2, update_interval=2).fit(X, validation=noise)
    h = phase(a)
    best = int(h.val_loss.argmin())
    assert len(h) == min(best + 3, 30) and np.isfinite(h.val_loss).all() and not a.interrupted_
    without = mlp(method, epochs=best + 1, lr=2e-2, lr_schedule="constant", update_interval=2, pretrain_epochs=len(phase(a, "pretrain")))
    if len(phase(a, "pretrain")) == 2 and phase(a, "pretrain").val_loss.is_monotonic_decreasing: assert same_weights(a, without.fit(X))


# ---- the first centres

@pytest.mark.parametrize("method", ["DEC", "DVC-2"])
def test_first_centres_are_those_of_kmeans(method, X):
    a = mlp(method, epochs=0, n_init=3, n_clusters=4).fit(X)
    found = KMeans(4, n_init=3, random_state=0).fit(a.transform(X))
    np.testing.assert_allclose(a.cluster_centers_, found.cluster_centers_, atol=1e-6)
    assert (found.labels_ == a.labels_).all()


@pytest.mark.parametrize("how", ["k-means", "mixture"])
def test_first_clusters_find_blobs(how):
    rng = np.random.default_rng(0)
    true = np.float32([[0, 0, 0], [0, 5, 5], [5, 0, 0]])
    Z = (true[np.arange(90) % 3] + rng.normal(0, 0.3, (90, 3))).astype(np.float32)
    for factor in (1e-3, 1.0, 1e6):
        m = first_clusters(Z * np.float32(factor), 3, how, 2, 0) / factor
        np.testing.assert_allclose(m[np.argsort(2 * m[:, 0] + m[:, 1])], true, atol=0.3)
    assert (first_clusters(Z, 3, how, 2, 0) == first_clusters(Z, 3, how, 2, 0)).all()
    np.testing.assert_allclose(first_clusters(Z, 1, how, 1, 0)[0], Z.mean(0), atol=1e-3)
    with pytest.raises(ValueError, match="init='kmeans'.*'k-means' or 'mixture'"): first_clusters(Z, 3, "kmeans")


@pytest.mark.parametrize("offset", [10, 1000])
def test_mixture_does_not_depend_on_where_the_embedding_lies(offset):
    rng = np.random.default_rng(0)
    Z = np.concatenate([rng.normal(0, 0.1, (50, 2)), rng.normal(0, 0.1, (50, 2)) + [1, 0]]).astype(np.float32)
    m = first_clusters(Z + np.float32([0, offset]), 2, "mixture", 2, 0)
    np.testing.assert_allclose(np.sort(m[:, 0]), [0, 1], atol=0.1)


@pytest.mark.parametrize("how", ["k-means", "mixture"])
def test_a_collapsed_embedding_is_refused(how, X):
    with pytest.raises(ValueError, match="n_clusters=2, but the images have only 1 distinct embeddings.*collapsed"): first_clusters(np.ones((20, 3), np.float32), 2, how)
    with pytest.raises(ValueError, match="only 2 distinct"): first_clusters(np.repeat(np.eye(2, dtype=np.float32), 10, 0), 3, how)
    class Blind(nn.Module):
        def forward(self, x): return x.flatten(1)[:, :3] * 0
    with pytest.raises(ValueError, match="images have only 1 distinct embeddings"): mlp(encoder=Blind(), init=how).fit(X)
    assert first_clusters(np.ones((20, 3), np.float32), 1, how).tolist() == [[1, 1, 1]]


# ---- presets (METHODS)

def value(method, name, preset="paper", dataset="*"): return lookup(get_method(method), name, preset, dataset)[0]


def test_printed_numbers_are_in_the_presets():
    assert value("IDEC", "gamma") == 0.1 == value("IDEC", "gamma", "best") and value("DVC", "lam") == 0.1 == value("DVC-2", "lam")
    for m in FAMILY: assert value(m, "tol") == 0.001 and value(m, "alpha") == 1
    for m in ("DVC", "DVC-2"):
        for dataset, interval, batch in [("mnist", 100, 256), ("brats", 80, 64), ("brain_mri_4class_128", 80, 64), ("refuge", 70, 8), ("fundus_glaucoma_128", 70, 8)]:
            assert (value(m, "update_interval", dataset=dataset), value(m, "batch_size", dataset=dataset)) == (interval, batch), (m, dataset)
        assert value(m, "target") == "dvc" and value(m, "target_gamma") == 2 and value(m, "refine_with") == "reconstruction" and value(m, "likelihood") == "bernoulli"
        assert value(m, "target", "released") == "dec" and value(m, "update_interval", "released") == "epoch" and value(m, "epochs", "released") == 20 and value(m, "lr", "released") == 1e-3
        assert value(m, "pretrain_epochs", "released") <= 100 and value(m, "beta", "released") == 1
        assert value(m, "pretrain_lr") == 0.01 and value(m, "pretrain_schedule") == "tenths"
        lam = value(m, "lam", "released")
        assert lam / (1 - lam) == pytest.approx(0.1)      # 0.1 of the clustering term beside a whole reconstruction
        for dataset, batch in [("brats", 16), ("refuge", 4)]: assert (value(m, "latent_dim", "released", dataset), value(m, "batch_size", "released", dataset)) == (2, batch)
    assert value("DVC", "latent_dim", "released") == 10
    assert value("DVC-2", "hidden") == (500, 500, 1000) and value("DVC-2", "latent_dim") == 10 and value("DVC-2", "network") == "mlp" and value("DVC", "network") == "resize"
    for m in ("DEC", "IDEC"): assert value(m, "hidden") == (500, 500, 2000) and value(m, "latent_dim") == 10 and value(m, "target") == "dec" and value(m, "batch_size") == 256
    assert value("DVC-2", "pretrain") == "layer-wise" == value("DEC", "pretrain")


def test_iterations_become_epochs():
    "Printed are iterations of 256 images, on the 60,000 of MNIST"
    for method, name, iterations in [("DVC", "pretrain_epochs", 200_000), ("DVC-2", "layer_epochs", 100_000), ("DEC", "layer_epochs", 50_000), ("DEC", "pretrain_epochs", 100_000)]:
        assert value(method, name) == round(iterations * 256 / 60_000), (method, name)


@pytest.mark.parametrize("preset", ["paper", "released", "best"])
@pytest.mark.parametrize("method", FAMILY)
def test_presets_train(method, preset, X):
    a = tiny(method, preset=preset, n_init=2).fit(X)
    assert np.isfinite(history(a).loss).all() and len(phase(a)) >= 1
    assert same_weights(a, tiny(method, preset=preset, n_init=2).fit(X))
