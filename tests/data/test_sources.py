"Sources: registered, asked in order, found by name and by path; what load_dataset makes of what they hand out."
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import arrays, grey

from medstrat.data import sources
from medstrat.data.images import ImageSet
from medstrat.data.sources import Parts, Place, Source, find_source, forget_source, list_datasets, list_sources, load_dataset, register_source, row
from medstrat.data.splits import split


pytestmark = pytest.mark.usefixtures("alone")


def test_unknown_names_list_near_matches(save, tmp_path):
    save("lungs", **arrays(train=20))
    for name, near in (("pneumonamnist", "'pneumoniamnist'"), ("lung", "'lungs'"), ("digit", "'digits'")):
        with pytest.raises(ValueError, match=f"Did you mean .*{near}.*path of an .npz"): load_dataset(name, data_dir=tmp_path)
    with pytest.raises(ValueError, match="volumes are not supported"): load_dataset("OrganMNIST3D")
    with pytest.raises(FileNotFoundError, match="There is no file"): load_dataset(tmp_path / "none.npz")


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


def test_torn_patients_are_said_where_parts_are_given_or_grouping_is_refused(save):
    a = arrays(train=30, test=10)
    path = save("given", **a, train_patient=np.array([f"P{i // 2}" for i in range(30)]), test_patient=np.array(["P0", "P1", "P99", "", "", "", "P98", "P97", "P96", "P1"]))
    with pytest.warns(UserWarning, match=r"2 of 22 values of 'patient' occur in more than one part \(7 images\)"): s = load_dataset(path)
    assert len(s.notices) == 1 and len(s.train) == 30   # reported, not repaired
    path = save("free", **arrays(train=60), train_patient=np.arange(60) // 6)
    with pytest.warns(UserWarning, match="more than one part"): load_dataset(path, group=False)


def test_parts_of_two_sizes_need_one(save):
    path = save("sizes", **arrays(12, train=20), **arrays(16, test=8))
    with pytest.raises(ValueError, match="differ in channels, size or label.*image_size="): load_dataset(path)
    s = load_dataset(path, image_size=10)
    assert s.train.image_shape == s.test.image_shape == (10, 10, 1) and len(s.test) == 8


@pytest.mark.parametrize("kw, says", [
    (dict(size=64), "image_size=64"), (dict(size=32), "image_size=32"), (dict(image_size=1), "at least 2"), (dict(group="patient"), "no column 'patient'"),
])
def test_contradictory_requests(kw, says):
    with pytest.raises((ValueError, KeyError), match=says): load_dataset("digits", **kw)


def test_the_list(save, tmp_path):
    save("good", **arrays(train=40, val=10, test=10))
    save("breastmnist_64", **arrays(64, train=4))
    for name in ("mnist", "digits"): save(name, **arrays(train=4))   # a name that means something else is not listed twice
    table = list_datasets(tmp_path)
    assert list(table) == ["name", "images", "side", "channels", "classes", "where"] and table.name.is_unique
    assert table.name[:2].to_list() == ["digits", "mnist"] and table.name[-4:].to_list() == ["brats", "refuge", "her2", "good"]
    rows = table.set_index("name")
    assert rows.loc[["digits", "mnist", "colored-mnist", "breastmnist"], "where"].to_list() == ["embedded", "data folder", "data folder", "data folder (64)"]
    assert rows.loc["pathmnist"].to_list() == [107180, "28, 64, 128, 224", 3, 9, "download"]
    assert rows.loc["brats", ["images", "where"]].to_list() == [1140, "your own copy (agreement needed)"] and rows.loc["good"].to_list() == [60, "8", 1, 2, "data folder"]


# ---- the registry

@pytest.fixture
def made():
    "made(names, order, …) registers a source of random images; all are forgotten afterwards"
    classes = []
    def make(names=(), order=50, title="Made", **more):
        class Made(Source):
            def read(self, place, image_size=None, download=True): return Parts(place.name, ImageSet(grey(20), {"from": [title] * 20}), path=place.path)
        Made.__qualname__, Made.names, Made.order = title, names, order
        for k, v in more.items(): setattr(Made, k, v)
        classes.append(register_source(Made))
        return Made
    yield make
    for cls in classes: forget_source(cls)


def test_the_order_in_which_sources_are_asked():
    "Others may be added between"
    first = ["Digits", "Mnist", "ColoredDigits", "MedMNIST", "Files", "Brats", "Refuge", "Her2"]
    asked = [s for s in list_sources() if type(s).__name__ in first]
    assert [type(s).__name__ for s in asked] == first and len({s.order for s in asked}) == 8, "no two leave it to chance"


def test_known_sets_come_before_files_and_files_before_folders(save, tmp_path, monkeypatch):
    for name in ("digits", "colored-digits", "brats", "other"): save(name, **arrays(train=20))
    kinds = {n: type(find_source(n, data_dir=tmp_path).source).__name__ for n in ("digits", "Colored Digits", "mnist", "breastmnist_128", "BRATS", "other.npz")}
    assert list(kinds.values()) == ["Digits", "ColoredDigits", "Mnist", "MedMNIST", "Files", "Files"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "other"): (tmp_path / name).mkdir()
    assert len(load_dataset("digits").train) == 1438   # a folder that lies here hides no set
    with pytest.raises(ValueError, match="no collection that is known here"): find_source("here")
    assert find_source("other.npz") == find_source(Path("other.npz")) and find_source("other.npz").data_dir is None   # a file that lies here is meant as a path
    assert find_source(tmp_path / "none.npz").path == tmp_path / "none.npz"   # it is the reader who complains


def test_a_source_of_ones_own(made, tmp_path):
    made(("my set",), title="One", rows=lambda self, data_dir=None: [row("my set", 20, 8, 1, 0, "made")])
    s = load_dataset("My-Set", image_size=4)
    assert (s.name, s.train.image_shape, len(s.train), s.source, len(s.checksum)) == ("my set", (4, 4, 1), 16, None, 64) and len(s.notices) == 1
    assert list_datasets(tmp_path).set_index("name").loc["my set"].to_list() == [20, "8", 1, 0, "made"]
    with pytest.raises(ValueError, match="Did you mean 'my set'"): find_source("mysett")
    with pytest.raises(ValueError, match="size=64 chooses a file of MedMNIST; 'my set' is none"): load_dataset("my set", size=64)


def test_of_two_sources_with_one_name_the_lower_number_is_asked(made):
    made(("twice",), 60, "Late")
    assert load_dataset("twice").train.table["from"][0] == "Late"
    made(("twice", "digits"), 40, "Early")
    assert load_dataset("twice").train.table["from"][0] == "Early" and len(load_dataset("digits").train) == 1438
    made(("twice",), 40, "Early")   # registered again: in place of the first
    assert sum(s.order == 40 for s in list_sources()) == 1
    assert Source().rows() == [] and Source().known() == [] and Source().at(Path("x")) is None
    with pytest.raises(NotImplementedError, match="does not say how to read"): Source().read(Place(Source(), "x"))


def test_files_and_folders_of_another_kind(made, save, tmp_path):
    made(title="Text", at=lambda self, path: Place(self, path.stem, path) if path.suffix == ".txt" else None)
    (tmp_path / "a.txt").write_text("images")
    s = load_dataset(tmp_path / "a.txt")
    assert s.source == str(tmp_path / "a.txt") and s.checksum == hashlib.sha256(b"images").hexdigest()
    folder = tmp_path / "folder"
    folder.mkdir()
    def at(self, path):
        if path.is_dir(): return Place(self, type(self).__qualname__, path)
        raise ValueError("a folder is needed.")
    made(title="First", at=at)
    assert find_source(folder).name == "First" and len(load_dataset(save("x", **arrays(train=9))).train) == 7
    made(title="Second", at=at)
    with pytest.raises(ValueError, match=r"folder holds several collections \(First, Second\); give the folder of one"): find_source(folder)


def test_a_file_that_nobody_reads(monkeypatch, tmp_path):
    monkeypatch.setattr("medstrat.data.known.files.Files.at", lambda self, path: None)
    with pytest.raises(ValueError, match="This is no file that is known here: .*none.h5"): find_source(tmp_path / "none.h5")


def fresh(code, *paths):
    "What a fresh process prints"
    root = str(Path(sources.__file__).parents[2])
    return subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, cwd=root, env={**os.environ}, check=True).stdout.strip()


