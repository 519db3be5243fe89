"Several starts: criteria against other computations, which start is kept, and trainings that are stopped, killed or broken on the way."
import json
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import apart, cohort, four_kinds, history, images, interrupt, ready, same_weights
from sklearn.metrics import adjusted_rand_score, cohen_kappa_score, mutual_info_score, normalized_mutual_info_score

from medstrat.data.sources import load_dataset
from medstrat.training import starts as module
from medstrat.training.batches import ImageBatches
from medstrat.training.inference import Engine
from medstrat.training.loop import PhaseModule
from medstrat.training.method import Batch, Told
from medstrat.training.phases import Moment, NonFiniteLoss, Phase
from medstrat.training.saving import load_model, read_header
from medstrat.training.seeds import mix_seed
from medstrat.training.settling import settle
from medstrat.training.starts import (
    Start,
    certainty,
    compared,
    decides,
    judge,
    last_checkpoint,
    measured,
    mutual_agreement,
    plain_features,
    predictability,
    seed_of,
    separation,
    table_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*clusters are empty:UserWarning", "ignore:start ./. failed:UserWarning", "ignore::sklearn.exceptions.ConvergenceWarning")
QUICK = dict(network="mlp", random_state=0)


def several(method="DEC", **changes): return ready(method, **dict(QUICK, n_starts=3) | changes)
def table(a): return a.starts_.drop(columns="seconds")


# ---- criteria

def test_agreement_is_the_mean_over_the_others():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 4, 50) for _ in range(3)] + [np.arange(50) % 4]
    for how, alike in (("ari", adjusted_rand_score), ("nmi", normalized_mutual_info_score)):
        expected = [sum(alike(a, b) for b in labels if b is not a) / 3 for a in labels]
        np.testing.assert_allclose(mutual_agreement(labels, how), expected)
    assert np.isnan(mutual_agreement(labels[:1])).all()
    assert mutual_agreement([labels[3], labels[3], np.zeros(50, int)]).tolist() == [.5, .5, 0] and mutual_agreement([np.zeros(50, int)] * 2).tolist() == [0, 0]


def test_certainty_against_mutual_information():
    rng = np.random.default_rng(0)
    c = rng.integers(0, 3, 40)
    hard = certainty(np.eye(5)[c])
    assert hard["confidence"] == 1 and hard["sharpness"] == 0 and hard["information"] == pytest.approx(mutual_info_score(c, c))
    r = rng.dirichlet(np.ones(4), 30)
    soft, H = certainty(r), lambda p: -(p * np.log(p)).sum(-1)
    assert soft["confidence"] == pytest.approx(np.mean([max(row) for row in r])) and soft["sharpness"] == pytest.approx(-H(r).mean())
    assert soft["information"] == pytest.approx(np.mean([(row * np.log(row / r.mean(0))).sum() for row in r]))     # KL from the mean


def test_separation_image_by_image():
    rng = np.random.default_rng(0)
    Z, c = rng.normal(size=(40, 3)), rng.choice([1, 4, 7], 40)
    means = {k: Z[c == k].mean(0) for k in (1, 4, 7)}
    def one(z, k):
        a, b = np.linalg.norm(z - means[k]), min(np.linalg.norm(z - means[j]) for j in means if j != k)
        return (b - a) / max(a, b)
    assert separation(Z, c) == pytest.approx(np.mean([one(z, k) for z, k in zip(Z, c)]))
    assert separation(Z * 7 + 3, c) == pytest.approx(separation(Z, c)) and separation(Z, np.zeros(40)) == 0 and separation(np.ones((4, 2)), np.arange(4) % 2) == 0


def test_predictability():
    x, kind = four_kinds()
    rows, P = plain_features(x)
    assert (rows == np.arange(len(x))).all() and predictability(P, kind) == 1
    noise = np.random.default_rng(0).permutation(kind)
    assert abs(predictability(P, noise)) < .25 and predictability(P, np.zeros(len(x), int)) == 0
    assert predictability(P[:2], np.arange(2)) <= 0 and np.isfinite(predictability(P[:3], np.array([0, 0, 1])))


