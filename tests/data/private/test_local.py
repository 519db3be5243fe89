"Collections in folders: found by name, recognised by layout, counted."
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from medstrat import cli
from medstrat.data.names import plain
from medstrat.data.private.brats import read_brats
from medstrat.data.private.local import Collection, squared
from medstrat.data.private.refuge import read_refuge
from medstrat.data.sources import find_source, list_datasets, list_sources, load_dataset


pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("read", [read_brats, read_refuge, load_dataset])
def test_folders_that_are_something_else(read, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no f"): read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is empty"): read(tmp_path / "empty")
    (tmp_path / "other" / "scans").mkdir(parents=True)
    with pytest.raises(ValueError, match="other holds: scans/"): read(tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises((NotADirectoryError, ValueError), match="is a file|no npz"): read(tmp_path / "file")


def test_names_and_paths(brats, refuge, monkeypatch, tmp_path):
    data = brats[0].parent
    for name in ("brats", "BRATS", "BraTS 2018", "MICCAI_BraTS_2018_Data_Training"): assert load_dataset(name, data_dir=data, image_size=16).name == "brats"
    for name in ("refuge", "REFUGE2", "refuge-2"): assert load_dataset(name, data_dir=data, image_size=16).name == "refuge"
    monkeypatch.setenv("MEDSTRAT_DATA", str(data))
    first = load_dataset("brats", image_size=16)
    for source in (brats[0], str(brats[0])): assert np.array_equal(load_dataset(source, image_size=16).train.images, first.train.images)
    inner = tmp_path / "clinic" / "unpacked"
    inner.mkdir(parents=True)
    brats[0].rename(inner / brats[0].name)
    assert load_dataset(inner, image_size=16).name == "unpacked"   # the folder above, under a name of its own
    with pytest.raises(FileNotFoundError, match="BraTS 2018 is not there.*agreement"): find_source("brats")
    monkeypatch.chdir(inner.parent)
    assert np.array_equal(load_dataset("unpacked", image_size=16).train.images, first.train.images)
    with pytest.raises(ValueError, match="Did you mean 'refuge'"): find_source("refuje")
    with pytest.raises(ValueError, match="image_size=64"): load_dataset("refuge", size=64)


def test_the_lists(brats, refuge, tmp_path):
    table = list_datasets(brats[0].parent).set_index("name")
    assert table.loc[["brats", "refuge"], "images"].to_list() == [40, 12] and set(table.loc[["brats", "refuge"], "where"]) == {"data folder"}
    (brats[0] / "LGG").rename(brats[0] / "lost")
    assert "unreadable" in list_datasets(brats[0].parent).set_index("name").loc["brats", "where"]
    got = CliRunner().invoke(cli.app, ["datasets", "--data-dir", str(tmp_path)])
    assert got.exit_code == 0 and got.output.count("your own copy (agreement needed)") == sum(isinstance(s, Collection) for s in list_sources())


def test_a_name_without_a_copy_or_with_two(tmp_path):
    for name, title, where in (("BraTS-2018", "BraTS 2018", "med.upenn.edu"), ("REFUGE", "REFUGE-2", "refuge.grand-challenge.org"), ("her2", "HER2", "the authors of Gavrielides")):
        with pytest.raises(FileNotFoundError, match=f"{title} is not there.*ask for it .*{where}.*called {plain(name)[:4]}"): find_source(name, data_dir=tmp_path)
    (tmp_path / "BRATS").mkdir()
    with pytest.raises(ValueError, match="BRATS is empty"): find_source("brats", data_dir=tmp_path)
    assert list_datasets(tmp_path).set_index("name").loc["brats", "where"] == "data folder (unreadable: ValueError)"
    (tmp_path / "Brats18").mkdir()
    with pytest.raises(ValueError, match="'brats2018' may mean .*BRATS or .*Brats18. Give one of the paths"): find_source("brats2018", data_dir=tmp_path)


def test_layouts(brats, refuge, her2):
    data = her2[0].parent
    for folder, name in ((brats[0], "brats"), (refuge, "refuge"), (refuge / "Training400", "refuge"), (her2[0], "her2")):
        place = find_source(folder)
        assert (place.name, place.path) == (name, folder)
    with pytest.raises(ValueError, match=r"several collections \(brats, refuge, her2\); give the folder of one"): find_source(data)
    inner = load_dataset(refuge / "Training400", image_size=16)
    assert inner.name == "Training400" and inner.source == str((refuge / "Training400").resolve())   # a name of its own
    (data / "mixed" / "b").mkdir(parents=True)
    (data / "mixed" / "a.txt").touch()
    with pytest.raises(ValueError) as e: find_source(data / "mixed")
    for text in ("no collection that is known here: ", "mixed holds: a.txt, b/.", "BraTS needs a folder with the sub-folders HGG and LGG", "REFUGE needs JPEG images of both classes",
                 "HER2 needs a folder with the sub-folders class1, class2 and class3"): assert text in str(e.value)
    assert str(e.value).count("holds:") == 1


def test_a_collection_says_how_it_is_listed_and_read():
    for method, args in ((Collection().files, (None,)), (Collection().images, (None, 8, []))):
        with pytest.raises(NotImplementedError): method(*args)


@given(w=st.integers(2, 40), h=st.integers(2, 40), size=st.integers(2, 30))
def test_a_square_is_padded_with_black_in_the_middle(w, h, size):
    x = squared(Image.new("L", (w, h), 255), max(w, h))
    rows, columns = np.flatnonzero(x.any(1)), np.flatnonzero(x.any(0))
    assert (len(rows), len(columns)) == (h, w) and abs(rows[0] - (max(w, h) - h) / 2) <= .5 and abs(columns[0] - (max(w, h) - w) / 2) <= .5
    assert squared(Image.new("RGB", (w, h)), size).shape == (size, size, 3)
