"What a fit is given: kinds, layouts and sizes of images, gray and colour, conditions."
import numpy as np
import pytest
import torch
from conftest import images, tiny
from sklearn.base import clone

from medstrat.data.arrays import resize
from medstrat.data.cohort.decoding import TINT
from medstrat.data.images import ImageSet
from medstrat.data.sources import forget_notices
from medstrat.training.inputs import in_channels, set_name, sized, take_condition
from medstrat.training.method import Network
from medstrat.training.parameters import Settings


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


# ---- its parts

def test_names_and_sizes(X):
    digits = ImageSet(X, name="digits/train")
    assert (set_name(digits), set_name(X), set_name(ImageSet(X, name="mnist"))) == ("digits", "*", "mnist")
    assert sized(X, None).shape == sized(X, 16).shape == (60, 16, 16, 1) and sized(X, 12).shape == (60, 12, 12, 1)


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
