"Data: bad input, faults on disk and in the network, and properties that hold for any set of images."
import functools
import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from medstrat.data import folders
from medstrat.data import images
from medstrat.data import sources as named
from medstrat.data.images import ImageSet
from medstrat.data.sources import list_datasets, load_dataset
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
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folders._said.clear()


@pytest.fixture
def serve(tmp_path):
    "Serve a folder on this machine: serve(folder) → address"
    servers = []
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    def start(folder):
        s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=s.serve_forever, daemon=True).start()
        servers.append(s)
        return f"http://127.0.0.1:{s.server_port}/"
    yield start
    for s in servers: s.shutdown(); s.server_close()


# ---- splits

@pytest.mark.parametrize("patient", [
    np.arange(200) // 5, [f"P{i // 4}" for i in range(200)],
    np.where(np.arange(200) < 150, np.arange(200) // 3 % 30, np.nan),           # numbers that come again in both classes, and gaps
    [None if i % 2 else f"P{i // 10}" for i in range(200)], ["" if i > 50 else f"P{i % 9}" for i in range(200)],
])
def test_patients_of_a_file_stay_whole_unasked(save, patient):
    path = save("cohort", train_images=grey(200), train_labels=np.arange(200) // 100, train_patient=np.array([str(p) for p in patient]))
    named = load_dataset(path)
    assert not any("more than one part" in n for n in named.notices) and "grouped by patient" in named.notices[0]


def test_torn_patients_are_said_where_parts_are_given_or_grouping_is_refused(save):
    a = arrays(train=30, test=10)
    path = save("given", **a, train_patient=np.array([f"P{i // 2}" for i in range(30)]), test_patient=np.array(["P0", "P1", "P99", "", "", "", "P98", "P97", "P96", "P1"]))
    with pytest.warns(UserWarning, match=r"2 of 22 values of 'patient' occur in more than one part \(7 images\)"): s = load_dataset(path)
    assert len(s.notices) == 1 and len(s.train) == 30   # reported, not repaired
    path = save("free", **arrays(train=60), train_patient=np.arange(60) // 6)
    with pytest.warns(UserWarning, match="more than one part"): load_dataset(path, group=False)


def test_the_split_of_digits_is_frozen():
    "Recorded numbers rest on this split: if this fails, every result on digits has to be made again."
    d = load_dataset("digits", carve_val=True)
    assert [len(d.train), len(d.val), len(d.test)] == [1295, 143, 359]
    sums = [hashlib.md5(getattr(d, p).images.tobytes()).hexdigest()[:8] for p in d.split_names]
    assert sums == FROZEN, sums


FROZEN = ["581f2d0d", "035dc513", "d85b1d16"]  # first digits of the MD5 of the images of train, val, test


# ---- identity and target

def test_source_and_checksum_tell_sets_apart(save, tmp_path, monkeypatch):
    a = arrays(train=40, test=10)
    one, two = save("xrays", **a), tmp_path / "other" / "xrays.npz"
    two.parent.mkdir()
    np.savez(two, **a | {"train_images": a["train_images"][::-1]})
    x, y = load_dataset(one), load_dataset(two)
    assert x.name == y.name and x.checksum != y.checksum and x.source == str(one.resolve()) and y.source == str(two.resolve())
    assert x.checksum == hashlib.sha256(one.read_bytes()).hexdigest() == load_dataset(one, image_size=5, target="label").checksum
    monkeypatch.chdir(tmp_path)
    assert load_dataset("xrays.npz").source == x.source
    d = load_dataset("digits")
    assert d.source is None and d.checksum == load_dataset("digits", carve_val=True, image_size=9).checksum != load_dataset("colored-digits").checksum
    bare = split(grey(20))
    assert (bare.source, bare.checksum) == (None, None)


def test_any_column_of_classes_can_be_the_target(save):
    n = {"train": 30, "test": 12}
    more = {f"{p}_{k}": v for p, m in n.items() for k, v in {
        "labels": rng.randint(0, 2, (m, 14)), "scanner": np.array(["B", "A", "C"])[np.arange(m) % 3], "code": 254837009000 + np.arange(m) % 2,
        "hash": np.uint64(2**63) + np.arange(m, dtype=np.uint64) % np.uint64(2), "age": rng.rand(m) * 90, "gaps": np.where(np.arange(m) < 2, np.nan, 1)}.items()}
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


def test_parts_of_two_sizes_need_one(save):
    path = save("sizes", **arrays(12, train=20), **arrays(16, test=8))
    with pytest.raises(ValueError, match="differ in channels, size or label.*image_size="): load_dataset(path)
    s = load_dataset(path, image_size=10)
    assert s.train.image_shape == s.test.image_shape == (10, 10, 1) and len(s.test) == 8


# ---- files

def test_named_files_and_paths(save, tmp_path, monkeypatch):
    path = save("My-Set", **arrays(train=40, val=10, test=10), train_view=np.zeros((40, 1), np.uint8), val_view=np.zeros(10), test_view=np.ones(10))
    for source in (path, str(path)): assert list(load_dataset(source).test.table) == ["label", "view"]
    assert load_dataset("myset", data_dir=tmp_path).name == "My-Set" and load_dataset("my_set.npz", data_dir=str(tmp_path)).train.classes == {0: "0", 1: "1"}
    monkeypatch.setenv("MEDSTRAT_DATA", str(tmp_path))
    assert len(load_dataset("MY SET").val) == 10
    assert list_datasets().set_index("name").loc["My-Set", "images"] == 60


def test_unknown_names_list_near_matches(save, tmp_path):
    save("lungs", **arrays(train=20))
    for name, near in (("pneumonamnist", "'pneumoniamnist'"), ("lung", "'lungs'"), ("digit", "'digits'")):
        with pytest.raises(ValueError, match=f"Did you mean .*{near}.*path of an .npz"): load_dataset(name, data_dir=tmp_path)
    with pytest.raises(ValueError, match="volumes are not supported"): load_dataset("OrganMNIST3D")
    with pytest.raises(FileNotFoundError, match="There is no file"): load_dataset(tmp_path / "none.npz")


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


def test_missing_parts_are_made_and_given_parts_kept(save):
    full = arrays(train=100, val=10, test=10)
    part = {k: v for k, v in full.items() if not k.startswith("test")}
    s = load_dataset(save("part", **part), carve_val=True)
    assert [len(s.train), len(s.val), len(s.test)] == [80, 10, 20] and "without a test split" in s.notices[0] and len(s.notices) == 1
    assert np.array_equal(s.val.images[..., 0], full["val_images"])
    s = load_dataset(save("full", **full), carve_val=True)
    assert s.notices == () and np.array_equal(s.train.images[..., 0], full["train_images"])
    s = load_dataset(save("bare", train_images=grey(50)))
    assert s.train.target is None and s.split_names == ("train", "test")
    with pytest.raises(ValueError, match="no single label column"): _ = s.train.labels


def test_groups(save):
    a = arrays(train=100)
    s = load_dataset(save("grouped", **a, train_patient=np.arange(100) // 4), group="patient", carve_val=True)
    seen = [set(getattr(s, p).column("patient")) for p in s.split_names]
    assert sum(map(len, seen)) == 25
    path = save("torn", **arrays(train=20, test=20), train_patient=np.arange(20), test_patient=np.arange(20) + 15)
    with pytest.warns(UserWarning, match="5 of 35 values of 'patient'"): assert len(load_dataset(path, group="patient").notices) == 1
    with pytest.raises(KeyError, match="no column 'scanner'"): load_dataset(path, group="scanner")


def test_several_labels_an_image(save, tmp_path):
    n = {"train": 20, "val": 5, "test": 5}
    many = {f"{p}_{k}": v for p, m in n.items() for k, v in {"images": grey(m, 28), "labels": rng.randint(0, 2, (m, 14))}.items()}
    save("chestmnist", **many)
    with pytest.warns(UserWarning, match="not the official file"): s = load_dataset("ChestMNIST", data_dir=tmp_path)
    assert s.train.target is None and list(s.train.table)[:2] == ["atelectasis", "cardiomegaly"]
    with pytest.raises(ValueError, match="no single label column.*atelectasis.*target="): _ = s.test.labels
    one = ImageSet(s.train.images, s.train.table, target="edema")
    assert set(one.labels) <= {0, 1}


def test_a_file_that_is_not_official_is_used_with_one_notice(save, tmp_path):
    save("pneumoniamnist", **arrays(28, train=20, val=5, test=5))
    with pytest.warns(UserWarning, match="pneumoniamnist.npz is not the official file") as caught:
        s, again = load_dataset("pneumoniamnist", data_dir=tmp_path), load_dataset("pneumoniamnist", data_dir=tmp_path)
    assert len(caught) == 1 and len(s.notices) == len(again.notices) == 1
    assert s.train.classes == {0: "normal", 1: "pneumonia"} and str(tmp_path) not in s.notices[0]
    save("pneumoniamnist_64", **arrays(28, train=20, val=5, test=5))
    with pytest.raises(ValueError, match="holds images of 28 pixels"): load_dataset("pneumoniamnist", size=64, data_dir=tmp_path)


# ---- network

def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MEDSTRAT_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError) as e: load_dataset("breastmnist", size=128)
    for part in ("breastmnist_128.npz is not there", "downloading it failed", str(tmp_path / "absent"), str(tmp_path / "cache"),
                 "https://zenodo.org/records/10519652/files/breastmnist_128.npz", "MEDSTRAT_DATA"): assert part in str(e.value)
    with pytest.raises(FileNotFoundError, match="download=False was given"): load_dataset("mnist", download=False)
    assert not list(tmp_path.rglob("*.npz*"))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="none of the folders can be written to"): load_dataset("breastmnist", data_dir=tmp_path / "file" / "sub")


def test_medmnist_download(save, serve, tmp_path, monkeypatch, capfd):
    path = save("source", **arrays(64, train=20, val=5, test=5))
    info = {**named.medmnist_info()["breastmnist"], "url_64": serve(tmp_path) + "source.npz", "MD5_64": hashlib.md5(path.read_bytes()).hexdigest()}
    monkeypatch.setitem(named.medmnist_info(), "breastmnist", info)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        s = load_dataset("breastmnist", size=64, data_dir=tmp_path / "new")
    assert s.name == "breastmnist_64" and s.notices == () and "100%" in capfd.readouterr().err
    path.unlink()  # the second time it is there
    assert len(load_dataset("breastmnist_64", data_dir=tmp_path / "new").train) == 20
    info["MD5"], info["url"] = "0" * 32, info["url_64"]
    save("source", **arrays(28, train=20))
    with pytest.raises(FileNotFoundError, match="downloading it failed .*does not match"): load_dataset("breastmnist", data_dir=tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["breastmnist_64.npz"]


def test_mnist_download(serve, tmp_path, monkeypatch):
    MNIST = pytest.importorskip("torchvision").datasets.MNIST
    def idx(a): return bytes([0, 0, 8, a.ndim]) + np.array(a.shape, ">i4").tobytes() + a.tobytes()
    data = {"train-images": grey(30, 28), "train-labels": (np.arange(30) % 10).astype(np.uint8), "t10k-images": grey(10, 28), "t10k-labels": np.arange(10, dtype=np.uint8)}
    resources = []
    for key, a in data.items():
        raw = gzip.compress(idx(a))
        (tmp_path / f"{key}.gz").write_bytes(raw)
        resources.append((f"{key}.gz", hashlib.md5(raw).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [serve(tmp_path) + "nothing/here/", serve(tmp_path)])  # the first mirror is broken
    monkeypatch.setattr(MNIST, "resources", resources)
    with pytest.warns(UserWarning, match="not the official MNIST"): s = load_dataset("mnist", data_dir=tmp_path / "new")
    assert np.array_equal(s.train.images[..., 0], data["train-images"]) and np.array_equal(s.test.labels, data["t10k-labels"]) and s.val is None
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mnist.npz"]
    (tmp_path / "t10k-labels.gz").unlink()
    with pytest.raises(FileNotFoundError, match="mnist.npz is not there, and downloading it failed"): load_dataset("mnist", data_dir=tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


# ---- the rest

def test_importing_is_light():
    code = "import medstrat.data.sources, sys; print([m for m in ('torch', 'torchvision', 'sklearn', 'matplotlib', 'medmnist', 'pooch', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(images.__file__).parents[2], env={**os.environ})
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


REAL = os.environ.get("MEDSTRAT_DATA")


@pytest.mark.skipif(not REAL or not (Path(REAL) / "mnist.npz").is_file(), reason="needs mnist.npz in MEDSTRAT_DATA")
def test_the_real_mnist():
    s = load_dataset("mnist", data_dir=REAL)
    assert [len(s.train), len(s.test)] == [60000, 10000] and s.val is None
    assert np.bincount(s.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