def test_predictability_against_neighbours_looked_up_by_hand():
    from sklearn.model_selection import KFold
    rng = np.random.default_rng(0)
    P, c, said = rng.normal(size=(45, 2)), rng.integers(0, 3, 45), np.empty(45, int)
    P[:, 0] += 2 * c
    for train, test in KFold(5, shuffle=True, random_state=0).split(P):
        for i in test:
            near = train[np.argsort(((P[train] - P[i])**2).sum(1), kind="stable")[:10]]
            said[i] = np.bincount(c[near]).argmax()
    assert predictability(P, c) == pytest.approx(cohen_kappa_score(c, said)) and .2 < predictability(P, c) < 1


@pytest.mark.parametrize("items", [images(2500, side=8), images(30, side=80), images(30, channels=3), np.random.default_rng(0).normal(size=(40, 7)), images(2)])
def test_features_of_any_images_and_of_vectors(items):
    rows, P = plain_features(items)
    assert len(rows) == len(P) == min(len(items), 2000) and P.shape[1] <= 50 and np.isfinite(P).all() and (P == plain_features(items)[1]).all()


def test_two_starts_cannot_agree_more_or_less():
    assert [decides("agreement", n) for n in (1, 2, 3, 9)] == ["confidence"] * 2 + ["agreement"] * 2 and decides("bound", 2) == "bound"


def test_a_criterion_without_a_number_never_wins():
    three = [Start(i + 1, i, None, [], "", (np.arange(6) % 2, dict(confidence=1.0, bound=b))) for i, b in enumerate((np.nan, -5.0, -np.inf))]
    assert table_of(three, "bound").chosen.tolist() == [False, True, False]
    assert table_of(three[:1], "bound").chosen.tolist() == [True]


# ---- what networks measure

@pytest.mark.parametrize("method", ["VaDE", "GMVAE", "CDVaDE"])
def test_the_bound_is_that_of_all_images_with_the_same_noise(method):
    S, a = cohort(), ready(method, **QUICK, beta=.1, kl_warmup=7, epochs=1, pretrain_epochs=1) if method != "GMVAE" else ready(method, **QUICK, beta=.1, epochs=1)
    fit = settle(a, S)
    fit.follow(fit.net.recipe())
    before = torch.get_rng_state()
    got = measured(fit.net, fit.data, fit.engine)
    assert torch.get_rng_state().equal(before) and got == measured(fit.net, fit.data, fit.engine)
    x = torch.from_numpy(S.images).permute(0, 3, 1, 2).float() / 255
    codes = fit.data.beside.get("covariates")
    assert (codes is None) == (method != "CDVaDE")
    fit.net.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        t = fit.net.loss(Batch(x, told=Told(None if codes is None else torch.from_numpy(codes))), Moment())
    kinds = ["reconstruction", "kl_z", "kl_c"] + ["kl_w"] * (method == "GMVAE")
    assert got["bound"] == pytest.approx(-sum(float(t[k]) for k in kinds), rel=1e-4) and set(got) == {"bound", "reconstruction"}


@pytest.mark.parametrize("method", ["DEC", "DVC"])
def test_means_are_over_images_not_over_portions(method, monkeypatch):
    fit = settle(ready(method, **QUICK), cohort(50))
    whole = measured(fit.net, fit.data, fit.engine)
    real = module.over_inputs
    def in_two(net, x, fn, engine, beside=None):
        for part in (x[:33], x[33:]): yield from real(net, part, fn, engine, beside)
    monkeypatch.setattr(module, "over_inputs", in_two)
    assert measured(fit.net, fit.data, fit.engine)["reconstruction"] == pytest.approx(whole["reconstruction"], rel=1e-4)


# ---- which one is kept

def test_seeds_are_streams_of_their_own():
    seeds = [seed_of(5, i) for i in range(1, 9)]
    assert seeds[0] == 5 and len(set(seeds)) == 8 and not set(seeds) & {mix_seed(5, k) for k in range(1000)}


