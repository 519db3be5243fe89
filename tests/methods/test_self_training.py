"Self-training, whatever the network (DEC, IDEC, DVC-1, DVC-2): the first clusters, targets, when it stops, and what can go wrong."
import gc

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    FAMILY,
    Lazy,
    Spy,
    history,
    images,
    interrupt,
    mlp,
    phase,
    same_weights,
    spied,
    tiny,
)
from helpers import Largest
from sklearn.cluster import KMeans
from sklearn.datasets import make_moons
from sklearn.metrics import adjusted_rand_score, mutual_info_score
from torch import nn

from medstrat.methods import self_training
from medstrat.methods.self_training import first_clusters
from medstrat.parts.student import Target
from medstrat.training.checkpoints import read_checkpoint
from medstrat.training.inference import Engine, over_images
from medstrat.training.phases import NonFiniteLoss
from medstrat.training.registry import get_method
from medstrat.training.saving import load_model, read_tensors
from medstrat.training.starts import certainty

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# ---- the first clusters

@pytest.mark.parametrize("method", ["DEC", "DVC-2"])
def test_first_centres_are_those_of_kmeans(method, X):
    a = mlp(method, epochs=0, n_init=3, n_clusters=4).fit(X)
    found = KMeans(4, n_init=3, random_state=0).fit(a.transform(X))
    np.testing.assert_allclose(a.cluster_centers_, found.cluster_centers_, atol=1e-6)
    assert (found.labels_ == a.labels_).all()


@pytest.mark.parametrize("how", ["k-means", "mixture", "merged"])
def test_first_clusters_find_blobs(how):
    rng = np.random.default_rng(0)
    true = np.float32([[0, 0, 0], [0, 5, 5], [5, 0, 0]])
    Z = (true[np.arange(90) % 3] + rng.normal(0, 0.3, (90, 3))).astype(np.float32)
    for factor in (1e-3, 1.0, 1e6):
        m = first_clusters(Z * np.float32(factor), 3, how, 2, 0)[0] / factor
        np.testing.assert_allclose(m[np.argsort(2 * m[:, 0] + m[:, 1])], true, atol=0.3)
    assert (first_clusters(Z, 3, how, 2, 0)[0] == first_clusters(Z, 3, how, 2, 0)[0]).all()
    np.testing.assert_allclose(first_clusters(Z, 1, how, 1, 0)[0][0], Z.mean(0), atol=1e-3)
    with pytest.raises(ValueError, match="init='kmeans'.*'k-means', 'mixture' or 'merged'"): first_clusters(Z, 3, "kmeans")


def test_merging_against_a_loop():
    "The pair with the largest shared responsibility, by the smaller of the two, written as sums over images"
    r = np.random.default_rng(0).dirichlet(np.full(7, .3), 50)
    slow = [list(column) for column in r.T]
    while len(slow) > 3:
        share = {(i, j): sum(a * b for a, b in zip(slow[i], slow[j])) / min(sum(slow[i]), sum(slow[j])) for i in range(len(slow)) for j in range(i)}
        i, j = max(share, key=share.get)
        slow.append([a + b for a, b in zip(slow[i], slow[j])])
        slow = [column for n, column in enumerate(slow) if n not in (i, j)]
    before = r.copy()
    merged = self_training.merge(r, 3)
    np.testing.assert_allclose(sorted(merged.T.tolist()), sorted(slow), rtol=1e-10)
    np.testing.assert_allclose(merged.sum(1), 1)
    assert (self_training.merge(r, 7) == before).all() and (r == before).all(), "what was given has changed"


def test_information_is_the_mutual_information_of_images_and_clusters():
    clusters = np.random.default_rng(0).integers(0, 4, 60)
    np.testing.assert_allclose(self_training.information(np.eye(4)[clusters]), mutual_info_score(range(60), clusters))
    r = np.random.default_rng(1).dirichlet(np.ones(5), 30)
    joint = r / 30                                                # of an image drawn evenly, and its cluster
    loop = sum(p * np.log(p / (joint[i].sum() * joint[:, j].sum())) for i in range(30) for j, p in enumerate(joint[i]))
    np.testing.assert_allclose([self_training.information(r), certainty(r)["information"]], loop)


