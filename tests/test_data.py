"Data: bad input, faults on disk and in the network, and properties that hold for any set of images."
import re
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.data.sources import forget_notices
from medstrat.data.arrays import as_images, resize
from medstrat.data.images import ImageSet
from medstrat.data.sources import load_dataset
from medstrat.data.splits import split

rng = np.random.RandomState(0)


def grey(n, side=8): return rng.randint(0, 256, (n, side, side), np.uint8)


def arrays(side=8, **n):
    "Arrays of a small set in MedMNIST's key order: arrays(train=40, test=10)"
    return {f"{p}_{k}": v for p, m in n.items() for k, v in {"images": grey(m, side), "labels": (np.arange(m) % 2)[:, None]}.items()}


@pytest.fixture
def save(tmp_path):
    "save(name, **arrays) writes an npz into the test's data folder and returns its path"
    def write(name, **kw):
        np.savez(tmp_path / f"{name}.npz", **kw)
        return tmp_path / f"{name}.npz"
    return write


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    "No data folder and no cache but those of the test; notices are said again"
    monkeypatch.delenv("MEDSTRAT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_notices()


# ---- arrays

@pytest.mark.parametrize("x, error, says", [
    (np.zeros((5, 64), np.uint8), ValueError, "x.reshape"),
    (np.zeros((64, 64, 3), np.uint8), ValueError, r"x\[None\]"),
    (np.zeros((0, 8, 8), np.uint8), ValueError, "Zero images"),
    ([], ValueError, "Zero images"),
    (np.zeros((5, 1, 1, 1), np.uint8), ValueError, "smallest side is 2"),
    (np.zeros((5, 8, 1, 3), np.uint8), ValueError, "smallest side is 2"),
    (np.zeros((5, 8, 8, 4), np.uint8), ValueError, "1 .gray. or 3"),
    (np.zeros((5, 8, 8, 8, 1), np.uint8), ValueError, "Images of shape"),
    (np.zeros((5, 8, 8), np.int16), TypeError, "int16"),
    (np.zeros((5, 8, 8), bool), TypeError, "bool"),
    (np.full((5, 8, 8), None), TypeError, "object"),
    (np.full((5, 8, 8), np.nan), ValueError, "Image 0 holds NaN"),
    (np.full((5, 8, 8), np.inf, np.float32), ValueError, "infinite"),
    (np.full((5, 8, 8), 1.01), ValueError, "from 1.01 to 1.01"),
    (np.full((5, 8, 8), -.01), ValueError, r"must lie in \[0, 1\]"),
    ([np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], ValueError, "Item 1 has shape"),
    ([np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32)], ValueError, "float32"),
    ([{"img": np.zeros((8, 8))}], KeyError, "without 'image'"),
    ([1, 2, 3], ValueError, "Item 0 should be an image"),
    ("digits", TypeError, "load_dataset"),
    ({"image": 1}, TypeError, "dict"),
    (7, TypeError, "int was given"),
    (None, TypeError, "NoneType"),
    (pd.DataFrame(np.zeros((5, 64))), ValueError, "x.reshape"),
])
def test_bad_images(x, error, says):
    with pytest.raises(error, match=says): as_images(x)


def test_an_iterable_dataset_is_refused():
    import torch
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): yield from grey(3)
    with pytest.raises(TypeError, match="a dataset with a length"): as_images(Stream())


def test_the_bad_image_is_named_in_any_block(monkeypatch):
    monkeypatch.setattr(sys.modules["medstrat.data.arrays"]._blocks, "__defaults__", (64 * 3,))
    x = np.zeros((20, 8, 8), np.float32)
    x[13, 2, 2] = np.nan
    with pytest.raises(ValueError, match="Image 13 holds NaN"): as_images(x)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 4), h=st.integers(4, 12), w=st.integers(4, 12), c=st.sampled_from([1, 3]), floats=st.booleans())
