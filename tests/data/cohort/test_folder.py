"A folder of image files as a set: what is in it, what is not, and that every file is accounted for."
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medstrat.data.cohort.decoding import decode
from medstrat.data.cohort.folder import read_folder
from medstrat.data.cohort.pseudonyms import Pseudonyms
from medstrat.data.cohort.rules import Rules
from medstrat.data.cohort.store import Unreadable
from medstrat.data.cohort.tables import write_csv
from medstrat.data.sources import find_source, load_dataset

pytestmark = pytest.mark.usefixtures("alone")
S8 = Rules(size=8)
BROKEN = b"\x89PNG\r\n\x1a\n" + bytes(40)


def picture(path, value=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (12, 12)) if value is None else np.full((12, 12), value)
    Image.fromarray(x.astype(np.uint8)).save(path)


@pytest.fixture
def flat(tmp_path):
    for i in range(20): picture(tmp_path / "flat" / f"scan{i:02}.png", 10 * i)
    return tmp_path / "flat"


@pytest.fixture
def classes(tmp_path):
    for i in range(24): picture(tmp_path / "classes" / ("ill", "well")[i % 2] / f"{i:02}.png", 10 * i)
    return tmp_path / "classes"


def table(folder, rows, name="table.csv"):
    write_csv(pd.DataFrame(rows), folder.parent / name)
    return folder.parent / name


# ---- without a table

def test_a_flat_folder(flat):
    c = read_folder(flat, rules=S8)
    assert c.images.shape == (20, 8, 8, 1) and list(c.images.table) == ["file"] and c.images.target is None and c.group is None and c.joined is None
    assert np.array_equal(c.images.images[:, 0, 0, 0], 10 * np.arange(20)) and c.images.name == "flat"
    assert list(c.files.status) == ["read"] * 20 and isinstance(c.images.images, np.memmap)


def test_sub_folders_are_classes(classes):
    c = read_folder(classes, rules=S8)
    assert c.images.target == "folder" and c.images.classes == {0: "ill", 1: "well"} and np.bincount(c.images.labels).tolist() == [12, 12]
    assert any("taken as classes" in n and "ill (12), well (12)" in n for n in c.notices)
    assert [c.images.classes[y] for y in c.images.labels] == [f.partition("/")[0] for f in c.images.table.file]


def test_many_sub_folders_are_none(tmp_path):
    for i in range(42): picture(tmp_path / "many" / f"p{i // 2:02}" / f"{i % 2}.png", i)
    c = read_folder(tmp_path / "many", rules=S8)
    assert c.images.target is None and c.images.table.folder[0] == "p00" and any("not taken as classes" in n and "target='folder'" in n for n in c.notices)
    s = load_dataset(tmp_path / "many", reading=S8, target="folder", group=False)
    assert len(s.train.classes) == 21


def test_every_file_has_its_line(classes):
    (classes / "ill" / "broken.png").write_bytes(BROKEN)
    (classes / "notes.txt").write_text("text")
    (classes / ".hidden").write_text("x")
    Image.fromarray(np.repeat(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), 3, 0)).save(classes / "well" / "colour.png")
    c = read_folder(classes, rules=S8)
    files = c.files.set_index("file")
    assert files.index.is_unique and {p.relative_to(classes).as_posix() for p in classes.rglob("*") if p.is_file() and p.name[0] != "."} <= set(files.index)
    assert files.loc["ill/broken.png", ["status", "kind", "pictures"]].tolist() == ["skipped", "damaged", 0] and files.loc["ill/broken.png", "reason"]
    assert files.loc["notes.txt", ["status", "kind"]].tolist() == ["skipped", "no image"]
    assert files.loc["well/colour.png", "status"] == "converted" and files.loc["well/colour.png", "how"] and files.loc["ill/00.png", ["status", "how", "width", "format"]].tolist() == ["read", "", 12, "PNG"]
    assert (files.pictures > 0).sum() == len(c.images) == 25 and ((files.status == "skipped") == (files.pictures == 0)).all()
    assert list(c.files)[:10] == ["file", "status", "how", "kind", "reason", "format", "width", "height", "bits", "pictures"]
    assert c.notices[0].startswith("25 of 28 files were read") and "1 files were converted" in c.notices[1]


