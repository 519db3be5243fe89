"Coloured digits: the same images on every machine, colours that know nothing of the digit, and sources that are not what they should be."
import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from medstrat.data.known.colored import COLORED, PALETTE, colored_sets, colorize, paint
from medstrat.data.images import ImageSet
from medstrat.data.sources import find_source, list_datasets, load_dataset

REAL = os.environ.get("MEDSTRAT_DATA")
REAL = REAL if REAL and (Path(REAL) / "mnist.npz").is_file() else None
needs_mnist = pytest.mark.skipif(not REAL, reason="needs mnist.npz in MEDSTRAT_DATA")


pytestmark = pytest.mark.usefixtures("alone")


def gray(n=40, k=10, side=6, seed=0, name="gray"):
    x = np.random.default_rng(seed).integers(0, 256, (n, side, side, 1), np.uint8)
    return ImageSet(x, {"label": np.arange(n) % k}, target="label", name=name)


def save_mnist(folder, train=3000, test=500, k=10, channels=()):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", train), ("test", test)):
        arrays |= {f"{part}_images": rng.integers(0, 256, (n, 28, 28, *channels), np.uint8), f"{part}_labels": rng.permutation(np.arange(n) % k)[:, None].astype(np.uint8)}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "mnist.npz", **arrays)
    return folder


# ---- painting