HEAVY = "('torch', 'torchvision', 'matplotlib', 'medmnist', 'pooch', 'scipy', 'nibabel', 'PIL', 'tqdm')"


def test_importing_and_looking_up_are_light():
    assert fresh(f"import medstrat.data.sources, sys; print([m for m in {HEAVY[:-1]}, 'sklearn', 'medstrat.data.known.files') if m in sys.modules])") == "[]"
    assert fresh(f"from medstrat.data.sources import *; import sys; find_source('pathmnist'); list_datasets(); print([m for m in {HEAVY} if m in sys.modules])") == "[]"


MINE = """
from medstrat.data.images import ImageSet
from medstrat.data.sources import Parts, Source, register_source

@register_source
class Mine(Source):
    names = ("mine",)
    def read(self, place, image_size=None, download=True):
        import numpy as np
        return Parts("mine", ImageSet(np.zeros((10, 4, 4), np.uint8)))
"""


def test_a_new_module_at_any_depth_is_found(tmp_path):
    "Adding a source is adding one module: nothing else is edited"
    for package in ("more", "more/deeper"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "more" / "deeper" / "mine.py").write_text(MINE)
    (tmp_path / "more" / "idle.py").write_text("raise ImportError('no source, so it is not loaded')")
    code = "import sys, medstrat.data; medstrat.data.__path__.append(sys.argv[1]); from medstrat.data.sources import load_dataset; print(len(load_dataset('mine').train))"
    assert fresh(code, tmp_path) == "8"


def test_what_was_registered_by_hand_stays():
    "Whoever works on the chapter of a source wants the version on the screen"
    code = ("from medstrat.data.sources import *; from medstrat.data.sources import Source\n"
            "@register_source\nclass Digits(Source): names = ('digits',)\n"
            "s = find_source('digits').source; print(type(s) is Digits, sum(type(x).__name__ == 'Digits' for x in list_sources()))")
    assert fresh(code) == "True 1"


def test_a_notice_warns_once():
    with pytest.warns(UserWarning, match="only once") as caught:
        for _ in range(3): assert sources.notice("only once") == "only once"
    assert len(caught) == 1
    sources.forget_notices()
    with pytest.warns(UserWarning, match="only once"): sources.notice("only once")
