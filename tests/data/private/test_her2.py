"HER2 patches in folders: small files of that layout, good ones and broken ones."
import numpy as np
import pandas as pd
import pytest
from conftest import write_her2
from PIL import Image

from medstrat.data.private.her2 import read_her2
from medstrat.data.sources import find_source, list_datasets, load_dataset


pytestmark = pytest.mark.usefixtures("alone")


def test_columns_and_images(her2):
    folder, means = her2
    s = read_her2(folder, image_size=12)
    assert (len(s), s.image_shape, s.images.dtype, s.target) == (36, (12, 12, 3), np.uint8, "label") and s.classes == {0: "HER2 1", 1: "HER2 2", 2: "HER2 3"}
    assert list(s.table) == ["label", "scanner", "score", "patch", "slide"] and s.table.score.dtype == float
    assert s.table.scanner.value_counts().to_dict() == {"FD": 12, "H": 12, "ND": 12} and all(isinstance(v, str) for v in s.table.scanner)
    for image, row in zip(s.images, s.table.itertuples(), strict=True):
        assert row.score == pytest.approx(means[row.patch]) and row.label == int(row.patch[1:]) * 3 // 12 and row.slide == f"S{int(row.patch[1:]) // 2}"
        code = row.scanner if row.scanner != "H" else "H1" if int(row.patch[1:]) % 2 else "H2"
        original = Image.open(folder / f"class{row.label + 1}" / f"{row.patch}_{code}.jpg")
        assert np.array_equal(image, np.asarray(original.resize((12, 12), Image.Resampling.BILINEAR)))
        assert abs(image.mean() - np.asarray(original).mean()) < 3   # no black bars
    assert read_her2(folder).image_shape == (128, 128, 3)


def test_other_endings_folder_names_and_modes(tmp_path):
    write_her2(tmp_path / "a", end=".png", names="Class{} JPG")
    write_her2(tmp_path / "b", end=".tif", names="class{}jpg")
    a, b = (read_her2(tmp_path / x, 12) for x in "ab")
    assert np.array_equal(a.images, b.images) and a.table.equals(b.table)
    for x in "ab": (tmp_path / x / "scores.csv").unlink()
    Image.new("L", (40, 40), 77).save(tmp_path / "a" / "Class1 JPG" / "gray_H1.png")
    Image.new("RGBA", (40, 40), (9, 8, 7, 255)).save(tmp_path / "a" / "Class1 JPG" / "rgba_H1.png")
    (tmp_path / "a" / "Class1 JPG" / "._P00_FD.png").write_bytes(b"resource fork")
    with pytest.warns(UserWarning, match="no scores.csv"): t = read_her2(tmp_path / "a", 12)
    assert len(t) == 38 and (t.images[t.table.patch == "gray"] == 77).all() and (t.images[t.table.patch == "rgba"] == (9, 8, 7)).all()


# ---- scores

def test_no_scores(tmp_path):
    write_her2(tmp_path, scores=False)
    said = []
    with pytest.warns(UserWarning, match="there is no scores.csv"): s = read_her2(tmp_path, 12, said)
    assert list(s.table) == ["label", "scanner", "score", "patch"] and s.table.score.isna().all() and s.table.score.dtype == float and len(said) == 1


@pytest.mark.parametrize("change, says", [
    (lambda t: t[1:], "1 of 12 patches have no score: P00"),
    (lambda t: pd.concat([t, t[:1].assign(patch="Q99")]), "1 patches in scores.csv have no image: Q99"),
    (lambda t: t.assign(**{f"s{j}": 90 for j in range(1, 8)}), r"8 of 12 patches lie in another class than their score says \(cut-points 33 and 66\): P00"),
])
def test_scores_that_do_not_fit_are_told(her2, change, says):
    folder, _ = her2
    change(pd.read_csv(folder / "scores.csv")).to_csv(folder / "scores.csv", index=False)
    said = []
    with pytest.warns(UserWarning, match=says): s = read_her2(folder, 12, said)
    assert len(s) == 36 and len(said) == 1
    assert any(n == said[0] for n in load_dataset(folder, image_size=12).notices)   # in every recorded run


def test_one_score_or_several(her2):
    folder, means = her2
    several = read_her2(folder, 12).table
    pd.DataFrame({"No": range(12), "Patch": list(means), "Score": list(means.values()), "s1": 3}).to_csv(folder / "scores.csv", index=False, sep=";")
    one = read_her2(folder, 12).table
    assert np.allclose(one.score, several.score) and "slide" not in one   # a column score goes before s1


@pytest.mark.parametrize("text, says", [
    ("patch,mean\nP00,3\n", r"scores.csv needs a column score, or columns s1, s2, … .*it has: patch, mean"),
    ("file,score\nP00,3\n", r"scores.csv needs a column patch.*it has: file, score"),
    ("patch,score\nP00,3\nP01,high\n", "scores are numbers from 0 to 100; row 3 says: high"),
    ("patch,s1,s2\nP00,3,100.5\n", "row 2 says: 3, 100.5"),
    ("patch,score\nP00,3\nP00,4\n", "every patch needs one row; row 3 says: P00"),
    ("patch,score\nP00,3\n,4\n", "every patch needs one row; row 3 says: nan"),
    ("", "scores.csv cannot be read as a table"),
    ("patch\nP00\n", "needs a column score.*it has: patch"),
    ("score\n3\n", "needs a column patch.*it has: score"),
    ("patch\tscore\nP00\t3,5\n", "row 2 says: 3,5"),
])
def test_faulty_scores(her2, text, says):
    (her2[0] / "scores.csv").write_text(text)
    with pytest.raises(ValueError, match=says): read_her2(her2[0], 12)