def test_merged_components_follow_a_bend():
    "Two half moons: one normal distribution each cuts through both, three each and merged do not"
    Z, y = make_moons(900, noise=.06, random_state=0)
    right = {}
    for how in ("mixture", "merged"):
        _, r = first_clusters(Z.astype(np.float32), 2, how, 10, 0)
        right[how] = adjusted_rand_score(y, r.argmax(1))
    assert right["merged"] > .95 > .7 > right["mixture"], right


def test_the_first_target_is_the_mixtures_own(X):
    "And that of k-means comes from the centres, as in the papers"
    for how in ("mixture", "k-means"):
        a = mlp("IDEC", init=how, n_init=2, n_clusters=3, update_interval=10_000, tol=0.0, epochs=1, batch_size=len(X))
        first, kept = self_training.first_clusters, {}
        def spy(Z, k, *more):
            kept["Z"], (kept["centres"], kept["r"]) = Z, first(Z, k, *more)
            return kept["centres"], kept["r"]
        with pytest.MonkeyPatch.context() as m:
            m.setattr(self_training, "first_clusters", spy)
            renew = Target.renew
            m.setattr(Target, "renew", lambda self, q, *more: (kept.setdefault("q", q.clone()), renew(self, q, *more))[1])
            a.fit(X)
        distance = np.square(kept["Z"][:, None] - kept["centres"][None]).sum(2)
        student = (1 / (1 + distance)) / (1 / (1 + distance)).sum(1, keepdims=True)
        np.testing.assert_allclose(kept["q"], kept["r"] if how == "mixture" else student, atol=1e-5)


@pytest.mark.parametrize("offset", [10, 1000])
def test_mixture_does_not_depend_on_where_the_embedding_lies(offset):
    rng = np.random.default_rng(0)
    Z = np.concatenate([rng.normal(0, 0.1, (50, 2)), rng.normal(0, 0.1, (50, 2)) + [1, 0]]).astype(np.float32)
    m, _ = first_clusters(Z + np.float32([0, offset]), 2, "mixture", 2, 0)
    np.testing.assert_allclose(np.sort(m[:, 0]), [0, 1], atol=0.1)


@pytest.mark.parametrize("how", ["k-means", "mixture", "merged"])
def test_a_collapsed_embedding_is_refused(how, X):
    with pytest.raises(ValueError, match="n_clusters=2, but the images have only 1 distinct embeddings.*collapsed"): first_clusters(np.ones((20, 3), np.float32), 2, how)
    with pytest.raises(ValueError, match="only 2 distinct"): first_clusters(np.repeat(np.eye(2, dtype=np.float32), 10, 0), 3, how)
    class Blind(nn.Module):
        def forward(self, x): return x.flatten(1)[:, :3] * 0
    with pytest.raises(ValueError, match="images have only 1 distinct embeddings"): mlp(encoder=Blind(), init=how).fit(X)
    np.testing.assert_allclose(first_clusters(np.ones((20, 3), np.float32), 1, how)[0], [[1, 1, 1]], rtol=1e-6)


# ---- the target of all images

def weights_of(q, kind="dec", gamma=2.0):
    "By what DEC Eq. 3, or DVC Eqs 8–9, divide squared probabilities, in float64"
    q = np.asarray(q, np.float64)
    u = q.sum(0)
    return u if kind == "dec" else u + (np.sqrt(len(q) / u) * (1 - q) ** gamma * -np.log(q)).sum(0)


def target_of(q, kind="dec", gamma=2.0):
    p = np.asarray(q, np.float64) ** 2 / weights_of(q, kind, gamma)
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
    np.testing.assert_allclose(t.w, weights_of(q, kind, a.settings_.target_gamma), rtol=1e-3)
    np.testing.assert_allclose(t.P, target_of(q, kind, a.settings_.target_gamma), atol=1e-4)
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