def test_all_orders_and_types_are_the_same_images(n, h, w, c, floats):
    import torch
    x = rng.randint(0, 256, (n, h, w, c), np.uint8)
    x = (x / 255).astype(np.float32) if floats else x
    chw = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    guises = [x, chw, torch.from_numpy(x), torch.from_numpy(chw), list(x), list(chw), [(a, 0) for a in x], [{"image": torch.from_numpy(a)} for a in chw], ImageSet(x)]
    guises += [x[..., 0]] if c == 1 else []
    for g in guises:
        out = as_images(g)
        assert out.dtype == x.dtype and np.array_equal(out, x)


def test_other_floats_become_float32():
    import torch
    for x in (np.full((2, 4, 4), .5), np.full((2, 4, 4), .5, np.float16), torch.full((2, 4, 4), .5, dtype=torch.bfloat16, requires_grad=True)):
        assert as_images(x).dtype == np.float32 and np.all(as_images(x) == .5)


@settings(deadline=None, max_examples=40)
@given(side=st.integers(2, 40), new=st.integers(2, 40), value=st.integers(0, 255))
def test_resize_keeps_constant_images_and_ranges(side, new, value):
    assert np.all(resize(np.full((2, side, side, 1), value, np.uint8), new) == value)
    x = rng.rand(2, side, side, 3).astype(np.float32)
    y = resize(x, new)
    assert y.shape == (2, new, new, 3) and y.dtype == np.float32 and y.min() >= x.min() - 1e-6 and y.max() <= x.max() + 1e-6


def layouts(x, folder):
    "The values of `x` (N×H×W×C) in every layout that an array may have"
    np.save(folder / "x.npy", x)
    out = {"mirrored": x[:, :, ::-1].copy()[:, :, ::-1], "reversed": x[::-1].copy()[::-1], "bgr": x[..., ::-1].copy()[..., ::-1], "Fortran": np.asfortranarray(x),
           "channels first": np.ascontiguousarray(np.moveaxis(x, -1, 1)), "every other": np.repeat(x, 2, 0)[::2], "mapped": np.load(folder / "x.npy", mmap_mode="r"), "read-only": x.copy()}
    out["read-only"].flags.writeable = False
    return out | ({"big-endian": x.astype(">f4"), "double": x.astype(">f8")} if x.dtype.kind == "f" else {})


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.filterwarnings("error")
def test_every_layout_gives_the_same_images(tmp_path, floats):
    x = rng.randint(0, 256, (6, 9, 9, 3), np.uint8)
    x = x / np.float32(256) if floats else x   # no multiples of 1/255
    want = resize(x, 5)
    for name, view in layouts(x, tmp_path).items():
        assert np.array_equal(as_images(view), x), name
        assert np.array_equal(resize(view, 5), want) and np.array_equal(ImageSet(view).resize(5).images, want), name


@pytest.mark.parametrize("size", [None, 4, 23])
def test_bytes_and_bytes_over_255_give_the_same_values(size):
    from medstrat.methods.vaesim import VAESim
    x = np.concatenate([rng.randint(0, 256, (39, 12, 12), np.uint8), np.arange(144, dtype=np.uint8).reshape(1, 12, 12) + 112])
    fit = lambda v: VAESim(epochs=1, verbose=False, random_state=0, network="mlp", hidden=(8,), latent_dim=2, n_clusters=2, image_size=size).fit(v).transform(v)
    want = fit(x)
    for f in (x / np.float32(255), x / 255, (x / 255).astype(np.float16)): assert np.array_equal(fit(f), want)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), new=st.integers(2, 20))
def test_an_image_is_resized_the_same_whatever_lies_beside_it(data, new):
    x = np.stack([rng.randint(0, 256, (9, 9, 1)) / data.draw(st.sampled_from([255, 256, 300])) for _ in range(4)]).astype(np.float32)
    assert np.array_equal(resize(x, new), np.concatenate([resize(a[None], new) for a in x]))


