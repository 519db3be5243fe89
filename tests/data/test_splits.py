"Splits: disjoint, complete, repeatable, stratified or grouped, or refused; and one label for all parts."
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.data.images import ImageSet
from medstrat.data.splits import Splits, fewer, group_codes, group_column, parts_with_target, split

rng = np.random.RandomState(0)


def grey(n, side=8): return rng.randint(0, 256, (n, side, side), np.uint8)


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


@pytest.mark.parametrize("patient", [
    np.arange(200) // 5, [f"P{i // 4}" for i in range(200)],
    np.where(np.arange(200) < 150, np.arange(200) // 3 % 30, np.nan),           # numbers that come again in both classes, and gaps
    [None if i % 2 else f"P{i // 10}" for i in range(200)], ["" if i > 50 else f"P{i % 9}" for i in range(200)],
])
def test_patients_stay_whole_unasked(patient):
    s = ImageSet(grey(200), {"label": np.arange(200) // 100, "patient": patient, "row": np.arange(200)}, target="label")
    parts = split(s, seed=3)
    assert sorted(np.concatenate([getattr(parts, p).column("row") for p in parts.split_names])) == list(range(200))
    seen = [set(getattr(parts, p).column("patient").replace("", np.nan).dropna()) for p in parts.split_names]
    assert all(not a & b for i, a in enumerate(seen) for b in seen[:i])
    assert abs(len(parts.test) - 40) <= 12 and set(parts.test.labels) == set(parts.train.labels) == {0, 1}
    free = split(s, group=False)
    assert len(free.test) == 40 and set(free.test.column("patient").dropna()) & set(free.train.column("patient").dropna())


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


def test_a_set_in_memory_comes_from_nowhere():
    bare = split(grey(20))
    assert (bare.source, bare.checksum, bare.notices, bare.train.target) == (None, None, (), None) and split(grey(20), test=0, val=.5).split_names == ("train", "val")


def test_a_column_that_is_not_there():
    with pytest.raises(KeyError, match="no column 'scanner'"): split(ImageSet(grey(20), {"patient": range(20)}), group="scanner")


def test_a_part_without_a_class_says_so():
    "All images of class 1 belong to one patient"
    s = ImageSet(grey(1800), {"label": (np.arange(1800) < 9).astype(int), "patient": np.arange(1800) // 9}, target="label", name="rare")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        notices = split(s).notices
    assert [str(w.message) for w in said] == list(notices) and notices and all("no image of '1'" in n and "Another seed" in n for n in notices)


def test_the_parts():
    s = ImageSet(grey(50), {"label": np.arange(50) % 2}, target="label", name="set")
    parts = Splits("digits", s[:30], None, s[30:], notices=("from a friend",))
    assert parts.split_names == ("train", "test") and parts.test.name == "digits/test" and s.name == "set"
    assert parts.describe()["set", "images"].to_dict() == {"train": 30, "test": 20} and parts.resize(4).test.image_shape == (4, 4, 1)
    assert repr(parts).splitlines() == [repr(parts.train), repr(parts.test), "from a friend"]
    for other in (ImageSet(np.repeat(s.images, 3, -1), s.table, target="label"), s.resize(9), ImageSet(s.images)):
        with pytest.raises(ValueError, match="differ in channels, size or label column.*image_size="): Splits("mixed", s, None, other)


def test_a_column_as_the_label():
    "One code for one class in all parts; whole numbers are the codes, text is numbered in sorted order"
    s = ImageSet(grey(40), {"ward": np.array(["north", "east", "west"])[np.arange(40) % 3], "code": 254837009000 + np.arange(40) % 2, "flag": np.arange(40) % 2 == 0, "age": np.arange(40) + .5,
                            "gap": ["", *"ab" * 19, None]})
    sets = dict(train=s[:30], val=None, test=s[30:])
    made = parts_with_target(sets, "ward")
    assert made["val"] is None and made["test"].classes == made["train"].classes == {0: "east", 1: "north", 2: "west"}
    assert [made["test"].classes[c] for c in made["test"].labels] == s[30:].column("ward").tolist() and sets["train"].target is None
    assert parts_with_target(made, "ward") is made
    assert parts_with_target(sets, "code")["train"].classes == {254837009000: "254837009000", 254837009001: "254837009001"}
    assert parts_with_target(sets, "flag")["train"].classes == {0: "False", 1: "True"}
    with pytest.raises(TypeError, match=r"'age' holds measurements \(such as 0.5\).*pandas.cut"): parts_with_target(sets, "age")
    with pytest.raises(ValueError, match="'gap' has no value for 2 of 40 images"): parts_with_target(sets, "gap")
    assert Splits("x", **sets).with_target("ward").test.classes == made["test"].classes
    lost = parts_with_target(sets, "gap", gaps=True)
    assert lost["train"].classes == {-1: "no label", 0: "a", 1: "b"} and lost["train"].labels[:3].tolist() == [-1, 0, 1] and lost["test"].labels[-1] == -1
    assert parts_with_target(sets, "ward", gaps=True)["train"].classes == made["train"].classes


def test_groups_and_their_column():
    s = ImageSet(grey(4), {"Patient": list("abca"), "site": 1})
    assert (group_column(s), group_column(s, "site"), group_column(s, False), group_column(ImageSet(grey(2)))) == ("Patient", "site", None, None)
    assert group_codes([3, np.nan, 3, np.nan]).tolist() == [0, 1, 0, 2] and group_codes(["b", "a", " ", "b", None]).tolist() == [0, 1, 2, 0, 3]


def test_parts_of_a_memory_map_are_all_of_it(tmp_path):
    np.save(tmp_path / "x.npy", grey(100))
    s = ImageSet(np.load(tmp_path / "x.npy", mmap_mode="r"), {"label": np.arange(100) % 2}, target="label")
    assert sum(len(getattr(split(s), p)) for p in ("train", "val", "test")) == 100


def test_fewer_training_images_are_always_the_same_and_say_so():
    s = ImageSet(grey(50), {"label": np.arange(50) % 2, "row": np.arange(50)}, target="label")
    parts = Splits("s", s[:40], None, s[40:])
    few, again = fewer(parts, 10), fewer(parts, 10)
    rows = few.train.column("row").to_numpy()
    assert len(set(rows)) == 10 and (np.diff(rows) > 0).all() and (rows == again.train.column("row")).all() and rows.max() > 20
    assert len(few.test) == 10 and few.notices == ("10 of 40 training images, drawn at random",)
    assert all(fewer(parts, n) is parts for n in (None, 40, 99))
    with pytest.raises(ValueError, match="0 training images are too few"): fewer(parts, 0)
