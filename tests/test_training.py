"The estimator and its engine beyond every method's contract: kinds of input, numbers of images, epochs and rates, interruption, faults, files, a user's own networks."
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import images, interrupt, same_weights, tiny
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline
from torch import nn

from medstrat.data.images import ImageSet
from medstrat.training.fitting import Fit
from medstrat.training.phases import NonFiniteLoss
from medstrat.training.saving import load_model, read_tensors, write_tensors


def history(a): return a.history_.drop(columns="seconds")
def noise(n=30): return np.random.default_rng(1).integers(0, 256, (n, 16, 16), dtype=np.uint8)   # as validation images: learning stripes makes them worse sooner or later


# ---- among scikit-learn's tools

def test_pipeline(X):
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    first = make_pipeline(FunctionTransformer(lambda x: 255 - x), tiny("AE + k-means"))
    assert (first.fit_predict(X) == tiny("AE + k-means").fit_predict(255 - X)).all()
    last = make_pipeline(tiny("VAE + k-means"), StandardScaler(), KMeans(2, n_init=2, random_state=0)).fit(X)
    assert set(last.predict(X)) == {0, 1}


def test_grid_of_parameters(X):
    "What GridSearchCV does: clone, set, fit, score – with numpy's numbers"
    base, scores = tiny("VAE + k-means", epochs=1), []
    for point in ParameterGrid(dict(n_clusters=np.arange(2, 4), lr=np.array([1e-3, 1e-2]))):
        a = clone(base).set_params(**point).fit(X)
        assert a.n_clusters_ == point["n_clusters"]
        scores.append(a.history_.reconstruction.iloc[-1])
    assert len(set(scores)) >= 2


# ---- kinds of input

class Items(torch.utils.data.Dataset):
    def __init__(self, x, make): self.x, self.make = x, make
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.make(self.x[i])


def kinds(x):
    "The same images (N,H,W,C) in all the ways one may hold them"
    chw = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    t = torch.from_numpy(chw)
    out = dict(nhwc=x, nchw=chw, tensor=t, tensor_nhwc=torch.from_numpy(x), set=ImageSet(x, {"label": np.arange(len(x)) % 2}, target="label"),
               float64=x / 255, float32=(x / np.float32(255)), float_tensor=t / 255, list=list(x),
               items=Items(t, lambda i: i), pairs=Items(t, lambda i: (i, 0)), monai=Items(t, lambda i: {"image": i / 255, "label": 1}))
    return out | (dict(nhw=x[..., 0], tensor_nhw=torch.from_numpy(x[..., 0])) if x.shape[-1] == 1 else {})


@pytest.mark.parametrize("method", ["VAESim", "PCA + k-means"])
@pytest.mark.parametrize("channels", [1, 3])
def test_kinds_of_input(method, channels):
    x = images(channels=channels)
    a = tiny(method, epochs=1).fit(x)
    for kind, given in kinds(x).items():
        b = tiny(method, epochs=1).fit(given)
        assert (b.labels_ == a.labels_).all() and (a.predict(given) == a.labels_).all(), kind
        np.testing.assert_allclose(b.transform(x), a.transform(given), atol=1e-4, err_msg=kind)


def test_layouts_in_memory(tmp_path):
    x = images()
    np.save(tmp_path / "x.npy", x)
    readonly = x.copy(); readonly.flags.writeable = False
    a = tiny(epochs=1).fit(x)
    for other in (np.load(tmp_path / "x.npy", mmap_mode="r"), readonly, np.asfortranarray(x), np.concatenate([x, x])[::1][:60], x[::-1][::-1]):
        assert (tiny(epochs=1).fit(other).labels_ == a.labels_).all() and (a.predict(other) == a.labels_).all()


@pytest.mark.filterwarnings("error")
def test_arrays_that_cannot_be_written_give_no_warning(tmp_path, fitted):
    np.save(tmp_path / "x.npy", images())
    torch.set_warn_always(True)       # else it warns once in the life of the process
    try: fitted["VAESim"].predict(np.load(tmp_path / "x.npy", mmap_mode="r"))
    finally: torch.set_warn_always(False)