def test_starts_trained_alone_are_compared_by_the_same_words():
    x = images(80)
    a = several(n_clusters=4).fit(x)
    alone = [several(n_clusters=4, n_starts=1, random_state=int(s)).fit(x) for s in a.starts_.seed]
    found = compared([judge(m.module_, ImageBatches(x), Engine.of(m.settings_), plain_features(x)) for m in alone])
    pd.testing.assert_frame_equal(found, a.starts_[found.columns], rtol=1e-6)


@pytest.mark.parametrize("n, criterion", [(2, "confidence"), (3, "agreement")])
def test_self_training_is_chosen_by(n, criterion):
    a = several(n_starts=n, n_clusters=4).fit(images(80))
    assert a.starts_[criterion].idxmax() == a.starts_.chosen.idxmax() and a.starts_.chosen.sum() == 1
    assert a.provenance_["n_starts"] == f"given; the best by {criterion}"


@pytest.mark.parametrize("method, kept", [("DEC", [1, 2, 3]), ("VaDE", [1, 1, 1])])
def test_networks_that_cannot_win_any_more_are_let_go(method, kept, monkeypatch):
    seen, real = [], module.adopt
    def adopt(fit, starts):
        real(fit, starts)
        seen.append(sum(s.fit is not None for s in starts))
    monkeypatch.setattr(module, "adopt", adopt)
    several(method).fit(images(40))
    assert seen == kept


def test_labels_of_all_starts_are_all_that_is_kept_of_images(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "end", lambda *a, real=module.end: seen.append(real(*a)) or seen[-1])
    several("VaDE").fit(images(40))
    assert [(s.judged[0].dtype, len(s.judged[0])) for s in seen] == [(np.int32, 40)] * 3


def test_a_bar_says_which_start():
    said = []
    class Net(torch.nn.Linear): pass
    from medstrat.training import loop
    with pytest.MonkeyPatch.context() as m:
        m.setattr(loop, "tqdm", lambda **more: said.append(more["desc"]))
        for place in ("start 2/3", ""):
            part = PhaseModule(Net(1, 1), Phase("refine", 1), 0, 1, fit=type("F", (), dict(place=place)))
            loop.Bar([]).on_train_start(None, part)
    assert said == ["start 2/3, refine", "refine"]


