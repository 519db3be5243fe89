"Collections in folders: small files in the layout of BraTS 2018 and REFUGE-2, good ones and broken ones."
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medstrat import cli
from medstrat.data.private import brats as chapter
from medstrat.data.private.brats import read_brats
from medstrat.data.private.local import Collection
from medstrat.data.sources import list_sources
from medstrat.data.private.refuge import read_refuge
from medstrat.data.sources import list_datasets, load_dataset
from medstrat.runs.requests import find_dataset
from medstrat.runs.records import finish, start_run

KINDS = ("t1", "t1ce", "t2", "flair")


pytestmark = pytest.mark.usefixtures("alone")


def volume(rng, bright=False):
    "20×20×10 voxels (left–posterior–superior, as BraTS stores them): a brain in slices 2 to 8, and its tumour in 4 to 6, most in 5"
    brain, seg = np.zeros((20, 20, 10), bool), np.zeros((20, 20, 10), np.int16)
    brain[3:17, 2:18, 2:9] = True
    seg[5:8, 5:8, 4:7] = 2
    seg[4:9, 4:9, 5] = 4
    v = rng.integers(300, 900, brain.shape) * brain
    v[seg > 0] += 1000 * bright
    return v.astype(np.int16), seg


def write_brats(root, hgg=6, lgg=4, end=".nii.gz", seed=0):
    "Write patients; returns what was written, {(patient, kind): array}"
    rng, written = np.random.default_rng(seed), {}
    for grade, n, centre in (("HGG", hgg, "CBICA"), ("LGG", lgg, "TCIA09")):
        (root / grade).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            patient = f"Brats18_{centre}_{i:03}_1"
            (root / grade / patient).mkdir()
            for kind in (*KINDS, "seg"):
                v, seg = volume(rng, bright=grade == "HGG" and kind == "t1ce")
                written[patient, kind] = seg if kind == "seg" else v
                nib.save(nib.Nifti1Image(written[patient, kind], np.diag([-1., -1, 1, 1])), root / grade / patient / f"{patient}_{kind}{end}")
    return written


def write_refuge(root, yes=4, no=8, size=(40, 36), seed=0):
    rng = np.random.default_rng(seed)
    for kind, n, letter, level in (("Glaucoma", yes, "g", 200), ("Non-Glaucoma", no, "n", 80)):
        folder = root / "Training400" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n): photograph(folder / f"{letter}{i:04}.jpg", rng, size, level)