@given(g=st.integers(0, 255), c=st.tuples(*[st.integers(0, 255)] * 3), b=st.tuples(*[st.integers(0, 255)] * 3))
def test_a_pixel_by_whole_numbers(g, c, b):
    "The formula in exact integers: round((255·b + g·(c − b)) / 255); no tie is possible, since 255 is odd"
    got = colorize(np.full((1, 2, 2), g, np.uint8), c, b)
    want = [(2 * (255 * y + g * (x - y)) + 255) // 510 for x, y in zip(c, b, strict=True)]
    assert got.shape == (1, 2, 2, 3) and got.dtype == np.uint8 and (got == want).all()


def test_painting_keeps_the_table_and_the_original():
    s = ImageSet(gray().images, {"label": np.arange(40) % 3, "view": ["a", "b"] * 20}, target="label", classes=["x", "y", "z"], name="x-rays")
    before = s.images.copy()
    p = paint(s, ["green", "gray"] * 20)
    assert list(p.table) == ["label", "view", "color", "background"] and p.classes == s.classes and p.name == "x-rays" and list(s.table) == ["label", "view"]
    assert np.array_equal(s.images, before) and p.table.background.to_list() == ["indigo", "charcoal"] * 20
    assert np.array_equal(p.images[1, ..., 0], colorize(s.images[1:2], (150,) * 3, (45,) * 3)[0, ..., 0])
    floats = ImageSet(s.images.astype(np.float32) / 255, s.table)
    assert np.array_equal(paint(floats, ["green", "gray"] * 20).images, p.images)   # floats are coloured the same way
    with pytest.raises(ValueError, match="Gray images are needed.*×3"): paint(p, ["red"] * 40)
    with pytest.raises(ValueError, match="40 images, but 39 colours"): paint(s, ["red"] * 39)
    with pytest.raises(ValueError, match="Unknown colours: 3. There are: red"): paint(s, [3] * 40)


def test_one_brightness():
    for k, luma in ((0, 150), (2, 45)): assert all(abs(np.dot(v[k], (.299, .587, .114)) - luma) < .5 for v in PALETTE.values())


# ---- colored-digits, wherever this is installed

def test_colored_digits_are_frozen():
    "Recorded numbers rest on these images: if this fails, every result on colored-digits has to be made again."
    s = load_dataset("colored-digits", carve_val=True)
    assert [len(s.train), len(s.val), len(s.test)] == [649, 72, 180] and s.train.image_shape == (8, 8, 3) and s.train.images.dtype == np.uint8
    sums = [hashlib.md5(getattr(s, p).images.tobytes()).hexdigest()[:8] for p in s.split_names]
    assert sums == FROZEN, sums
    again = load_dataset("Colored_Digits")
    assert np.array_equal(again.test.images, s.test.images) and len(again.train) == 721 and again.val is None and again.name == "colored-digits"
    assert "each in one of 5 colours" in again.notices[0] and "fixed 20% of its training images was set aside, stratified by label" in again.notices[1]


FROZEN = ["797c2a5b", "e5fe68f4", "a957cc43"]  # first digits of the MD5 of the images of train, val, test


def test_columns_and_independence():
    s = load_dataset("colored-digits")
    for part in (s.train, s.test):
        t = part.table
        assert list(t) == ["label", "digit", "color", "background"] and (t.label == t.digit).all() and set(t.digit) == set(range(5))
        assert all(isinstance(v, str) for v in t.color) and set(t.color) == set(list(PALETTE)[:5])
        assert all(PALETTE[c][1] == b for c, b in zip(t.color, t.background, strict=True))
        assert chi2_contingency(pd.crosstab(t.digit, t.color)).pvalue > .001
    assert s.train.target == "label" and s.train.classes == {i: str(i) for i in range(5)}


def test_the_usual_choices_work():
    s = load_dataset("colored-digits", image_size=16, group="color")
    assert s.test.image_shape == (16, 16, 3) and not set(s.test.table.color) & set(s.train.table.color)   # a group that is named is respected
    with pytest.raises(ValueError, match="size=64 chooses a file of MedMNIST; 'colored-digits' is none"): load_dataset("colored-digits", size=64)
    with pytest.raises(KeyError, match="no column 'patient'.*Columns: label, digit, color"): load_dataset("colored-digits", group="patient")


# ---- names

@pytest.mark.parametrize("text, near", [("coloured-mnist", "'colored-mnist'"), ("colored-digit", "'colored-digits'"), ("colormnist", "'colored-mnist'"), ("colored-mnist-crosed", "'colored-mnist-crossed'")])
def test_near_names(text, near):
    with pytest.raises(ValueError, match=f"Did you mean .*{near}"): find_source(text)


def test_names_and_lists(tmp_path):
    for text in ("colored-mnist", "Colored MNIST", "COLORED_MNIST_10", "colored-mnist-10-crossed"): find_source(text)
    rows = list_datasets(tmp_path).set_index("name")
    assert set(COLORED) <= set(rows.index) and rows.loc["colored-digits", ["images", "channels", "classes", "where"]].to_list() == [901, 3, 5, "embedded"]
    assert set(rows.loc[[n for n in COLORED if "mnist" in n], "where"]) == {"download"} and list_datasets(tmp_path).name.is_unique
    save_mnist(tmp_path)
    assert set(list_datasets(tmp_path).set_index("name").loc[[n for n in COLORED if "mnist" in n], "where"]) == {"data folder"}


# ---- from a file of MNIST's name

def test_no_mnist_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="mnist.npz is not there, and download=False"): load_dataset("colored-mnist", data_dir=tmp_path, download=False)


def test_an_unofficial_mnist_does_not_hide_behind_its_colours(tmp_path):
    save_mnist(tmp_path)
    with pytest.warns(UserWarning, match="not the official MNIST"): s = load_dataset("colored-mnist", data_dir=tmp_path)
    assert "not the official MNIST" in s.notices[0] and "600 of 1,500 in train, 250 of 250 in test" in s.notices[1]
    assert (len(s.train), len(s.test), s.train.image_shape) == (600, 250, (28, 28, 3))