def test_pretrainings_are_kept_and_found_start_by_start(tmp_path):
    x = images(60)
    several(n_starts=1, cache_dir=tmp_path).fit(x)
    first = set(tmp_path.iterdir())
    a = several(cache_dir=tmp_path).fit(x)
    assert len(first) == 1 and first < set(tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 3
    b = several(cache_dir=tmp_path).fit(x)
    assert same_weights(a, b) and same_weights(a, several().fit(x)) and len(list(tmp_path.iterdir())) == 3


# ---- stopped, killed, broken

@pytest.mark.parametrize("method", ["DEC", "VaDE", "GMVAE"])
def test_ctrl_c_in_any_start_and_on_from_there(method, tmp_path):
    "60 images in batches of 20: three batches an epoch, two epochs a phase"
    x, n = images(60), 6 if method == "GMVAE" else 12      # batches a start
    whole, first = several(method).fit(x), several(method, n_starts=1).fit(x)
    for stop in (n - 1, n + 1, 2 * n - 1, 2 * n + 4):
        done = stop // n                                   # starts that had finished
        folder = tmp_path / str(stop)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            a = several(method, checkpoint_dir=folder, trainer_options=dict(callbacks=[interrupt(stop)])).fit(x)
        text = next(str(w.message) for w in said if "interrupted" in str(w.message))
        kept = "the best of the finished starts" if done else "what has been learned so far"
        assert re.search(rf"epoch \d of start {done + 1}/3; {kept} is kept\. Go on with fit\(…, resume=", text) and a.checkpoint_ in text, text
        assert a.interrupted_ is True and a.starts_.trouble.tolist() == [""] * done + ["interrupted"] and a.starts_.chosen.sum() == 1
        assert last_checkpoint(folder) == Path(a.checkpoint_)
        if done == 1: assert same_weights(a, first) and a.n_iter_ == first.n_iter_ < len(a.history_) and (a.labels_ == first.labels_).all()
        b = several(method).fit(x, resume=a.checkpoint_)
        assert same_weights(b, whole) and history(b).equals(history(whole)) and table(b).equals(table(whole)) and b.interrupted_ is False


def killed(folder):
    "In another process: DEC on digits, killed in the second start"
    import pytorch_lightning as pl
    class Kill(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if module.fit.place == "start 2/3" and module.phase.name == "refine": os._exit(9)
    digit_starts(checkpoint_dir=folder, trainer_options=dict(callbacks=[Kill()])).fit(load_dataset("digits").train)


def digit_starts(**more): return several(**dict(n_clusters=10, image_size=None, hidden=(64,), batch_size=256, epochs=2, pretrain_epochs=2, augment="none", n_init=2) | more)


def test_a_killed_process_goes_on_to_the_same_model(tmp_path):
    status, said = apart(killed, tmp_path / "c", log=tmp_path / "log")
    assert status == 9, said
    last, digits = last_checkpoint(tmp_path / "c"), load_dataset("digits").train
    assert last.parent.name == "start-2" and (tmp_path / "c/start-1/last.ckpt").exists()
    trained = []
    import pytorch_lightning as pl
    class Count(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args): trained.append(module.fit.place)
    a = digit_starts(random_state=None, trainer_options=dict(callbacks=[Count()])).fit(digits, resume=last)
    whole = digit_starts().fit(digits)
    assert same_weights(a, whole) and table(a).equals(table(whole)) and history(a).equals(history(whole)) and a.random_state_ == 0
    assert "start 1/3" not in trained and set(trained) == {"start 2/3", "start 3/3"}


def test_what_is_not_resumed(tmp_path):
    x = images(60)
    a, b = several(checkpoint_dir=tmp_path / "a").fit(x), several(n_starts=1, checkpoint_dir=tmp_path / "b").fit(x)
    assert a.checkpoint_ == str(tmp_path / "a/start-3/last.ckpt")
    for more, says in [(dict(lr=.5), "lr .saved: 0.001, given: 0.5"), (dict(random_state=1), "random_state .saved: 0, given: 1"), (dict(n_starts=4), "n_starts .saved: 3, given: 4"), (dict(n_starts=1), "n_starts .saved: 3, given: 1")]:
        with pytest.raises(ValueError, match=f"belongs to another training: .*{says}"): several(**more).fit(x, resume=a.checkpoint_)
    with pytest.raises(ValueError, match="n_starts .saved: 1, given: 3"): several().fit(x, resume=b.checkpoint_)
    with pytest.raises(ValueError, match="images .their check sum"): several().fit(images(60, seed=3), resume=a.checkpoint_)
    (tmp_path / "a/start-1/last.ckpt").unlink()           # it is trained again
    assert same_weights(several().fit(x, resume=a.checkpoint_), a)
    os.replace(tmp_path / "a/start-2/last.ckpt", tmp_path / "a/start-1/last.ckpt")
    with pytest.raises(ValueError, match="start .saved: 2, given: 1"): several().fit(x, resume=a.checkpoint_)


def test_checkpoints_of_an_earlier_training_in_the_folder_do_not_matter(tmp_path):
    x = images(60)
    several(lr=.01, checkpoint_dir=tmp_path).fit(x)
    with pytest.warns(UserWarning, match="interrupted"): a = several(checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(23)])).fit(x)
    assert same_weights(several().fit(x, resume=a.checkpoint_), several().fit(x))


def test_the_latest_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None and last_checkpoint(tmp_path) is None
    (tmp_path / "last.ckpt").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    for i in (2, 10):
        (tmp_path / f"start-{i}").mkdir()
        (tmp_path / f"start-{i}/last.ckpt").touch()
    (tmp_path / "start-11").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "start-10/last.ckpt"