def photograph(path, rng, size=(40, 36), level=100, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((level + rng.integers(0, 50, (size[1], size[0], 3))).astype(np.uint8)).save(path, quality=95, **kw)


@pytest.fixture
def brats(tmp_path):
    folder = tmp_path / "data" / "MICCAI_BraTS_2018_Data_Training"
    folder.mkdir(parents=True)
    (folder / "survival_data.csv").write_text("Brats18ID,Age\n")
    return folder, write_brats(folder)


@pytest.fixture
def refuge(tmp_path):
    folder = tmp_path / "data" / "REFUGE2"
    write_refuge(folder)
    return folder


# ---- BraTS

def expected(v, z):
    "The image by the definition, voxel by voxel, from the array as it was written (left–posterior–superior)"
    values = np.sort(v[v != 0])
    at = lambda p: np.interp(p * (len(values) - 1), np.arange(len(values)), values)
    low, high = at(.25) - 3 * (at(.75) - at(.25)), at(.75) + 3 * (at(.75) - at(.25))
    u = [[0 if v[x, y, z] == 0 else round(255 * min(max((v[x, y, z] - low) / (high - low), 0), 1)) for x in range(v.shape[0])] for y in range(v.shape[1])]
    return np.array(u)   # rows: y = 0 is anterior, as stored; columns: x = 0 is the patient's right, as stored


def test_brats_images_labels_and_slices(brats):
    folder, written = brats
    s = read_brats(folder, image_size=20)
    assert (len(s), s.image_shape, s.images.dtype) == (40, (20, 20, 1), np.uint8) and s.classes == {0: "LGG", 1: "HGG"}
    assert list(s.table) == ["label", "patient", "centre", "modality", "slice"] and np.bincount(s.labels).tolist() == [16, 24]
    assert set(s.table.slice) == {5} and set(s.table.patient) == {p for p, _ in written}   # (2 + 8) // 2
    for image, row in zip(s.images[..., 0], s.table.itertuples(), strict=True):
        assert np.array_equal(image, expected(written[row.patient, row.modality], 5))
        assert (row.centre, row.label) == (("CBICA", 1) if "CBICA" in row.patient else ("TCIA09", 0))


def test_brats_choices(brats, tmp_path):
    folder, written = brats
    four = read_brats(folder, image_size=20)
    one = read_brats(folder, "flair", image_size=20)
    assert np.array_equal(one.images, four[four.table.modality == "flair"].images)
    assert np.array_equal(read_brats(folder, ["flair", "t1"], 20).images, read_brats(folder, ["t1", "flair"], 20).images)
    patient = one.table.patient[0]
    assert np.array_equal(read_brats(folder, "flair", 20, slices=3).images[0, ..., 0], expected(written[patient, "flair"], 3))
    assert read_brats(folder, "flair").image_shape == (128, 128, 1)
    unpacked = tmp_path / "unpacked"
    write_brats(unpacked, end=".nii")
    assert np.array_equal(read_brats(unpacked, image_size=20).images, four.images)


def test_the_slice_with_most_tumour_and_its_absence(brats):
    folder, _ = brats
    moved = folder / "LGG" / "Brats18_TCIA09_000_1" / "Brats18_TCIA09_000_1_seg.nii.gz"
    seg = np.zeros((20, 20, 10), np.int16)
    seg[5, 5, 7] = seg[6, 6, 7] = seg[5, 5, 4] = 1
    nib.save(nib.Nifti1Image(seg, np.diag([-1., -1, 1, 1])), moved)
    s = read_brats(folder, "t1", 20, slices="tumour")
    assert s.table.slice.to_list() == [7] + [5] * 9
    nib.save(nib.Nifti1Image(seg * 0, np.eye(4)), moved)
    with pytest.raises(ValueError, match=r"TCIA09_000_1_seg.nii.gz marks no tumour"): read_brats(folder, "t1", 20, slices="tumour")
    moved.unlink()
    with pytest.raises(ValueError, match="needs the segmentation Brats18_TCIA09_000_1_seg"): read_brats(folder, "t1", 20, slices="tumour")
    assert len(read_brats(folder, "t1", 20)) == 10   # the default needs none


@pytest.mark.parametrize("orient", [("R", "A", "S"), ("L", "P", "S"), ("S", "R", "A"), ("P", "I", "L")])
def test_the_orientation_of_the_file_does_not_matter(brats, tmp_path, orient):
    folder, _ = brats
    before = read_brats(folder, "t2", 20)
    for path in folder.rglob("*_t2.nii.gz"):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(orient))
        turned = nib.Nifti1Image(np.asarray(image.as_reoriented(turn).dataobj), image.as_reoriented(turn).affine)
        nib.save(turned, path)
    assert np.array_equal(read_brats(folder, "t2", 20).images, before.images)


def test_one_volume_in_memory_at_a_time(brats, monkeypatch):
    folder, _ = brats
    import weakref
    alive, read = [], chapter._volume
    def watched(path):
        v = np.array(read(path))
        assert sum(r() is not None for r in alive) <= 1, "volumes are kept"   # at most the one before, until the name is bound again
        alive.append(weakref.ref(v))
        return v
    monkeypatch.setattr(chapter, "_volume", watched)
    read_brats(folder, image_size=20)
    assert len(alive) == 40


def test_a_patient_without_a_modality_is_left_out_with_a_notice(brats):
    folder, _ = brats
    (folder / "HGG" / "Brats18_CBICA_002_1" / "Brats18_CBICA_002_1_flair.nii.gz").unlink()
    said = []
    with pytest.warns(UserWarning, match=r"left out for lack of scans, 1 of 10 patients: Brats18_CBICA_002_1 \(flair\)"): s = read_brats(folder, image_size=20, notices=said)
    assert len(s) == 36 and "Brats18_CBICA_002_1" not in set(s.table.patient) and len(said) == 1
    assert len(read_brats(folder, ["t1", "t2"], 20)) == 20   # those are complete
    assert any("Brats18_CBICA_002_1 (flair)" in n for n in load_dataset(folder, image_size=20).notices)
    for path in (folder / "LGG").rglob("*_flair.nii.gz"): path.unlink()
    with pytest.raises(ValueError, match="no patient of grade LGG with t1, t1ce, t2, flair.*holds: Brats18_TCIA09_000_1_seg"): read_brats(folder)


