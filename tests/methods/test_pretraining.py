"An autoencoder first: end to end or layer by layer, handed on from model to model, and kept in a folder."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import (
    ENV,
    changed_parts,
    history,
    images,
    interrupt,
    mlp,
    net_input,
    phase,
    same_weights,
    spied,
    tiny,
    weights,
)
from sklearn.base import clone
from torch import nn

from medstrat.methods import pretraining
from medstrat.methods.pretraining import distorted, layer_loss, layer_pairs, load_autoencoder
from medstrat.training.method import Batch, build
from medstrat.training.phases import Moment, NonFiniteLoss
from medstrat.training.presets import resolve
from medstrat.training.registry import get_method
from medstrat.training.saving import load_model
from medstrat.vae.networks import activation_layer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


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


def test_more_clusters_than_distinct_images():
    with pytest.raises(ValueError, match="n_clusters=5, but only 4 of the 60 images are distinct. Choose n_clusters ≤ 4"): mlp(n_clusters=5).fit(np.repeat(images(4), 15, 0))


def test_float_images_are_told_apart():
    x = np.full((6, 16, 16, 1), 0.5, np.float32)
    x[::2] += 1e-6
    with pytest.raises(ValueError, match="only 2 of the 6 images are distinct"): mlp(n_clusters=3).fit(x)


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


def test_two_processes_that_want_one_pretraining_do_it_once(tmp_path):
    "Both wait until the other is there as well; the second finds what the first has made"
    code = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import four_kinds, mlp
from medstrat.training.fitting import Fit
here, train, me = Path({folder!r}), Fit.train, sys.argv[1]
Fit.train = lambda self, phase, resume=None: (print(phase.name), train(self, phase, resume))
X = four_kinds()[0]
(here / me).touch()
while len(list(here.glob("?"))) < 2: time.sleep(.05)
mlp(cache_dir=here / "kept", pretrain_epochs=20, epochs=1).fit(X)
""".format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    both = [subprocess.Popen([sys.executable, "-c", code, me], env=ENV, stdout=subprocess.PIPE, text=True) for me in "ab"]
    said = [p.communicate()[0].split() for p in both]
    assert [p.returncode for p in both] == [0, 0] and sorted(names.count("pretrain") for names in said) == [0, 1], said
    assert [p.suffix for p in (tmp_path / "kept").iterdir()] == [".safetensors"], "no lock is left"


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


def test_a_folder_that_cannot_be_written(X, tmp_path, monkeypatch):
    "A warning, and the training goes on as without it"
    def full(*args): raise OSError("no space left on device")
    monkeypatch.setattr(pretraining, "write_tensors", full)
    small = lambda **more: tiny("DEC", network="mlp", n_init=2, epochs=1, **more)
    with pytest.warns(UserWarning, match="could not be kept in .*no space left.*the training goes on"): a = small(cache_dir=tmp_path).fit(X)
    assert same_weights(a, small().fit(X)) and not list(tmp_path.iterdir())