def test_a_renewal_needs_no_more_than_n_times_k():
    "Never N×K×D"
    n, k, d = 97, 31, 23
    x = images(n, 8)
    a = mlp(image_size=None, n_clusters=k, latent_dim=d, epochs=0, pretrain_epochs=1, batch_size=n).fit(x)
    with Largest() as seen: t = renewed(a, x)
    assert t.P.shape == (n, k) and n * k <= seen.size <= n * max(k, d, 64) < n * k * d


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
    p = target_of(q)
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


@pytest.mark.parametrize("method", FAMILY)
def test_self_training_sharpens(method, quarters):
    "The images become more certain of their clusters"
    more = dict(n_clusters=4, pretrain_epochs=10, pretrain_lr=5e-3, gamma=1.0, lam=0.5)
    more = {k: v for k, v in more.items() if k in get_method(method).__dataclass_fields__}
    x, y = quarters
    one, two = mlp(method, epochs=0, **more).fit(x), mlp(method, epochs=20, lr=3e-3, update_interval=3, **more).fit(x)
    assert two.predict_proba(x).max(1).mean() > one.predict_proba(x).max(1).mean() + 0.03
    assert phase(two).changed.iloc[-1] == 0 and adjusted_rand_score(y, two.labels_) > 0.9


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
    "colour": (dict(), lambda: images(40, channels=3)),
    "8×8": (dict(image_size=None), lambda: images(40, 8)),
    "not square": (dict(image_size=None), lambda: images(40, 9, width=14)),
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


@pytest.mark.parametrize("far", [1e3, 1e19, 1e38])
@pytest.mark.parametrize("method", FAMILY)
def test_a_dead_cluster(method, far, X, monkeypatch):
    def centres(Z, k, *more):
        m = np.array([Z[::2].mean(0), Z[1::2].mean(0), Z[0]])
        m[2] = far
        return m, None
    monkeypatch.setattr(self_training, "first_clusters", centres)
    a = mlp(method, update_interval=2, epochs=3)
    with pytest.warns(UserWarning, match=r"of 3 clusters (is|are) empty \(numbers? .*2\)"): a.fit(X)
    assert 2 not in a.labels_ and all(v.isfinite().all() for v in a.module_.state_dict().values())
    assert np.isfinite(history(a).loss).all() and np.isfinite(a.predict_proba(X)).all()
    assert not a.module_.bank.spread[2].any() and a.module_.bank.spread[0].all()
    dead = a.sample(3, cluster=2)
    assert np.isfinite(dead).all() and (dead == dead[0]).all() and np.isfinite(a.prototypes()).all()    # no members, no spread: its centre, decoded
    monkeypatch.setattr(type(a), "inverse_transform", lambda self, Z, condition=None: Z)
    assert np.abs(a.sample(200)).max() < 1e3 or far == 1e3 and np.abs(a.sample(200) - a.cluster_centers_[2]).sum(1).min() > 1      # never drawn among all


# ---- files and samples

@pytest.mark.parametrize("method", FAMILY)
def test_degrees_of_freedom_belong_to_the_model(method, quarters, tmp_path):
    X = quarters[0]
    a = mlp(method, alpha=3.0).fit(X)
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert b.module_.bank.alpha == 3.0 and (b.predict_proba(X) == a.predict_proba(X)).all() and (a.sample(4, cluster=1) == b.sample(4, cluster=1)).all()
    t = (1 + ((b.transform(X)[:, None] - b.cluster_centers_[None]) ** 2).sum(2) / 3) ** -2
    np.testing.assert_allclose(b.predict_proba(X), t / t.sum(1, keepdims=True), atol=1e-4)


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
    q, w = a.predict_proba(new).astype(np.float64), weights_of(a.predict_proba(X), a.settings_.target, a.settings_.target_gamma)
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


# ---- presets

@pytest.mark.parametrize("preset", ["paper", "released", "best"])
@pytest.mark.parametrize("method", FAMILY)
def test_presets_train(method, preset, X):
    a = tiny(method, preset=preset, n_init=2).fit(X)
    assert np.isfinite(history(a).loss).all() and len(phase(a)) >= 1
    assert same_weights(a, tiny(method, preset=preset, n_init=2).fit(X))