def test_damaged_volumes_are_named(brats):
    folder, _ = brats
    path = folder / "HGG" / "Brats18_CBICA_001_1" / "Brats18_CBICA_001_1_t2.nii.gz"
    good = path.read_bytes()
    nan = nib.Nifti1Image(np.full((20, 20, 10), np.nan, np.float32), np.eye(4)).to_bytes()
    for content in (good[:len(good) // 2], b"", b"no scan", gzip.compress(b"no scan"), good[:200] + bytes(50) + good[250:], gzip.compress(nan)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="Brats18_CBICA_001_1_t2.nii.gz"): read_brats(folder, image_size=20)
    for v, says in ((np.zeros((20, 20, 10)), "all voxels are 0"), (np.ones((20, 20, 10)), "one value"), (np.ones((20, 20, 10, 2)), "three axes"), (np.ones((9, 9, 10)), "not registered")):
        nib.save(nib.Nifti1Image(v.astype(np.int16), np.eye(4)), path)
        with pytest.raises(ValueError, match=f"Brats18_CBICA_001_1_t2.nii.gz.*{says}"): read_brats(folder, image_size=20)


@pytest.mark.parametrize("kw, says", [
    (dict(modalities=["t1c"]), "modalities=.*BraTS has t1, t1ce, t2, flair. Did you mean 't1ce'"),
    (dict(modalities=()), "modalities="),
    (dict(slices="centre"), "slices='centre'.*'middle', 'tumour'"),
    (dict(slices=-1), "slices=-1"),
    (dict(slices=True), "slices=True"),
    (dict(slices=10), "there is no slice 10, the volume has 10"),
    (dict(image_size=1), "image_size=1"),
    (dict(image_size="128"), "image_size='128'"),
])
def test_bad_choices(brats, kw, says):
    with pytest.raises(ValueError, match=says): read_brats(brats[0], **kw)


# ---- REFUGE

def test_refuge_images_labels_and_devices(refuge):
    s = read_refuge(refuge, image_size=10)
    assert (len(s), s.image_shape, s.images.dtype) == (12, (10, 10, 3), np.uint8) and s.classes == {0: "non-glaucoma", 1: "glaucoma"}
    assert s.labels.tolist() == [1] * 4 + [0] * 8 and s.table.file[0] == "Training400/Glaucoma/g0000.jpg"
    assert set(s.table.device) == {"unknown, 40×36"}
    for image, file in zip(s.images, s.table.file, strict=True):   # 2 rows of black above and below
        square = np.pad(np.asarray(Image.open(refuge / file)), [(2, 2), (0, 0), (0, 0)])
        assert np.array_equal(image, np.asarray(Image.fromarray(square).resize((10, 10), Image.Resampling.BILINEAR)))
        assert abs(image[2:8].mean() - square[8:32].mean()) < 3   # away from the black
    assert read_refuge(refuge).image_shape == (128, 128, 3)


def test_sizes_tell_the_device(tmp_path):
    for kind, size in (("Glaucoma", (2124, 2056)), ("non glaucoma", (1634, 1634))):
        (tmp_path / kind).mkdir()
        Image.new("RGB", size, (90, 60, 30)).save(tmp_path / kind / "a.JPG")
    s = read_refuge(tmp_path, 32)
    assert s.table.device.to_list() == ["Zeiss Visucam 500", "Canon CR-2"]
    assert np.abs(s.images[1].astype(int) - [90, 60, 30]).max() <= 2


def test_gray_photographs_become_colour_and_hidden_files_are_passed_over(refuge):
    Image.new("L", (40, 36), 77).save(refuge / "Training400" / "Glaucoma" / "gray.jpeg")
    (refuge / "Training400" / "Glaucoma" / "._g0000.jpg").write_bytes(b"resource fork")
    s = read_refuge(refuge, 10)
    assert len(s) == 13 and (s.images[4][5, 5] == 77).all()


def test_a_table_beside_the_images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "REFUGE-Validation400"
    for i in range(6): photograph(folder / f"V{i}.jpg", rng)
    pd.DataFrame({"ID": range(6), "ImgName": [f"V{i}.jpg" for i in range(6)], "Label(Glaucoma=1)": [1, 0, 0, 1, 0, 0]}).to_csv(folder / "labels.csv", index=False)
    (folder / "fovea.csv").write_text("image,x,y\nV0.jpg,1,2\n")   # another table
    assert read_refuge(tmp_path, 10).labels.tolist() == [1, 0, 0, 1, 0, 0]
    for text, says in (("ImgName,Label(Glaucoma=1)\nV0.jpg,1\nV1.jpg,0\n", "V2.jpg is not in the table"), ("ImgName,Label\nV0.jpg,2\n", "row 2 says: V0.jpg, 2"),
                       ("ImgName,Label\nV0.jpg,\n", "label 0 or 1"), ("ImgName,x\nV0.jpg,1\n", "one column of labels"), ("ImgName,Label\nV0.jpg,1\nV0.jpg,0\n", "row 3")):
        (folder / "labels.csv").write_text(text)
        with pytest.raises(ValueError, match=says): read_refuge(tmp_path, 10)


def test_images_without_labels_are_left_out_with_a_notice(refuge):
    photograph(refuge / "Test400" / "T0001.jpg", np.random.default_rng(0))
    (refuge / "Glaucoma_label.xlsx").touch()
    said = []
    with pytest.warns(UserWarning, match=r"1 of 13 images were left out.*Glaucoma_label.xlsx.*as .csv"): assert len(read_refuge(refuge, 10, said)) == 12
    assert len(said) == 1
    with pytest.raises(ValueError, match="0 with glaucoma, 0 without, 1 without a label"): read_refuge(refuge / "Test400")
    with pytest.raises(ValueError, match="0 with glaucoma, 8 without"): read_refuge(refuge / "Training400" / "Non-Glaucoma")


def test_damaged_images_are_named(refuge):
    path = refuge / "Training400" / "Non-Glaucoma" / "n0003.jpg"
    good = path.read_bytes()
    for content in (good[:len(good) // 2], b"", b"no image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="n0003.jpg cannot be read as an image"): read_refuge(refuge, 10)


# ---- by name, by path, in runs

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
    with pytest.raises(FileNotFoundError, match="BraTS 2018 is not there.*agreement"): find_dataset("brats")
    monkeypatch.chdir(inner.parent)
    assert np.array_equal(load_dataset("unpacked", image_size=16).train.images, first.train.images)
    with pytest.raises(ValueError, match="Did you mean 'refuge'"): find_dataset("refuje")
    with pytest.raises(ValueError, match="image_size=64"): load_dataset("refuge", size=64)


def test_an_unusable_folder_fails_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "BRATS" / "HGG").mkdir(parents=True)
    for source in ("brats", str(tmp_path / "BRATS")):
        with pytest.raises(ValueError, match="holds: HGG/.*HGG and LGG|HGG and LGG.*holds: HGG/"): find_dataset(source, tmp_path)
    (tmp_path / "BRATS" / "LGG").mkdir()
    with pytest.raises(ValueError, match="no patient of grade LGG"): find_dataset("brats", tmp_path)


def test_no_patient_is_torn(brats, tmp_path):
    write_brats(tmp_path / "many", 18, 12)
    s = load_dataset(tmp_path / "many", image_size=16, carve_val=True)
    seen = [set(getattr(s, p).table.patient) for p in s.split_names]
    assert s.split_names == ("train", "val", "test") and sum(map(len, seen)) == 30 == len(set.union(*seen))
    assert all(0 < part.labels.mean() < 1 for part in (s.train, s.val, s.test))
    assert all(n % 4 == 0 for n in (len(s.train), len(s.val), len(s.test)))   # with all four modalities
    assert "published with 1,140 images; this copy has 120" in s.notices[0] and "grouped by patient" in s.notices[1]
    assert load_dataset(brats[0], image_size=16, group="modality").train.table.modality.nunique() < 4   # another column, if named


def test_refuge_is_split_by_label(refuge):
    s = load_dataset(refuge, image_size=16)
    assert (len(s.train), len(s.test)) == (9, 3) and np.bincount(s.test.labels).tolist() == [2, 1]
    assert "1,200 images; this copy has 12" in s.notices[0] and "stratified by label" in s.notices[1]


def test_the_lists(brats, refuge, tmp_path):
    table = list_datasets(brats[0].parent).set_index("name")
    assert table.loc[["brats", "refuge"], "images"].to_list() == [40, 12] and set(table.loc[["brats", "refuge"], "where"]) == {"data folder"}
    (brats[0] / "LGG").rename(brats[0] / "lost")
    assert "unreadable" in list_datasets(brats[0].parent).set_index("name").loc["brats", "where"]
    got = CliRunner().invoke(cli.app, ["datasets", "--data-dir", str(tmp_path)])
    assert got.exit_code == 0 and got.output.count("your own copy (agreement needed)") == sum(isinstance(s, Collection) for s in list_sources())


@pytest.mark.parametrize("kind", ["brats", "refuge"])
def test_a_run(kind, brats, refuge, tmp_path):
    folder = {"brats": brats[0], "refuge": refuge}[kind]
    run = start_run("pixels + k-means", dataset=str(folder), out=tmp_path / "runs", n_clusters=2, image_size=16)
    record = json.loads((finish(run) / "run.json").read_text())
    assert record["dataset"] == kind and record["images"] == {"brats": {"train": 32, "test": 8}, "refuge": {"train": 9, "test": 3}}[kind]
    assert "published with" in record["notices"][0] and 0 <= record["metrics"]["stat_accuracy"] <= 1
    if kind == "refuge": assert record["metrics"]["stat_accuracy"] == 1   # bright and dark photographs: not to be missed


def test_importing_is_light():
    code = "import medstrat.data.sources, sys; print([m for m in ('nibabel', 'PIL', 'tqdm', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(chapter.__file__).parents[2], env={**os.environ})
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
