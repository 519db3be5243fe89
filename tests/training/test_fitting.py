"A fit: kinds and sizes of images, seeds, values that are refused in time, interrupted trainings that end as if they had not been."

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import images, interrupt, same_weights, tiny
from sklearn.base import clone

from medstrat.data.arrays import resize
from medstrat.data.cohort.decoding import TINT
from medstrat.data.hashing import seal
from medstrat.data.images import ImageSet
from medstrat.data.sources import forget_notices
from medstrat.training.batches import ImageBatches
from medstrat.training.checkpoints import read_checkpoint
from medstrat.training.fitting import (
    CommonParameters,
    Fit,
    fingerprint,
    in_channels,
    set_name,
    settle_seed,
    sized,
    take_condition,
    whole_seed,
)
from medstrat.training.method import Network
from medstrat.training.parameters import Settings


def history(a): return a.history_.drop(columns="seconds")
def noise(n=30): return np.random.default_rng(1).integers(0, 256, (n, 16, 16), dtype=np.uint8)   # as validation images: learning stripes makes them worse sooner or later


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


@pytest.mark.filterwarnings("error", "ignore::medstrat.training.signs.DoubtfulFit")
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


def test_another_shape_is_resized_with_a_notice_or_refused(X):
    a = tiny("VAE + k-means", image_size=None, network="mlp", epochs=1).fit(X)
    forget_notices()
    with pytest.warns(UserWarning, match="8×8 pixels are resized to 16×16, the size that VAEKMeans was fitted on") as said:
        got = [a.predict(images(5, 8)) for _ in range(2)]
    assert len(said) == 1 and (got[0] == a.predict(resize(images(5, 8), 16))).all()
    with pytest.raises(ValueError, match="2-D"): a.predict(X[0, ..., 0])
    with pytest.raises(ValueError, match=r"\(16, 16, 1\), but got \(16, 16, 3\).*gray was learned"): clone(a).fit(X, validation=images(20, channels=3))
    oblong = tiny("VAE + k-means", image_size=None, network="mlp", epochs=1).fit(images(20, 16, width=12))
    with pytest.raises(ValueError, match=r"fitted on images of shape .*\(16, 12, 1\).*\(16, 16, 1\).*image_size"): oblong.predict(X)


@pytest.mark.filterwarnings("error", "ignore::medstrat.training.signs.DoubtfulFit")
def test_where_a_size_was_asked_for_nothing_is_said():
    forget_notices()
    a = tiny(image_size=12, epochs=1).fit(images(30, 16))
    a.predict(images(5, 16))
    a.predict(images(5, 40))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_gray_stored_as_colour_is_gray_and_colour_is_refused(X, kind):
    of_kind = lambda x: x.astype(np.uint8) if kind == np.uint8 else (x / 255).astype(np.float32)
    a = tiny("VAE + k-means", image_size=None, network="mlp", epochs=1).fit(X)
    same = np.repeat(X[:6].astype(int), 3, -1)
    forget_notices()
    with pytest.warns(UserWarning, match="three channels are read as gray"): assert np.allclose(a.transform(of_kind(same)), a.transform(X[:6]), atol=1e-5)
    jpeg = np.clip(same + np.random.default_rng(0).integers(-TINT // 2, TINT // 2 + 1, same.shape), 0, 255)
    assert np.abs(in_channels(of_kind(jpeg), 1) * (255 if kind == np.float32 else 1.) - X[:6]).max() <= TINT / 2 + .51
    tinted = same.copy()
    tinted[-1, 3, 4] = [0, 0, TINT + 1]      # one pixel of one image
    with pytest.raises(ValueError, match="in colour, and gray was learned"): a.transform(of_kind(tinted))


def test_gray_becomes_equal_channels_where_colour_was_learned():
    x = images(30, channels=3)
    a = tiny("VAE + k-means", image_size=None, network="mlp", epochs=1).fit(x)
    forget_notices()
    with pytest.warns(UserWarning, match="gray ones become three equal channels"):
        assert (a.transform(x[..., :1]) == a.transform(np.repeat(x[..., :1], 3, -1))).all()


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


@pytest.mark.parametrize("bad, says", [
    (dict(n_clusters=0), "n_clusters=0"), (dict(n_clusters="many"), "n_clusters='many'"), (dict(channels=[]), "channels"), (dict(channels=(4, 0)), "channels"), (dict(channels=8), "channels=8"),
    (dict(network="convolution"), "network"), (dict(image_size=1), "2"), (dict(patience=0), "patience=0"), (dict(lr=-1), "lr=-1"), (dict(lr=float("inf")), "lr=inf"), (dict(beta=float("nan")), "beta=nan"),
    (dict(num_workers=-1), "num_workers=-1"), (dict(batch_weight=1.5), "batch_weight=1.5"), (dict(tau_end=0.0), "tau_end=0.0"),
], ids=str)     # those that every method has: tests/test_contract.py
def test_values_are_checked_before_anything_is_trained(bad, says, X, monkeypatch):
    monkeypatch.setattr(Fit, "follow", lambda *a: pytest.fail("trained"))
    with pytest.raises(ValueError) as e: tiny(**bad).fit(X)
    assert says in str(e.value)


RESUMED = {"VAESim, printed": dict(preset="paper", n_clusters=3, batch_size=20), "VAESim, whole set": dict(update="set", reseed_after=1, kmeans_at=0.5, lr_schedule="cosine"),
           "AE + k-means": dict(lr_schedule="cosine"), "GMVAE": dict(floor=0.5)}


@pytest.mark.parametrize("stop", [4, 6, 11])     # in the second epoch, at its last batch, in the fourth
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_training_equals_the_uninterrupted_one(case, stop, X, tmp_path):
    method, more = case.partition(",")[0], dict(epochs=5, **RESUMED[case])
    validation = images(20, seed=1)
    whole = tiny(method, **more).fit(X, validation=validation)
    with pytest.warns(UserWarning, match="interrupted in phase .train., epoch [1-4]; .*resume="):
        tiny(method, **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(stop)])).fit(X, validation=validation)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    a = tiny(method, **more).fit(X, validation=validation, resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all() and a.interrupted_ is False
    pd.testing.assert_frame_equal(history(a), history(whole))


def test_resume_accepts_text_and_early_stopping(X, tmp_path):
    more = dict(lr=0.02, epochs=40, patience=3)
    whole = tiny("AE + k-means", **more).fit(X, validation=noise())
    with pytest.warns(UserWarning): tiny("AE + k-means", **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(3 * len(whole.history_) - 4)])).fit(X, validation=noise())
    assert same_weights(tiny("AE + k-means", **more).fit(X, validation=noise(), resume=str(tmp_path / "last.ckpt")), whole)


