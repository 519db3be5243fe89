"Image sets: what cannot be one, selections, labels, what is shown, and scikit-learn."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.data.arrays import as_images, as_items
from medstrat.data.images import ImageSet

rng = np.random.RandomState(0)


def grey(n, side=8): return rng.randint(0, 256, (n, side, side), np.uint8)


def test_a_memory_map_is_never_copied(tmp_path):
    np.save(tmp_path / "x.npy", grey(100))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    s = ImageSet(x, {"label": np.arange(100) % 2}, target="label")
    for a in (s.images, s[10:20].images): assert isinstance(a, np.memmap) and np.shares_memory(a, x)


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


def test_scikit_learn_takes_a_set_as_it_takes_an_array():
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import (
        GridSearchCV,
        GroupKFold,
        KFold,
        ShuffleSplit,
        StratifiedKFold,
        cross_val_score,
        train_test_split,
    )
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


@pytest.mark.parametrize("labels, codes", [([0., 254837009000.], [0, 254837009000]), (np.int8([-1, 3]), [-1, 3]), (pd.array([2, 1], "Int64"), [2, 1]), (np.uint64([7, 8]), [7, 8])], ids=str)
def test_labels_are_int64_whatever_they_came_as(labels, codes):
    s = ImageSet(grey(2), {"label": labels}, target="label")
    assert s.labels.tolist() == codes and s.labels.dtype == np.int64 and s.classes == {c: str(c) for c in sorted(codes)}


@pytest.mark.parametrize("labels", [[0, .5], [0, np.inf], [0, None], ["a", "b"], np.uint64([0, 2**63]), [0., 2.**63]], ids=str)
def test_what_is_no_label_is_refused(labels):
    with pytest.raises(TypeError, match="whole numbers without gaps .int64.*pandas.factorize"): ImageSet(grey(2), {"label": labels}, target="label")


def test_a_set_without_a_target():
    s = ImageSet(grey(5), {"age": np.arange(5.)}, name="cohort")
    with pytest.raises(ValueError, match=r"cohort has no single label column \(it has: age\)"): _ = s.labels
    with pytest.raises(ValueError, match="it has: no columns"): _ = ImageSet(grey(5)).labels
    assert list(s.describe()["set"]) == ["images", "size", "type"] and list(s.describe()["values"]) == ["age"] and s.classes == {}
    assert repr(s) == "cohort: 5 images 8×8×1 uint8; columns age" and repr(ImageSet(grey(5))) == "images: 5 images 8×8×1 uint8"


def test_names_of_classes():
    s = ImageSet(grey(4), {"label": [1, 0, 1, 3], "site": list("abca")}, target="label", classes=["normal", "sick", "unused", "other"])
    assert s.classes == {0: "normal", 1: "sick", 2: "unused", 3: "other"} and "label 'label': normal, sick, unused, other; columns site" in repr(s)
    assert s.describe()["count"].iloc[0].to_dict() == {"normal": 1, "sick": 2, "unused": 0, "other": 1} and s.describe()["set", "majority"].iloc[0] == .5


def test_a_set_but_for_something():
    s = ImageSet(grey(4), {"label": [0, 1, 0, 1]}, target="label")
    t = s.but(name="other")
    assert (t.name, s.name) == ("other", "images") and t.images is s.images and t.table is s.table and type(t) is ImageSet


def test_another_size():
    s = ImageSet(grey(4) / np.float32(255), {"row": range(4)})
    assert s.resize(8) is s and s.resize(5).image_shape == (5, 5, 1) and s.resize(5).images.dtype == np.float32 and list(s.resize(5).table.row) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="a whole number of at least 2"): s.resize("28")


def test_what_is_shown():
    "As many pictures as there are, taken evenly; rows by the values of a column, named by them and by their number"
    s = ImageSet(grey(100), {"label": np.arange(100) % 2, "site": np.where(np.arange(100) < 3, "a", "b")}, target="label", classes=["no", "yes"])
    assert [a.get_ylabel() for a in s.show().axes] == ["no\nn = 50", "yes\nn = 50"] and [a.get_ylabel() for a in s.show("site").axes] == ["a\nn = 3", "b\nn = 97"]
    row = s.show("site", n=4).axes[0].images[0].get_array()
    assert row.shape == (8, 4 * 9 - 1) and np.array_equal(row[:, 9:17], s.images[1, ..., 0]) and (row[:, 27:] == 255).all()
    last = s.show("site", n=4).axes[1].images[0].get_array()
    assert np.array_equal(last[:, :8], s.images[3, ..., 0]) and np.array_equal(last[:, 27:], s.images[99, ..., 0])
    assert len(ImageSet(grey(3)).show().axes) == 1
    with pytest.raises(KeyError, match="Did you mean 'site'"): s.show("sitee")


def test_vectors_stay_with_their_images():
    V = np.arange(180.).reshape(60, 3)
    s = ImageSet(np.arange(60 * 16).reshape(60, 4, 4).astype(np.uint8), dict(row=range(60)), vectors=V)
    assert s.vectors.dtype == np.float32 and (s.vectors == V).all() and "vectors of 3 numbers" in repr(s) and "vectors" not in repr(s.but(vectors=None))
    for rows in (slice(4, 9), [3, 1, 2], s.table.row % 7 == 0, 5, -1):
        part = s[rows]
        assert len(part) == len(part.vectors) and (part.vectors[:, 0] == 3 * part.table.row).all()
    assert (s.resize(2).vectors == V).all() and (s.but(name="other").vectors == V).all() and ImageSet(s.images).vectors is None
    assert (as_items(s) == V).all() and as_items(s.but(vectors=None)) is s.images and as_images(s) is s.images
    with pytest.raises(ValueError, match="60 images, but 59 vectors"): ImageSet(s.images, vectors=V[1:])
    with pytest.raises(ValueError, match="Vector 1 holds NaN"): ImageSet(s.images, vectors=np.where(V == 4, np.nan, V))
