"One's own npz files: found by name and by path, read or refused."
import numpy as np
import pytest
from conftest import arrays, grey

from medstrat.data.sources import list_datasets, load_dataset


pytestmark = pytest.mark.usefixtures("alone")


def test_named_files_and_paths(save, tmp_path, monkeypatch):
    path = save("My-Set", **arrays(train=40, val=10, test=10), train_view=np.zeros((40, 1), np.uint8), val_view=np.zeros(10), test_view=np.ones(10))
    for source in (path, str(path)): assert list(load_dataset(source).test.table) == ["label", "view"]
    assert load_dataset("myset", data_dir=tmp_path).name == "My-Set" and load_dataset("my_set.npz", data_dir=str(tmp_path)).train.classes == {0: "0", 1: "1"}
    monkeypatch.setenv("MEDSTRAT_DATA", str(tmp_path))
    assert len(load_dataset("MY SET").val) == 10
    assert list_datasets().set_index("name").loc["My-Set", "images"] == 60


def test_files_that_are_no_npz(save, tmp_path):
    path = save("cut", **arrays(train=20))
    raw = path.read_bytes()
    for content, says in ((raw[:len(raw) // 2], "truncated"), (b"", "truncated"), (b"images!", "no npz"), (raw[:300] + bytes(100) + raw[400:], "damaged")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says): load_dataset(path)
    np.save(tmp_path / "one.npy", grey(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ValueError, match="no npz"): load_dataset(tmp_path / "one.npz")
    import zipfile
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as z: z.writestr("train_images", "hello")
    with pytest.raises(ValueError, match="no arrays"): load_dataset(tmp_path / "text.npz")
    rows = list_datasets(tmp_path).set_index("name")["where"]  # the list survives them all
    assert all("unreadable" in rows[n] for n in ("cut", "one", "text"))


@pytest.mark.parametrize("change, says", [
    ({"train_images": None}, "no array train_images.*It holds: train_labels"),
    ({"test_labels": None}, "one of them lacks: labels"),
    ({"train_view": np.zeros(20)}, "one of them lacks: view"),
    ({"train_images": np.zeros((20, 8, 8), np.int16)}, "train_images: Images of type int16"),
    ({"train_images": np.full((20, 8, 8), 2.)}, "train_images: Image 0 has values"),
    ({"train_images": np.full((20, 8, 8), np.nan)}, "train_images: Image 0 holds NaN"),
    ({"train_images": np.array(3)}, "needed: |were given"),
    ({"train_images": np.full(20, None)}, "Python objects"),
    ({"train_labels": np.zeros(19, int)}, r"train_labels has shape \(19,\), but there are 20"),
    ({"train_labels": np.full(20, .5)}, "whole numbers"),
    ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, int)}, "Zero images"),
    ({"test_images": np.zeros((8, 1, 1), np.uint8)}, "smallest side|last axis"),
    ({"test_images": np.zeros((8, 8, 8, 3), np.uint8)}, "differ in channels"),
])
def test_bad_arrays_in_a_file(save, change, says):
    a = {**arrays(train=20, test=8), **change}
    with pytest.raises((ValueError, TypeError), match=says): load_dataset(save("bad", **{k: v for k, v in a.items() if v is not None}))


def test_any_column_of_classes_can_be_the_target(save):
    n = {"train": 30, "test": 12}
    more = {f"{p}_{k}": v for p, m in n.items() for k, v in {
        "labels": np.random.RandomState(0).randint(0, 2, (m, 14)), "scanner": np.array(["B", "A", "C"])[np.arange(m) % 3], "code": 254837009000 + np.arange(m) % 2,
        "hash": np.uint64(2**63) + np.arange(m, dtype=np.uint64) % np.uint64(2), "age": np.random.RandomState(0).rand(m) * 90, "gaps": np.where(np.arange(m) < 2, np.nan, 1)}.items()}
    path = save("many", **{f"{p}_images": grey(m) for p, m in n.items()}, **more)
    s = load_dataset(path)
    assert s.train.target is None and sum(c.startswith("label_") for c in s.train.table) == 14
    for column, classes in (("scanner", {0: "A", 1: "B", 2: "C"}), ("code", {254837009000: "254837009000", 254837009001: "254837009001"}),
                            ("hash", {0: "9223372036854775808", 1: "9223372036854775809"}), ("label_3", {0: "0", 1: "1"})):
        t = s.with_target(column)
        assert t.test.classes == t.train.classes == classes and set(t.test.labels) == set(classes) and load_dataset(path, target=column).test.target == column
        names = [t.test.classes[c] for c in t.test.labels]
        assert names == [str(v) for v in s.test.column(column)] and s.train.target is None and (t.source, t.checksum) == (s.source, s.checksum)
    for column, error, says in (("age", TypeError, "pandas.cut"), ("gaps", ValueError, "no value for 4 of 42"), ("scaner", KeyError, "Did you mean 'scanner'")):
        with pytest.raises(error, match=says): s.with_target(column)
    fresh = load_dataset(save("alone", **{k: v for k, v in more.items() if "scanner" in k and "train" in k}, train_images=grey(30)), target="scanner")
    assert "stratified by label" in fresh.notices[0] and np.bincount(fresh.test.labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize("labels, codes, classes", [
    (254837009000 + np.arange(40) % 2, None, None), (np.arange(40) % 3 - 1, None, None), ((np.arange(40) % 2).astype(float), None, None), (np.arange(40) % 2 == 0, None, None),
    (np.uint64(2**63) + np.arange(40, dtype=np.uint64) % np.uint64(2), np.arange(40) % 2, {0: str(2**63), 1: str(2**63 + 1)}),
    (np.array(["sick", "well"])[np.arange(40) % 2], np.arange(40) % 2, {0: "sick", 1: "well"}), (np.array([b"sick", b"well"])[np.arange(40) % 2], np.arange(40) % 2, {0: "sick", 1: "well"}),
])
def test_labels_are_kept_or_coded_with_their_names(save, labels, codes, classes):
    codes = labels if codes is None else codes
    s = load_dataset(save("odd", train_images=grey(40), train_labels=labels, test_images=grey(40), test_labels=labels))
    assert np.array_equal(s.train.labels, codes) and np.array_equal(s.test.labels, codes) and s.train.labels.dtype == np.int64
    assert s.test.classes == (classes or {int(c): str(int(c)) for c in np.unique(codes)})
    assert s.describe()["count"].to_numpy().sum() == 80 and s.train.show(n=2)


@pytest.mark.parametrize("labels, says", [(np.full(40, np.nan), "whole numbers"), (np.full(40, 1e300), "whole numbers"), (np.array(["a", ""] * 20), "no value for 20 of 40")])
def test_labels_that_are_none(save, labels, says):
    with pytest.raises((ValueError, TypeError), match=says): load_dataset(save("odd", train_images=grey(40), train_labels=labels))


def test_large_numbers_in_a_column_are_not_altered(save):
    big = np.uint64(2**63) + np.arange(30, dtype=np.uint64)
    s = load_dataset(save("hashes", train_images=grey(30), train_accession=big, test_images=grey(30), test_accession=big))
    assert s.train.target is None and s.test.column("accession").dtype == np.uint64 and np.array_equal(s.test.column("accession"), big)


def test_words_are_numbered_over_all_parts(save):
    s = load_dataset(save("text", **{**arrays(train=4, test=2), "train_labels": np.array(list("baab")), "test_labels": np.array(list("ac"))}))
    assert (s.train.labels.tolist(), s.test.labels.tolist(), s.test.classes) == ([1, 0, 0, 1], [0, 2], {0: "a", 1: "b", 2: "c"})


def test_a_key_that_would_hide_the_labels(save):
    with pytest.raises(ValueError, match="labels are called train_labels"): load_dataset(save("odd", train_images=grey(9), train_label=np.zeros(9)))


@pytest.mark.parametrize("patient", [
    np.arange(200) // 5, [f"P{i // 4}" for i in range(200)],
    np.where(np.arange(200) < 150, np.arange(200) // 3 % 30, np.nan),           # numbers that come again in both classes, and gaps
    [None if i % 2 else f"P{i // 10}" for i in range(200)], ["" if i > 50 else f"P{i % 9}" for i in range(200)],
])
def test_patients_of_a_file_stay_whole_unasked(save, patient):
    path = save("cohort", train_images=grey(200), train_labels=np.arange(200) // 100, train_patient=np.array([str(p) for p in patient]))
    named = load_dataset(path)
    assert not any("more than one part" in n for n in named.notices) and "grouped by patient" in named.notices[0]