def breaks(monkeypatch, method, *numbers):
    "The starts whose first main loss is infinite"
    from medstrat.training.registry import get_method
    cls = get_method(method).method
    real, seeds = cls.loss, [seed_of(0, i) for i in numbers]
    def loss(self, batch, at):
        out = real(self, batch, at)
        return out | dict(loss=out["loss"] * math.inf) if self.s.random_state in seeds and self.training else out
    monkeypatch.setattr(cls, "loss", loss)


@pytest.mark.parametrize("method", ["DEC", "VaDE"])
@pytest.mark.parametrize("broken", [(1,), (2,), (2, 3)])
def test_a_start_that_breaks_costs_the_others_nothing(method, broken, monkeypatch):
    x = images(60)
    left = [i for i in (1, 2, 3) if i not in broken]
    breaks(monkeypatch, method, *broken)
    with pytest.warns(UserWarning, match=rf"start {broken[0]}/3 failed and is left out: .*the loss became|term .* of the loss became inf"): a = several(method).fit(x)
    chosen = int(a.starts_.start[a.starts_.chosen].iloc[0])
    assert chosen in left and a.interrupted_ is False and a.starts_.trouble.str.startswith("NonFiniteLoss: ").tolist() == [i in broken for i in (1, 2, 3)]
    assert a.starts_.confidence.isna().tolist() == [i in broken for i in (1, 2, 3)]
    assert same_weights(a, several(method, n_starts=1, random_state=seed_of(0, chosen)).fit(x))


def test_only_where_all_break_it_is_an_error(monkeypatch):
    breaks(monkeypatch, "DEC", 1, 2)
    a = several(n_starts=2)
    with pytest.warns(UserWarning, match="start ./2 failed"), pytest.raises(NonFiniteLoss, match="phase 'refine', epoch 1"): a.fit(images(60))
    b = several(n_starts=1)
    with pytest.raises(NonFiniteLoss): b.fit(images(60))
    assert same_weights(a, b) and a.interrupted_ is True and len(a.starts_) == 2 and a.starts_.chosen.tolist() == [True, False]


def test_broken_then_stopped(monkeypatch):
    breaks(monkeypatch, "DEC", 1)
    with pytest.warns(UserWarning, match="of start 2/3; what has been learned so far is kept"): a = several(trainer_options=dict(callbacks=[interrupt(9)])).fit(images(60))
    assert a.starts_.chosen.tolist() == [False, True] and a.starts_.trouble[1] == "interrupted" and a.interrupted_ is True


# ---- kept with the model and with the run

def test_saved_with_the_model(tmp_path):
    with pytest.MonkeyPatch.context() as m:
        breaks(m, "DEC", 2)
        with pytest.warns(UserWarning, match="failed"): a = several().fit(images(60))
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    pd.testing.assert_frame_equal(a.starts_, b.starts_)
    assert same_weights(a, b) and b.n_iter_ == a.n_iter_ and b.random_state_ == 0 and b.n_starts == 3
    several(n_starts=1).fit(images(60)).save(tmp_path / "one")
    assert load_model(tmp_path / "one").starts_ is None and read_header(tmp_path / "one")["starts"] is None


def test_in_the_record_of_a_run(stripes, tmp_path):
    from medstrat.runs.records import finish, start_run
    small = dict(n_clusters=3, network="mlp", hidden=[16], latent_dim=4, epochs=1, pretrain_epochs=1, verbose=False)
    record = json.loads((finish(start_run("DEC", stripes, 0, out=tmp_path, n_starts=3, **small)) / "run.json").read_text())
    assert [s["start"] for s in record["starts"]] == [1, 2, 3] and sum(s["chosen"] for s in record["starts"]) == 1 and record["epochs"] == 2
    assert "the best by agreement" in record["provenance"]["n_starts"]
    alone = json.loads((finish(start_run("DEC", stripes, 0, out=tmp_path, **small)) / "run.json").read_text())
    assert alone["starts"] == [] and alone["settings"]["n_starts"] == 1