def test_advice_for_deep_images_keeps_every_level():
    from PIL import Image
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    pictures = {"I;16": Image.fromarray(ramp.astype(np.uint16)), "I;16B": Image.frombytes("I;16B", (8, 8), ramp.astype(">u2").tobytes()),
                "I": Image.fromarray(ramp.astype(np.int32)), "F": Image.fromarray(ramp.astype(np.float32))}
    for mode, picture in pictures.items():
        assert picture.mode == mode
        with pytest.raises(TypeError, match=f"Item 1 is a Pillow image of mode {mode}") as e: as_images([Image.new("L", (8, 8)), picture])
        assert "convert" not in str(e.value)
        for advice in re.findall(r"numpy\.(?:asarray|clip)\(.*?\) / 65535|numpy\.clip\(.*?, 0, 1\)", str(e.value)):
            got = as_images([eval(advice, {"numpy": np, "image": picture, "low": 0, "high": 65535})])
            assert len(np.unique(got)) == 64 and got.max() == 1
    for x in (ramp.astype(np.uint16), ramp.astype(">u2"), (ramp - 32768).astype(np.int16), ramp.astype(np.int64)):
        with pytest.raises(TypeError, match="Images of type") as e: as_images(x[None])
        advice = re.search(r"numpy\.clip\(.*?, 0, 1\)", str(e.value))[0]
        assert len(np.unique(as_images(eval(advice, {"numpy": np, "x": x[None], "low": int(x.min()), "high": int(x.max())})))) == 64
    for mode, word in (("1", "'L'"), ("P", "'RGB'"), ("RGBA", "transparency"), ("CMYK", "'RGB'"), ("LA", "transparency")):
        with pytest.raises(TypeError, match=word): as_images([Image.new(mode, (8, 8))])


@pytest.mark.parametrize("value", [np.float32(1.0000001), np.float64(1 + 1e-12), np.float32(-1e-9), np.float32(1.5), np.float16(1.001)])
def test_a_value_just_outside_is_shown_to_its_last_digit(value):
    with pytest.raises(ValueError, match="values from") as e: as_images(np.full((1, 4, 4), value))
    said = re.search("from (.*?) to", str(e.value))[1]
    assert value.dtype.type(said) == value and said not in ("0", "1")


def test_resize_does_not_depend_on_blocks(monkeypatch):
    x = grey(50, 20)
    whole = resize(x, 9)
    monkeypatch.setattr(sys.modules["medstrat.data.arrays"]._blocks, "__defaults__", (400 * 7,))
    assert np.array_equal(resize(x, 9), whole)


def test_a_memory_map_is_never_copied(tmp_path):
    np.save(tmp_path / "x.npy", grey(100))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    s = ImageSet(x, {"label": np.arange(100) % 2}, target="label")
    for a in (s.images, s[10:20].images): assert isinstance(a, np.memmap) and np.shares_memory(a, x)
    parts = split(s)
    assert len(parts.train) + len(parts.val) + len(parts.test) == 100


# ---- sets

@pytest.mark.parametrize("kw, error, says", [
    ({"table": {"label": np.zeros(4, int)}}, ValueError, r"5 images, but the table \(or the labels\) has 4 rows"),
    ({"target": "label"}, KeyError, "no column 'label'.*Columns: none"),
    ({"table": {"label": np.arange(5)}, "target": "lable"}, KeyError, "Did you mean 'label'"),
    ({"table": {"label": [0, 1, 2, 3, np.nan]}, "target": "label"}, TypeError, "whole numbers without gaps"),
    ({"table": {"label": list("abcde")}, "target": "label"}, TypeError, "pandas.factorize"),
    ({"table": {"label": np.arange(5)}, "target": "label", "classes": {0: "a"}}, ValueError, r"\[1, 2, 3, 4\] have no class name"),
])
def test_bad_sets(kw, error, says):
    with pytest.raises(error, match=says): ImageSet(grey(5), **kw)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), n=st.integers(2, 30))
def test_images_and_table_stay_together(data, n):
    s = ImageSet(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 4, 4)), {"row": np.arange(n)})
    rows = data.draw(st.one_of(
        st.lists(st.integers(-n, n - 1), min_size=1, max_size=10),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(any).map(np.array),
        st.integers(-n, n - 1),
        st.slices(n).filter(lambda z: len(range(*z.indices(n))) > 0)))
    t = s[rows]
    assert np.array_equal(t.images[:, 0, 0, 0], t.table["row"]) and list(t.table.index) == list(range(len(t)))