@pytest.mark.parametrize("network", ["conv", "resize", "mlp"])
@pytest.mark.parametrize("side, width, channels", [(16, 12, 1), (9, 13, 3), (8, 8, 1), (8, 8, 3), (30, 28, 1)])
def test_sizes(network, side, width, channels):
    x = images(30, side, channels=channels, width=width)
    a = tiny("VAE + k-means", image_size=None, network=network, epochs=1).fit(x)
    work = (32, 32) if network != "mlp" and min(side, width) < 28 else (side, width)    # METHODS: below 28 are resized to 32 for conv
    assert a.image_shape_ == (*work, channels) and a.reconstruct(x).shape == (30, *work, channels)
    assert (a.predict(x) == a.labels_).all()
    assert a.sample(2).shape == (2, *work, channels)


def test_image_size_brings_all_images_to_one_size():
    a = tiny(image_size=12, epochs=1).fit(images(30, 16))
    assert a.image_shape_ == (12, 12, 1) and a.predict(images(5, 40, width=20)).shape == (5,)


def test_another_shape_is_refused(X):
    a = tiny("VAE + k-means", image_size=None, network="mlp", epochs=1).fit(X)
    with pytest.raises(ValueError, match=r"fitted on images of shape .*\(16, 16, 1\).*\(8, 8, 1\).*image_size"): a.predict(images(5, 8))
    with pytest.raises(ValueError, match="2-D"): a.predict(X[0, ..., 0])
    for other in (images(20, channels=3), images(20, 10)):
        with pytest.raises(ValueError, match=r"\(16, 16, 1\)"): clone(a).fit(X, validation=other)


# ---- repeatability


def test_kinds_of_random_state(X):
    a = tiny(random_state=None).fit(X)
    b = tiny(random_state=None).fit(X)
    assert a.random_state_ != b.random_state_ and same_weights(tiny(random_state=a.random_state_).fit(X), a)
    c, d = (tiny(random_state=np.random.RandomState(5)).fit(X) for _ in range(2))
    assert same_weights(c, d)
    assert same_weights(tiny(random_state=np.int64(3)).fit(X), tiny(random_state=3).fit(X))


@pytest.mark.parametrize("bad", ["abc", 1.5, [1, 2]])
def test_bad_random_state(bad, X):
    with pytest.raises((ValueError, TypeError), match="random_state"): tiny(random_state=bad).fit(X)


def test_what_is_not_ours_is_left_alone(X):
    def state(): return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
                         torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT))
    before, floats = state(), (X / 255).astype(np.float32)
    tiny().fit(floats)
    assert state() == before and (floats == (X / 255).astype(np.float32)).all()


# ---- engine

def test_history(X):
    a = tiny("VAESim", epochs=3).fit(X, validation=images(20, seed=1))
    h = a.history_
    assert len(h) == a.n_iter_ == 3 and list(h.epoch) == [1, 2, 3] and {"phase", "loss", "reconstruction", "kl", "val_loss", "val_reconstruction", "lr", "seconds"} <= set(h)
    np.testing.assert_allclose(h.loss, h.reconstruction + a.settings_.beta * h.kl, rtol=1e-4)
    assert "val_loss" not in tiny("VAESim").fit(X).history_
    assert a.interrupted_ is False


def test_history_is_the_mean_over_images(X):
    "With a frozen network (lr → 0) and no noise, the epoch's loss is the loss of all images, however they are cut"
    def loss(batch_size): return tiny("AE + k-means", norm="none", lr=1e-30, epochs=1, batch_size=batch_size).fit(X[:50]).history_.loss[0]
    assert loss(7) == pytest.approx(loss(50), rel=1e-4)


def test_training_learns(X):
    h = tiny("AE + k-means", epochs=15, lr=1e-2).fit(X).history_.loss
    assert h.iloc[-1] < 0.6 * h.iloc[0]