def test_folders_are_tried_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    for name, method in (("checkpoint_dir", "VAESim"), ("cache_dir", "DEC")):
        model = tiny(method, **{name: tmp_path / "file"})
        with pytest.raises(ValueError, match=f"{name}=.*file"): model.fit(images())
        assert not hasattr(model, "history_")


# ---- its parts

def test_names_and_sizes(X):
    digits = ImageSet(X, name="digits/train")
    assert (set_name(digits), set_name(X), set_name(ImageSet(X, name="mnist"))) == ("digits", "*", "mnist")
    assert sized(X, None).shape == sized(X, 16).shape == (60, 16, 16, 1) and sized(X, 12).shape == (60, 12, 12, 1)


def test_seeds():
    s = Settings(random_state=None, trainer_options=None)
    assert whole_seed(np.random.RandomState(5)) == whole_seed(np.random.RandomState(5)) and whole_seed(10**30) < 2**32
    with pytest.raises(ValueError, match="several devices"): settle_seed(s.but(trainer_options=dict(devices=2)), None)
    assert settle_seed(s.but(trainer_options=dict(devices=2), random_state=7), None) == 7
    with pytest.raises(ValueError, match="random_state='today' cannot be used"): whole_seed("today")


def test_what_the_decoder_is_told(X):
    class Told: name, method = "told", type("ToldNetwork", (Network,), dict(conditional=True))
    class Untold: name, method = "untold", Network
    scans = ImageSet(X[:6], dict(scanner=["A", "B", "A", "B", "B", "B"]))
    none = Settings(condition=None)
    assert take_condition(Told, None, none, scans, 6, None) == take_condition(Untold, None, none, scans, 6, None) == (None, None, None)
    covariates, codes, held = take_condition(Told, "scanner", none, scans, 6, None)
    assert codes.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1], [0, 1], [0, 1]] and held is None and covariates.names == ["scanner"]
    with pytest.raises(ValueError, match="untold has no decoder that a condition could be told. Leave out condition=…"): take_condition(Untold, "scanner", none, scans, 6, None)
    with pytest.raises(ValueError, match="validation images need the condition's columns"): take_condition(Told, "scanner", none, scans, 6, scans.images)


def test_what_a_checkpoint_holds(X, tmp_path):
    a = tiny(checkpoint_dir=tmp_path).fit(X)
    kept = read_checkpoint(a.checkpoint_)["medstrat"]
    assert {"method", "n", "shape", "images", "condition", "labels", "seed", "settings", "found", "memory", "n_clusters", "phase", "rows", "step"} == set(kept)
    assert not {"accelerator", "verbose", "checkpoint_dir", "random_state", "encoder"} & set(json.loads(kept["settings"])) and json.loads(kept["settings"])["epochs"] == 2
    state = torch.load(a.checkpoint_, weights_only=True)
    del state["medstrat"]["found"]
    torch.save(state, a.checkpoint_); seal(a.checkpoint_)
    with pytest.raises(ValueError, match="written by an earlier version of medstrat"): tiny().fit(X, resume=a.checkpoint_)


def test_the_images_of_a_training_are_known(X):
    "By 64 of them, and by how many they are"
    class Simple(CommonParameters): name = "simple"
    net, s = Network(Settings(), (16, 16, 1), 2), Settings(random_state=0, lr=1.0)
    prints = [fingerprint(Simple(), net, s, ImageBatches(x, labels=y)) for x, y in ((X, None), (X[:59], None), (255 - X, None), (X, np.arange(60)))]
    assert len({json.dumps(p) for p in prints}) == 4 and prints[0]["labels"] is None


def test_kind_none_is_looked_up():
    a = tiny("PCA + k-means", kind=None).fit(images())
    assert (a.settings_.kind, a.provenance_["kind"]) == ("film", "looked up in the images")