@pytest.mark.filterwarnings("ignore:mnist.npz is not")
def test_a_crossed_set_keeps_twins_together(tmp_path):
    save_mnist(tmp_path, train=12000)
    with np.load(tmp_path / "mnist.npz") as z: x, y = z["train_images"], z["train_labels"][:, 0]
    whole, parts = load_dataset("colored-mnist-crossed", data_dir=tmp_path), load_dataset("colored-mnist-crossed", data_dir=tmp_path, carve_val=True)
    rows = [i for i in range(0, 12000, 100) if y[i] < 5]
    assert whole.train.table.source.to_list() == [f"train {i}" for i in rows for _ in range(5)] and whole.train.table.color.to_list() == list(PALETTE)[:5] * len(rows)
    for i, image, color in zip(np.repeat(rows, 5), whole.train.images, whole.train.table.color, strict=True):
        assert np.array_equal(image, colorize(x[i:i + 1], *PALETTE[color][::2])[0])
    assert not set(parts.train.table.source) & set(parts.val.table.source) and len(parts.train) + len(parts.val) == len(whole.train)
    assert all(len(g) == 5 for p in parts.split_names for _, g in getattr(parts, p).table.groupby("source"))
    assert len(whole.notices) == 1 + 1   # unofficial; how it was made. No source occurs in two parts as given


@pytest.mark.filterwarnings("ignore:mnist.npz is not")
@pytest.mark.parametrize("kw, says", [
    (dict(train=40), "600 images of them at least"),
    (dict(k=4), "labels 0, 1, 2, 3. Too few.*needed are the digits 0 to 4"),
    (dict(channels=(3,)), "Gray images are needed"),
])
def test_a_mnist_that_is_none(tmp_path, kw, says):
    save_mnist(tmp_path, **kw)
    with pytest.raises(ValueError, match=says): load_dataset("colored-mnist", data_dir=tmp_path)


def test_a_gray_set_without_labels():
    with pytest.raises(ValueError, match="no single label column"): colored_sets("colored-digits", {"train": ImageSet(gray().images)})
    sets, _ = colored_sets("colored-digits", {"train": gray(), "val": None, "test": gray(seed=1)})
    assert sets["val"] is None and len(sets["train"]) == len(sets["test"]) == 20


# ---- the real one

@needs_mnist
def test_the_real_colored_mnist():
    "Frozen as well; twice the same images, whatever was drawn before"
    np.random.seed(1)
    s = load_dataset("colored-mnist", data_dir=REAL)
    assert [len(s.train), len(s.test), s.val] == [600, 5139, None]
    assert [hashlib.md5(p.images.tobytes()).hexdigest()[:8] for p in (s.train, s.test)] == MNIST, MNIST
    for p in (s.train, s.test): assert chi2_contingency(pd.crosstab(p.table.digit, p.table.color)).pvalue > .001
    assert len(np.unique(s.train.images.reshape(600, -1), axis=0)) == 600   # drawn without replacement
    gray = load_dataset("mnist", data_dir=REAL).train
    known = {g.tobytes(): y for g, y in zip(gray.images, gray.labels, strict=True)}
    ink, _, paper = PALETTE["purple"]   # the one of the five in which all 256 shades differ, so that it can be undone
    shades = {tuple(v): g for g, v in enumerate(colorize(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), ink, paper)[0].reshape(256, 3))}
    purple = s.train[s.train.table.color == "purple"]
    assert len(shades) == 256 and len(purple) > 100
    for x, digit in zip(purple.images, purple.labels, strict=True):   # what is left is an image of MNIST's training part, with this digit
        assert known[np.array([shades[tuple(v)] for v in x.reshape(-1, 3)], np.uint8).tobytes()] == digit


@needs_mnist
@pytest.mark.parametrize("name", [n for n in COLORED if COLORED[n].source == "mnist"])
def test_the_list_counts_right(name):
    s = load_dataset(name, data_dir=REAL)
    assert sum(len(getattr(s, p)) for p in s.split_names) == COLORED[name].images == list_datasets(REAL).set_index("name").loc[name, "images"]
    k = COLORED[name].k
    assert set(s.train.table.digit) == set(range(k)) and set(s.train.table.color) == set(list(PALETTE)[:k])


@pytest.mark.filterwarnings("ignore:mnist.npz is not")
def test_a_crossed_set_needs_all_digits_among_every_hundredth(tmp_path):
    save_mnist(tmp_path, train=300)
    with pytest.raises(ValueError, match="Too few.*each among every 100th image"): load_dataset("colored-mnist-crossed", data_dir=tmp_path)


MNIST = ["e8da95f4", "703d061a"]