def test_too_many_failures_bring_the_list_along(flat):
    for i in range(4): (flat / f"scan{i:02}.png").write_bytes(BROKEN)
    (flat / "note.txt").write_text("x")
    with pytest.raises(Unreadable, match="4 of the 20 image files") as e: read_folder(flat, rules=S8)
    assert len(e.value.files) == 21 and e.value.files.status.value_counts().to_dict() == {"read": 16, "skipped": 5}
    with pytest.raises(ValueError, match="max_failed=0.05"): load_dataset(flat, reading=S8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        s = load_dataset(flat, reading=S8, max_failed=.5)
    assert len(s.train) + len(s.test) == 16 and any("4 image files could not be read" in str(w.message) for w in caught)


# ---- with one

def test_columns_gaps_and_what_is_left_over(classes):
    rows = [dict(name=f"{i:02}.png", age=40 + i, label="xyz"[i % 3], folder="F", patient=f"p{i // 2}") for i in range(22)] + [dict(name="99.png", age=1, label="x", folder="F", patient="p99")]
    c = read_folder(classes, table(classes, rows), rules=S8)
    t = c.images.table
    assert list(t) == ["file", "folder", "name", "age", "label", "folder_of_table", "patient"] and c.images.target == "label" and c.group == "patient"
    assert t.age.dtype == "Int64" and t.age.isna().sum() == 2 and (t.age.dropna() == 40 + t.file[t.age.notna()].str[-6:-4].astype(int)).all()
    assert c.images.classes == {-1: "no label", 0: "x", 1: "y", 2: "z"} and (c.images.labels < 0).sum() == 2
    said = "\n".join(c.notices)
    assert "2 files without a row" in said and "1 rows without a file, such as '99.png'" in said and "2 of 24 images have no label in 'label'" in said


def test_ids_that_come_twice_are_never_guessed(flat):
    rows = [dict(file=f"scan{i:02}", x=i) for i in range(20)] + [dict(file="scan03", x=77)]
    c = read_folder(flat, table(flat, rows), rules=S8)
    assert c.images.table.x.isna().tolist() == [i == 3 for i in range(20)] and any("scan03" in n and "no single row" in n for n in c.notices)
    assert "file_of_table" not in c.images.table


def test_a_table_of_patients(tmp_path):
    for i in range(30): picture(tmp_path / "f" / f"p{i // 3}" / f"{i}.png", i)
    c = read_folder(tmp_path / "f", table(tmp_path / "f", dict(id=[f"p{i}" for i in range(10)], age=range(50, 60))), rules=S8, patient="id")
    assert c.images.target is None and c.group == "id" and c.images.table.age.tolist() == [50 + int(f[1]) for f in c.images.table.folder]
    s = load_dataset(tmp_path / "f", table=tmp_path / "table.csv", reading=S8, group="id")
    assert not set(s.train.column("id")) & set(s.test.column("id")) and len(s.train) % 3 == 0


def test_a_table_of_one_column_and_one_inside_the_folder(flat):
    path = table(flat / "x", dict(file=[f"scan{i:02}.png" for i in range(20)]))
    assert path.parent == flat
    c = read_folder(flat, path, rules=S8)
    assert list(c.images.table) == ["file"] and c.files.set_index("file").loc["table.csv", "reason"] == "the table that was given"


@pytest.mark.parametrize("how, error, says", [
    (dict(table="fits none"), ValueError, "scan00.png.*heart"), (dict(key="agee"), KeyError, "agee.*Did you mean 'age'"), (dict(table="none.csv"), FileNotFoundError, "none.csv"), (dict(patient="ward"), KeyError, "ward"),
])
def test_errors_come_before_the_decoding(flat, monkeypatch, how, error, says):
    good = table(flat, dict(file=[f"scan{i:02}.png" for i in range(20)], age=range(120, 140)))
    bad = table(flat, dict(file=["heart1", "heart2"], age=[71, 72]), "bad.csv")
    if "patient" not in how: monkeypatch.setattr("medstrat.data.cohort.folder.read_all", lambda *a, **k: pytest.fail("decoded"))
    how = dict(table=good, rules=S8) | how
    if how["table"] == "fits none": how["table"] = bad
    with pytest.raises(error, match=says): read_folder(flat, **how)


def test_measurements_are_no_label(flat):
    c = read_folder(flat, table(flat, dict(file=[f"scan{i:02}.png" for i in range(20)], Label=np.arange(20) + .5)), rules=S8)
    assert c.images.target is None and any("There is no label" in n and "measurements" in n for n in c.notices)


def test_slices_of_one_file_stay_together(tmp_path):
    import nibabel as nib
    (tmp_path / "vol").mkdir()
    for i in range(8): nib.save(nib.Nifti1Image(np.random.default_rng(i).integers(0, 1000, (10, 11, 12)).astype(np.int16), np.eye(4)), tmp_path / "vol" / f"v{i}.nii.gz")
    c = read_folder(tmp_path / "vol", rules=Rules(size=8, every=4))
    assert len(c.images) == 24 and c.group == "file" and c.images.table.file.value_counts().unique().tolist() == [3] and "slice" in c.images.table
    assert c.files.pictures.tolist() == [3] * 8 and c.rules.levels == "range" and c.rules.low is not None
    s = load_dataset(tmp_path / "vol", reading=dict(size=8, every=4))
    assert not set(s.train.column("file")) & set(s.test.column("file"))
    rows = table(tmp_path / "vol", dict(file=[f"v{i}" for i in range(7)], patient=[i // 2 for i in range(7)]))
    c = read_folder(tmp_path / "vol", rows, rules=Rules(size=8, every=4))
    assert c.group == "patient" and c.images.table.patient.nunique() == 5 and c.images.table.patient.notna().all() and any("count as one patient" in n for n in c.notices)


# ---- the source

def test_as_a_set(classes):
    s = load_dataset(classes, reading=dict(size=8), carve_val=True)
    assert s.split_names == ("train", "val", "test") and s.name == "classes" and s.source == str(classes.resolve()) and s.train.classes == {0: "ill", 1: "well"}
    assert len(s.files) == 24 and s.reading["size"] == 8 and s.reading["colour"] == "gray" and len(s.checksum) == 64
    assert load_dataset("digits").files is None
    assert load_dataset(str(classes), image_size=16).train.image_shape == (16, 16, 1) and load_dataset(classes).train.image_shape == (64, 64, 1)
    assert load_dataset(classes, image_size=16).reading["size"] == 16, "read at that size, not resized to it"
    both = load_dataset(classes, reading=S8, image_size=16)
    assert both.train.image_shape == (16, 16, 1) and both.reading["size"] == 8


def test_the_checksum_is_that_of_the_content(classes):
    first = load_dataset(classes, reading=S8).checksum
    assert load_dataset(classes, reading=dict(size=8)).checksum == first != load_dataset(classes, reading=dict(size=9)).checksum
    path = table(classes, dict(file=[f"{i:02}.png" for i in range(24)], age=range(124, 148)))
    assert load_dataset(classes, reading=S8, table=path).checksum != first
    picture(classes / "ill" / "00.png", 200)
    assert load_dataset(classes, reading=S8).checksum != first


def test_only_what_nobody_else_takes(tmp_path, brats, refuge):
    assert type(find_source(brats[0]).source).__name__ == "Brats" and type(find_source(refuge).source).__name__ == "Refuge"
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "HER2").mkdir()
    picture(tmp_path / "HER2" / "P00_FD.png")   # called like a collection, which finds a fault in it
    for name in ("empty", "texts", "HER2"):
        with pytest.raises(ValueError, match="no collection that is known here"): find_source(tmp_path / name)
    (tmp_path / "texts" / "deep").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "texts" / "deep" / "IM0001", "PNG")
    assert type(find_source(tmp_path / "texts").source).__name__ == "Folder", "told by its content"


@pytest.mark.parametrize("how", [dict(table="x.csv"), dict(key="id"), dict(reading=dict(size=8)), dict(max_failed=.1)])
def test_options_of_folders_for_other_sets(how):
    with pytest.raises(ValueError, match=f"{next(iter(how))}=… belongs to a folder of image files; 'digits' is none"): load_dataset("digits", **how)


def test_unknown_reading_rules(classes):
    with pytest.raises(ValueError, match="Did you mean 'levels'"): load_dataset(classes, reading=dict(level="range"))


def test_a_target_with_gaps(classes):
    path = table(classes, dict(file=[f"{i:02}.png" for i in range(20)], view=["PA", "AP"] * 10))
    s = load_dataset(classes, reading=S8, table=path, target="view")
    assert sum((getattr(s, p).labels < 0).sum() for p in s.split_names) == 4 and s.train.classes == {-1: "no label", 0: "AP", 1: "PA"}


# ---- numbers instead of names

def test_no_name_is_handed_out(classes, tmp_path):
    for i in (3, 5): (classes / "well" / f"{i:02}.png").rename(classes / "well" / f"Müller{i:02}.png")
    (classes / "ill" / "Meier.png").write_bytes(BROKEN)
    names = [p.relative_to(classes).as_posix() for p in sorted(classes.rglob("*.png"))]
    rows = table(classes, dict(id=[Path(n).stem for n in names] + ["Schulze"], age=range(60, 61 + len(names)), patient=[f"Patient-{i // 2}" for i in range(len(names) + 1)], path=[f"/data/{n}" for n in names] + ["x"]))
    named = read_folder(classes, rows, rules=S8)
    c = read_folder(classes, rows, rules=S8, pseudonyms=Pseudonyms(tmp_path / "key.csv"))
    text = c.images.table.to_csv() + c.files.to_csv() + "\n".join(c.notices) + repr(c.joined)
    text += str(c.images.classes)
    for name in ("Müller", "Meier", "Schulze", "Patient-", ".png", "/data", "ill", "well"): assert name not in text, name
    assert np.array_equal(c.images.images, named.images.images) and c.images.labels.tolist() == named.images.labels.tolist() and set(c.images.classes.values()) == {"folder 1", "folder 2"}
    key = pd.read_csv(tmp_path / "key.csv")
    back = dict(key[key.kind == "file"][["number", "name"]].itertuples(index=False))
    assert [back[n] for n in c.images.table.file] == named.images.table.file.tolist() and set(back.values()) >= set(named.files.file)
    assert c.files.file.is_monotonic_increasing and c.images.table.age.tolist() == named.images.table.age.tolist()
    assert (pd.factorize(c.images.table.patient)[0] == pd.factorize(named.images.table.patient)[0]).all()
    again = read_folder(classes, rows, rules=S8, pseudonyms=Pseudonyms(tmp_path / "key.csv"))
    assert again.images.table.equals(c.images.table) and again.files.equals(c.files)


def test_folders_of_patients_are_numbered_and_sentences_keep_their_numbers(tmp_path):
    for i in range(16): picture(tmp_path / "c" / f"Müller_{i // 2}" / f"{i % 2}.png", 10 * i)
    named, c = read_folder(tmp_path / "c", rules=S8), read_folder(tmp_path / "c", rules=S8, pseudonyms=Pseudonyms(tmp_path / "key.csv"))
    text = c.images.table.to_csv() + c.files.to_csv() + "\n".join(c.notices) + str(c.images.classes)
    assert "Müller" not in text and c.images.labels.tolist() == named.images.labels.tolist()
    assert c.notices[:2] == named.notices[:2] and "padded with gray 0" in c.notices[1]
    back = {n: name for name, n in Pseudonyms(tmp_path / "key.csv").numbers["folder"].items()}
    assert {k: back[int(v.removeprefix("folder "))] for k, v in c.images.classes.items()} == named.images.classes


def test_nor_when_it_ends_in_an_error(flat, tmp_path):
    for i in range(4): (flat / f"scan{i:02}.png").write_bytes(BROKEN)
    with pytest.raises(Unreadable) as e: read_folder(flat, rules=S8, pseudonyms=Pseudonyms(tmp_path / "key.csv"))
    assert "scan" not in str(e.value) + e.value.files.to_csv()


def test_pictures_are_those_of_decode(classes):
    c = read_folder(classes, rules=S8)
    for i in (0, 5, 23): assert np.array_equal(c.images.images[i], decode(classes / c.images.table.file[i], c.rules).pictures[0])
    json.dumps(c.rules.to_dict())