def test_learning_rates(X):
    "At an epoch's end; a drop comes after so many epochs"
    rates = {schedule: tiny(lr=1e-3, lr_schedule=schedule, lr_drop_every=2, epochs=10).fit(X).history_.lr for schedule in ("constant", "cosine", "step")}
    np.testing.assert_allclose(rates["constant"], 1e-3)
    assert (rates["cosine"].diff().dropna() < 0).all() and rates["cosine"].iloc[-1] < 5e-5
    np.testing.assert_allclose(rates["step"], 1e-3 * 0.2 ** (np.arange(1, 11) // 2))


def test_early_stopping_keeps_the_best(X):
    a = tiny("AE + k-means", lr=0.02, lr_schedule="constant", epochs=40, patience=2).fit(X, validation=noise())
    best = int(a.history_.val_loss.argmin())
    assert len(a.history_) < 40 and len(a.history_) == best + 1 + 2 and a.interrupted_ is False
    assert same_weights(a, clone(a).set_params(epochs=best + 1, patience=None).fit(X))
    last = clone(a).set_params(epochs=6, patience=None)
    assert same_weights(clone(last).fit(X, validation=noise()), last.fit(X))     # without patience, the last ones


def test_precisions(X):
    exact = tiny(precision="32-true").fit(X)
    half = tiny(precision="bf16-mixed").fit(X)
    assert not same_weights(exact, half) and all(p.dtype == torch.float32 for p in half.module_.parameters())
    assert half.transform(X).dtype == half.predict_proba(X).dtype == half.prototypes().dtype == np.float32
    np.testing.assert_allclose(half.history_.loss, exact.history_.loss, rtol=0.05)
    assert (tiny(precision="auto").fit(X).labels_ >= 0).all()


@pytest.mark.parametrize("precision", ["fp8", "64-true", "bf16-true", "16-true"])
def test_other_precisions_work_or_are_refused(precision, X):
    try: a = tiny(precision=precision, epochs=1).fit(X)
    except ValueError as e: assert "precision" in str(e).lower() or precision in str(e)
    else: assert a.transform(X).dtype == np.float32


def test_bad_accelerator(X):
    with pytest.raises(Exception, match="quantum"): tiny(accelerator="quantum").fit(X)


@pytest.mark.parametrize("network", ["conv", "mlp"])
def test_memory_layout_does_not_matter(network, X):
    a, b = (tiny(network=network, channels_last=c).fit(X) for c in (True, False))
    np.testing.assert_allclose(a.transform(X), b.transform(X), atol=2e-2, rtol=1e-2)
    np.testing.assert_allclose(a.history_.loss, b.history_.loss, rtol=1e-3)
    assert network == "mlp" or a.module_.encoder.body[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bad, says", [
    (dict(n_clusters=0), "n_clusters=0"), (dict(n_clusters="many"), "n_clusters='many'"), (dict(channels=[]), "channels"), (dict(channels=(4, 0)), "channels"), (dict(channels=8), "channels=8"),
    (dict(network="convolution"), "network"), (dict(image_size=1), "2"), (dict(patience=0), "patience=0"), (dict(lr=-1), "lr=-1"), (dict(lr=float("inf")), "lr=inf"), (dict(beta=float("nan")), "beta=nan"),
    (dict(num_workers=-1), "num_workers=-1"), (dict(batch_weight=1.5), "batch_weight=1.5"), (dict(tau_end=0.0), "tau_end=0.0"),
], ids=str)     # those that every method has: tests/test_contract.py
def test_values_are_checked_before_anything_is_trained(bad, says, X, monkeypatch):
    monkeypatch.setattr(Fit, "follow", lambda *a: pytest.fail("trained"))
    with pytest.raises(ValueError) as e: tiny(**bad).fit(X)
    assert says in str(e.value)


# ---- interruption

def test_fit_in_a_thread(X, fitted):
    "Only the main thread may set signal handlers"
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as pool: assert same_weights(pool.submit(lambda: tiny().fit(X)).result(), fitted["VAESim"])


def test_two_ctrl_c_raise_keyboard_interrupt(tmp_path):
    "The second Ctrl-C means it: the program ends as others do, by KeyboardInterrupt"
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import pytorch_lightning as pl
from conftest import images, tiny
class Twice(pl.Callback):
    def on_train_batch_end(self, *a):
        for _ in range(2): signal.raise_signal(signal.SIGINT)   # to this thread: of two that wait for another thread, one would be lost
try: tiny(epochs=50, trainer_options=dict(callbacks=[Twice()])).fit(images())
except KeyboardInterrupt: print("KeyboardInterrupt")
except BaseException as e: print(repr(e))
"""
    done = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__)], capture_output=True, text=True)
    assert done.stdout.split() == ["KeyboardInterrupt"], done.stdout + done.stderr[-2000:]


RESUMED = {"VAESim, printed": dict(preset="paper", n_clusters=3, batch_size=20), "VAESim, whole set": dict(update="set", reseed_after=1, kmeans_at=0.5, lr_schedule="cosine"),
           "AE + k-means": dict(lr_schedule="cosine"), "GMVAE": dict(floor=0.5)}


@pytest.mark.filterwarnings("ignore:.*clusters are empty:UserWarning")
@pytest.mark.parametrize("stop", [4, 6, 11])     # in the second epoch, at its last batch, in the fourth
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_training_equals_the_uninterrupted_one(case, stop, X, tmp_path):
    method, more = case.partition(",")[0], dict(epochs=5, **RESUMED[case])
    validation = images(20, seed=1)
    whole = tiny(method, **more).fit(X, validation=validation)
    with pytest.warns(UserWarning, match="interrupted"):
        tiny(method, **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(stop)])).fit(X, validation=validation)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    a = tiny(method, **more).fit(X, validation=validation, resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all() and a.interrupted_ is False
    pd.testing.assert_frame_equal(history(a), history(whole))


@pytest.fixture
def checkpoint(X, tmp_path):
    tiny(checkpoint_dir=tmp_path / "c").fit(X)
    return tmp_path / "c" / "last.ckpt"


def test_resume_accepts_text_and_early_stopping(X, tmp_path):
    more = dict(lr=0.02, epochs=40, patience=3)
    whole = tiny("AE + k-means", **more).fit(X, validation=noise())
    with pytest.warns(UserWarning): tiny("AE + k-means", **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(3 * len(whole.history_) - 4)])).fit(X, validation=noise())
    assert same_weights(tiny("AE + k-means", **more).fit(X, validation=noise(), resume=str(tmp_path / "last.ckpt")), whole)


def test_resume_with_images_of_another_size_is_refused(checkpoint):
    with pytest.raises(ValueError, match="another training: size of an image.*image_size") as e: tiny(image_size=None).fit(images(side=12), resume=checkpoint)
    assert len(str(e.value)) < 600


def test_resume_from_what_is_no_checkpoint(X, checkpoint, tmp_path, fitted):
    with pytest.raises(FileNotFoundError): tiny().fit(X, resume=tmp_path / "nowhere.ckpt")
    torch.save(dict(a=1), tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / "foreign.ckpt")
    torch.save(torch.ones(2), tmp_path / "tensor.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / "tensor.ckpt")
    whole = checkpoint.read_bytes()
    for name, content in dict(cut=whole[: len(whole) // 2], empty=b"", text=b"hello").items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / name)
    fitted["VAESim"].save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / "model.safetensors")


def test_a_checkpoint_runs_no_code(X, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "evil"),)
    torch.save(dict(state, evil=Evil()), checkpoint)
    with pytest.raises((ValueError, pickle.UnpicklingError)): tiny().fit(X, resume=checkpoint)
    assert not (tmp_path / "evil").exists()


# ---- losses that explode

class Poison(nn.Module):
    "A decoder whose output becomes NaN (or infinite) after some batches"
    def __init__(self, after, value):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.after, self.value = nn.Linear(4, 256), after, value
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, z):
        if self.training: self.seen += 1
        return self.linear(z).unflatten(1, (1, 16, 16)) * (self.value if self.training and self.seen > self.after else 1)


@pytest.mark.parametrize("after, epochs_done", [(0, 0), (4, 1), (6, 2)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value, after, epochs_done, X):
    own = Poison(after, value)
    a = tiny("VAE + k-means", decoder=own, epochs=4, likelihood="bernoulli")
    with pytest.raises(NonFiniteLoss, match=rf"'reconstruction'.*(nan|inf).*phase 'train', epoch {epochs_done + 1}, step {after + 1}"): a.fit(X)
    assert isinstance(NonFiniteLoss(), FloatingPointError) and a.interrupted_ is True and len(a.history_) == a.n_iter_ == epochs_done
    assert all(v.isfinite().all() for v in a.module_.state_dict().values())
    assert np.isfinite(a.transform(X)).all() and (a.predict(X) == a.labels_).all()
    clean = tiny("VAE + k-means", decoder=Poison(10**6, value), epochs=4, likelihood="bernoulli")
    rows = clean.fit(X).history_
    if epochs_done: pd.testing.assert_series_equal(a.history_.loss, rows.loss[:epochs_done])     # the epochs before were not touched


def test_the_term_that_failed_is_named(X):
    with pytest.raises(NonFiniteLoss, match="'kl'"): tiny("VAE + k-means", prior_std=1e-30).fit(X)


def test_weights_that_explode_in_the_last_step_are_noticed(X):
    "They are not `good`, though the loss before that step was finite"
    a = tiny("AE + k-means", lr=1e30, batch_size=60, epochs=1)
    with pytest.raises(NonFiniteLoss, match="learning rate"): a.fit(X)
    assert all(v.isfinite().all() for v in a.module_.state_dict().values()) and np.isfinite(a.transform(X)).all()


# ---- files


@pytest.mark.parametrize("more", [dict(random_state=np.int64(4)), dict(random_state=np.random.RandomState(1)), dict(random_state=None), dict(n_clusters=np.int64(4)),
                                  dict(lr=np.float32(1e-3)), dict(channels=[4, 8]), dict(network="mlp"), dict(likelihood="gaussian"), dict(image_size=None), dict(norm="none")])
def test_save_and_load_with_settings_of_any_type(more, X, tmp_path):
    a = tiny(**dict(dict(epochs=1), **more), checkpoint_dir=tmp_path / "c").fit(X)
    a.save(tmp_path / "m")
    assert (load_model(tmp_path / "m").transform(X) == a.transform(X)).all()


def test_save_and_load_after_the_elbow(tmp_path):
    x = images(80)
    a = tiny("VAE + k-means", n_clusters="elbow", epochs=1).fit(x)
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert b.n_clusters_ == a.n_clusters_ == len(b.cluster_centers_) > 1 and (b.predict(x) == a.labels_).all()


def _rewrite(path, change):
    "Change the header of a saved model"
    header, tensors = read_tensors(path)
    change(header, tensors)
    write_tensors(path, tensors, header)


@pytest.mark.parametrize("name, change, says", [
    ("future", lambda h, t: h.update(format=99, medstrat="7.0"), "format 99.*medstrat 7.0; install"),
    ("unknown method", lambda h, t: h.update(method="VAESimm"), "VAESimm.*VAESim"),
    ("another size", lambda h, t: h.update(image_shape=[20, 20, 1]), "do not fit"),
    ("missing weight", lambda h, t: t.pop("net.bank.Q"), "(?s)do not fit.*bank.Q"),
    ("surplus weight", lambda h, t: t.update({"net.extra": torch.zeros(1)}), "(?s)do not fit.*extra"),
    ("no labels", lambda h, t: t.pop("labels_"), "labels_"),
    ("header without format", lambda h, t: h.pop("format"), "not a model saved by medstrat"),
    ("unknown parameter", lambda h, t: h["settings"].update(colour="blue"), "colour"),
])
def test_damaged_headers(name, change, says, fitted, tmp_path):
    path = tmp_path / "m"
    fitted["VAESim"].save(path)
    _rewrite(path, change)
    with pytest.raises(ValueError, match=says): load_model(path)


def test_damaged_files(fitted, tmp_path):
    from safetensors.torch import save_file
    path = tmp_path / "m"
    fitted["VAESim"].save(path)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:20], whole[:3], b"", b"hello world, this is not a model"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    save_file({"a": torch.ones(2)}, path, metadata=dict(medstrat="no json"))
    with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    with pytest.raises(FileNotFoundError, match="no file"): load_model(tmp_path / "nowhere")
    with pytest.raises((ValueError, IsADirectoryError)): load_model(tmp_path)


def test_a_failed_save_leaves_the_old_file(fitted, tmp_path, monkeypatch):
    path = tmp_path / "m"
    fitted["VAESim"].save(path)
    before = path.read_bytes()
    def full(self, data):
        with self.open("wb") as f: f.write(data[:100])
        raise OSError("No space left on device")
    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError): fitted["VAE + k-means"].save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m"]


# ---- a user's own networks

class OwnEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, stride=4), nn.BatchNorm2d(3), nn.ReLU())
    def forward(self, x): return self.layers(x)


def own_decoder(d, side=16): return nn.Sequential(nn.Linear(d, side * side), nn.Unflatten(1, (1, side, side)))


@pytest.mark.parametrize("method, d", [("VAESim", 4 + 3), ("VAE + k-means", 4), ("AE + k-means", 4), ("DEC", 4), ("DVC", 4)])
def test_own_networks(method, d, X, tmp_path):
    encoder, decoder = OwnEncoder(), own_decoder(d)
    before = [p.clone() for m in (encoder, decoder) for p in m.parameters()]
    a = tiny(method, encoder=encoder, decoder=decoder).fit(X)
    assert all(p.equal(q) for p, q in zip([p for m in (encoder, decoder) for p in m.parameters()], before, strict=True)), "the user's own modules were trained in place"
    assert a.reconstruct(X).shape == (60, 16, 16, 1)
    assert same_weights(clone(a).fit(X), a)
    a.save(tmp_path / "m")
    with pytest.raises(ValueError, match="networks of your own: give decoder=…, encoder=…"): load_model(tmp_path / "m")
    b = load_model(tmp_path / "m", encoder=OwnEncoder(), decoder=own_decoder(d))
    assert (b.transform(X) == a.transform(X)).all() and (b.reconstruct(X) == a.reconstruct(X)).all()
    with pytest.raises(ValueError, match="do not fit"): load_model(tmp_path / "m", encoder=nn.Flatten(), decoder=own_decoder(d))


def test_what_a_user_froze_stays_frozen(X):
    "A backbone trained elsewhere is often given with requires_grad_(False)"
    encoder = OwnEncoder().requires_grad_(False)
    a = tiny("AE + k-means", encoder=encoder, lr=0.1).fit(X)
    assert a.module_.encoder.body.layers[0].weight.equal(encoder.layers[0].weight)


def test_only_one_own_network(X):
    assert tiny("AE + k-means", encoder=OwnEncoder()).fit(X).reconstruct(X).shape == (60, 16, 16, 1)
    assert tiny("AE + k-means", decoder=own_decoder(4)).fit(X).reconstruct(X).shape == (60, 16, 16, 1)


def test_own_decoder_of_another_shape_is_refused(X):
    with pytest.raises(ValueError, match=r"decoder returns images of shape .*\(1, 8, 8\), needed is \(1, 16, 16\)"): tiny("AE + k-means", decoder=own_decoder(4, 8)).fit(X)
    with pytest.raises(ValueError, match="decoder.*7|7.*decoder"): tiny("VAESim", decoder=own_decoder(4)).fit(X)     # takes z alone, but is given z and c


def test_own_network_that_is_none(X):
    with pytest.raises((TypeError, ValueError), match="encoder"): tiny(encoder="resnet").fit(X)


def test_progress_bar_can_be_silenced(X, capfd):
    tiny(epochs=1).fit(X)
    assert capfd.readouterr() == ("", "")
    tiny(epochs=1, verbose=True).fit(X)
    err = capfd.readouterr().err
    assert "train" in err and "loss" in err


def test_trainer_options_reach_the_trainer(X):
    import pytorch_lightning as pl
    class Spy(pl.Callback):
        def on_train_start(self, trainer, module): self.value = trainer.gradient_clip_val
    spy = Spy()
    options = dict(gradient_clip_val=0.25, callbacks=[spy])
    tiny(epochs=1, trainer_options=options).fit(X)
    assert spy.value == 0.25 and options["callbacks"] == [spy]
    with pytest.raises(TypeError, match="gradient_clip"): tiny(epochs=1, trainer_options=dict(gradient_clip=1)).fit(X)