def test_selections_of_nothing_and_beyond():
    s = ImageSet(grey(5))
    for rows in ([], np.zeros(5, bool), slice(3, 3)):
        with pytest.raises(IndexError, match="none of the 5 images"): s[rows]
    for rows in (5, -6):
        with pytest.raises(IndexError): s[rows]
    with pytest.raises(IndexError): s[np.ones(4, bool)]
    assert [len(one) for one in s] == [1] * 5  # a for-loop ends


@pytest.mark.parametrize("classes, channels", [(2, 1), (40, 3)])
def test_show_draws_few_and_many_classes(classes, channels, tmp_path):
    s = ImageSet(rng.randint(0, 256, (2 * classes, 8, 8, channels), np.uint8), {"label": np.arange(2 * classes) % classes}, target="label")
    fig = s.show(n=4)
    fig.savefig(tmp_path / "show.png")
    assert len(fig.axes) == min(classes, 12) and ("first 12 of 40" in fig._suptitle.get_text()) == (classes == 40)
    assert len(ImageSet(s.images).show(n=3).axes) == (2 if classes == 2 else 4)


# ---- splits

@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(3, 60), min_size=1, max_size=6), test=st.floats(.05, .5), val=st.floats(.05, .4), seed=st.integers(0, 99))
def test_a_split_is_disjoint_complete_stratified_and_repeatable(counts, test, val, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    s = ImageSet(np.zeros((len(y), 4, 4), np.uint8), {"label": y, "row": np.arange(len(y))}, target="label")
    a, b = split(s, test=test, val=val, seed=seed), split(s, test=test, val=val, seed=seed)
    rows = [getattr(a, p).column("row").to_numpy() for p in ("train", "val", "test")]
    assert sorted(np.concatenate(rows)) == list(range(len(y)))
    assert all(np.array_equal(r, getattr(b, p).column("row")) for r, p in zip(rows, ("train", "val", "test"), strict=True))
    for part, share in ((a.test, test), (a.val, val), (a.train, 1 - test - val)):
        n = np.bincount(part.labels, minlength=len(counts))
        assert n.min() >= 1 and np.abs(n - share * np.array(counts)).max() <= 2.5


@settings(deadline=None, max_examples=40)
@given(groups=st.lists(st.integers(1, 8), min_size=20, max_size=60), seed=st.integers(0, 99))
def test_a_grouped_split_tears_no_group_apart(groups, seed):
    g = np.repeat(np.arange(len(groups)), groups)
    s = ImageSet(np.zeros((len(g), 4, 4), np.uint8), {"patient": g, "label": g % 2}, target="label")
    parts = split(s, group="patient", seed=seed)
    seen = [set(getattr(parts, p).column("patient")) for p in parts.split_names]
    assert sum(map(len, seen)) == len(groups) and abs(len(parts.test) / len(g) - .2) < .1


@pytest.mark.parametrize("kw, error, says", [
    ({"test": .6, "val": .4}, ValueError, "sum above 0 and below 1"), ({"test": -.1}, ValueError, "test=-0.1"), ({"test": 0, "val": 0}, ValueError, "above 0"),
    ({"test": float("nan")}, ValueError, "nan"), ({"group": "patent"}, KeyError, "Did you mean 'patient'"), ({"group": "one"}, ValueError, "1 groups cannot be split.*group=False"),
])
def test_impossible_splits(kw, error, says):
    s = ImageSet(grey(20), {"label": np.arange(20) % 2, "patient": np.arange(20) // 2, "one": 1}, target="label")
    with pytest.raises(error, match=says): split(s, **kw)


@pytest.mark.parametrize("patient, torn", [
    (np.arange(200) // 5, 0), ([f"P{i // 4}" for i in range(200)], 0),
    (np.where(np.arange(200) < 150, np.arange(200) // 3 % 30, np.nan), 0),           # numbers that come again in both classes, and gaps
    ([None if i % 2 else f"P{i // 10}" for i in range(200)], 0), (["" if i > 50 else f"P{i % 9}" for i in range(200)], 0),
])
def test_patients_stay_whole_unasked(save, patient, torn):
    s = ImageSet(grey(200), {"label": np.arange(200) // 100, "patient": patient, "row": np.arange(200)}, target="label")
    parts = split(s, seed=3)
    assert sorted(np.concatenate([getattr(parts, p).column("row") for p in parts.split_names])) == list(range(200))
    seen = [set(getattr(parts, p).column("patient").replace("", np.nan).dropna()) for p in parts.split_names]
    assert all(not a & b for i, a in enumerate(seen) for b in seen[:i])
    assert abs(len(parts.test) - 40) <= 12 and set(parts.test.labels) == set(parts.train.labels) == {0, 1}
    free = split(s, group=False)
    assert len(free.test) == 40 and set(free.test.column("patient").dropna()) & set(free.train.column("patient").dropna())
    named = load_dataset(save("cohort", train_images=s.images, train_labels=s.labels, train_patient=np.array([str(p) for p in patient])))
    assert not any("more than one part" in n for n in named.notices) and "grouped by patient" in named.notices[0]


def test_missing_patients_are_nobody():
    "Neither NaN nor an empty text binds images together: of 100 images without a patient, 20 can be set aside"
    for gap in (None, np.nan, "", " "):
        s = ImageSet(grey(100), {"patient": [gap] * 100})
        assert abs(len(split(s).test) - 20) <= 2
    with pytest.raises(ValueError, match="2 groups cannot be split.*group=False"): split(ImageSet(grey(40), {"patient": np.arange(40) % 2}))


def test_a_class_too_small_to_be_split():
    s = ImageSet(grey(21), {"label": [0, 1] * 10 + [2]}, target="label", classes=["a", "b", "rare"])
    with pytest.raises(ValueError, match="at least 2 images of every class.*{'rare': 1}"): split(s, val=0)
    with pytest.raises(ValueError, match="too few for 3 parts"): split(grey(2))


# ---- scikit-learn

def test_scikit_learn_takes_a_set_as_it_takes_an_array():
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit, StratifiedKFold, cross_val_score, train_test_split
    class Mean(ClassifierMixin, BaseEstimator):   # needs the table, so it fails where a fold is no ImageSet
        def __init__(self, shift=0.): self.shift = shift
        def fit(self, X, y=None):
            assert isinstance(X, ImageSet) and np.array_equal(X.labels, X.images[:, 0, 0, 0])
            self.classes_ = np.unique(X.labels)
            return self
        def predict(self, X): return X.labels + self.shift
    y = np.arange(60) % 3
    s = ImageSet(np.broadcast_to(y[:, None, None].astype(np.uint8), (60, 9, 7)), {"label": y, "patient": np.arange(60) // 4}, target="label")
    assert s.shape == s.images.shape == (60, 9, 7, 1) and s.image_shape == (9, 7, 1)
    for cv in (KFold(2), StratifiedKFold(5, shuffle=True, random_state=0), GroupKFold(4)):
        assert sorted(i for _, test in cv.split(s, s.labels, s.column("patient")) for i in test) == list(range(60))
    assert sum(len(test) for _, test in ShuffleSplit(1, test_size=.5).split(s)) == 30
    assert (cross_val_score(Mean(), s, s.labels, cv=3) == 1).all() and (cross_val_score(Mean(), s, s.labels, groups=s.column("patient"), cv=GroupKFold(3)) == 1).all()
    assert GridSearchCV(Mean(), {"shift": [0, 1]}, cv=KFold(4)).fit(s, s.labels).best_params_ == {"shift": 0}
    a, b, ya, yb = train_test_split(s, y, test_size=15, stratify=y, random_state=1)
    assert (type(a), len(a), len(b)) == (ImageSet, 45, 15) and np.array_equal(a.labels, ya) and np.array_equal(b.labels, yb)
    for rows in (np.array(7), np.int8(7), np.array([7]), [7], slice(7, 8), pd.Series(np.arange(60) == 7)): assert s[rows].column("patient").tolist() == [1] and len(s[rows, ...]) == 1
    for rows in ((1, 2), [[1, 2]], (slice(None), 0)):
        with pytest.raises(IndexError, match="one index"): s[rows]