# ---- files

def test_images_that_are_damaged_are_named(her2):
    path = her2[0] / "class2" / "P05_FD.jpg"
    good = path.read_bytes()
    for content in (good[:len(good) // 2], b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="P05_FD.jpg cannot be read as an image"): read_her2(her2[0], 12)


@pytest.mark.parametrize("name, says", [
    ("class1/P00_A1.jpg", r"P00_A1.jpg: the name should be PATCH_SCANNER.*FD, ND, H1, H2. Rename"),
    ("class1/FD.jpg", "FD.jpg: the name should be PATCH_SCANNER"),
    ("class1/P00_FD.png", "the patch P00 comes twice from FD"),
    ("class3/P00_H1.jpg", r"the patch P00 lies in two classes: .*class1.*class3"),
    ("class1jpg/P00_FD.jpg", "two folders of one class: class1 and class1jpg"),
])
def test_names_that_do_not_fit(her2, name, says):
    (her2[0] / name).parent.mkdir(exist_ok=True)
    (her2[0] / name).touch()
    for read in (read_her2, find_source):   # a run fails before anything is loaded
        with pytest.raises(ValueError, match=says): read(her2[0])


def test_classes_that_are_empty_or_not_there(her2):
    folder, _ = her2
    for path in (folder / "class2").iterdir(): path.rename(path.with_suffix(".txt"))
    with pytest.raises(ValueError, match=r"no image of class 2 .*class2 holds: P04_FD.txt"): read_her2(folder)
    for path in (folder / "class2").iterdir(): path.unlink()
    with pytest.raises(ValueError, match="no image of class 2.*class2 is empty"): read_her2(folder)
    (folder / "class2").rmdir()
    with pytest.raises(ValueError, match="sub-folders class1, class2 and class3.*holds: class1/, class3/, scores.csv"): read_her2(folder)
    with pytest.raises(FileNotFoundError, match="There is no folder"): read_her2(folder / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"): read_her2(folder / "scores.csv")
    with pytest.raises(ValueError, match="image_size=1"): read_her2(folder, 1)


def test_what_is_no_image_is_passed_over_with_a_notice(her2):
    for name in ("notes.txt", "Thumbs.db"): (her2[0] / "class1" / name).touch()
    with pytest.warns(UserWarning, match=r"passed over, as they are no images: Thumbs.db, notes.txt \(2 files\)"): assert len(read_her2(her2[0], 12)) == 36


# ---- by name, by path, in runs

def test_names_and_paths(her2, monkeypatch, tmp_path):
    folder, _ = her2
    first = load_dataset("her2", data_dir=folder.parent, image_size=12)
    for name in ("HER2", "HER-2", "HER2 neu"): assert load_dataset(name, data_dir=folder.parent, image_size=12).name == "her2"
    for source in (folder, str(folder), folder.parent):   # the last one: the folder above
        assert np.array_equal(load_dataset(source, image_size=12).train.images, first.train.images)
    assert "HER2 was published with 723 images; this copy has 36" in first.notices[0]
    with pytest.raises(FileNotFoundError, match="HER2 is not there.*ask for it from the authors of Gavrielides et al. 2011 and Keay et al. 2013, since it is not public"):
        load_dataset("her2", data_dir=tmp_path)
    with pytest.raises(ValueError, match="Did you mean .*'her2'"): find_source("her3", data_dir=tmp_path)
    row = list_datasets(folder.parent).set_index("name").loc["her2"]
    assert row[["images", "channels", "classes", "where"]].to_list() == [36, 3, 3, "data folder"]


@pytest.mark.parametrize("group", ["patch", "slide"])
def test_no_patch_is_torn(tmp_path, group):
    write_her2(tmp_path / "many", 60)
    s = load_dataset(tmp_path / "many", image_size=12, carve_val=True, **({} if group == "patch" else {"group": "slide"}))
    seen = [set(getattr(s, p).table[group]) for p in s.split_names]
    assert s.split_names == ("train", "val", "test") and sum(map(len, seen)) == len(set.union(*seen)) == (60 if group == "patch" else 30)
    for p in s.split_names:
        t = getattr(s, p).table
        assert set(t.label) == {0, 1, 2} and (t.groupby("patch").scanner.nunique() == 3).all()
    assert f"grouped by {group}" in s.notices[-1]


def test_at_the_cut_points_both_classes_pass(her2):
    folder, means = her2
    edge = {p: (33, 66, 66)[int(p[1:]) // 4] for p in means} | {"P04": 33, "P05": 66.5}
    pd.DataFrame({"patch": list(edge), "score": list(edge.values())}).to_csv(folder / "scores.csv", index=False)
    said = []
    with pytest.warns(UserWarning, match="1 of 12 patches lie in another class"): read_her2(folder, 12, said)
    assert said == ["HER2: 1 of 12 patches lie in another class than their score says (cut-points 33 and 66): P05."]


def test_two_copies_side_by_side(her2):
    write_her2(her2[0].parent / "again")
    with pytest.raises(ValueError, match="Several have them: HER2, again; give one"): read_her2(her2[0].parent)
