"BraTS in folders: small volumes of that layout, good ones and broken ones."
import gzip
import weakref

import nibabel as nib
import numpy as np
import pytest
from conftest import write_brats

from medstrat.data.private import brats as chapter
from medstrat.data.private.brats import read_brats
from medstrat.data.sources import find_source, load_dataset


pytestmark = pytest.mark.usefixtures("alone")


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


def test_an_unusable_folder_fails_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "BRATS" / "HGG").mkdir(parents=True)
    for source in ("brats", str(tmp_path / "BRATS")):
        with pytest.raises(ValueError, match="holds: HGG/.*HGG and LGG|HGG and LGG.*holds: HGG/"): find_source(source, data_dir=tmp_path)
    (tmp_path / "BRATS" / "LGG").mkdir()
    with pytest.raises(ValueError, match="no patient of grade LGG"): find_source("brats", data_dir=tmp_path)


def test_no_patient_is_torn(brats, tmp_path):
    write_brats(tmp_path / "many", 18, 12)
    s = load_dataset(tmp_path / "many", image_size=16, carve_val=True)
    seen = [set(getattr(s, p).table.patient) for p in s.split_names]
    assert s.split_names == ("train", "val", "test") and sum(map(len, seen)) == 30 == len(set.union(*seen))
    assert all(0 < part.labels.mean() < 1 for part in (s.train, s.val, s.test))
    assert all(n % 4 == 0 for n in (len(s.train), len(s.val), len(s.test)))   # with all four modalities
    assert "published with 1,140 images; this copy has 120" in s.notices[0] and "grouped by patient" in s.notices[1]
    assert load_dataset(brats[0], image_size=16, group="modality").train.table.modality.nunique() < 4   # another column, if named


def test_the_centre_is_in_the_name(tmp_path):
    write_brats(tmp_path)
    for grade, old, new in (("HGG", "Brats18_CBICA_000_1", "Brats18_2013_10_1"), ("LGG", "Brats18_TCIA09_000_1", "patient_7")):
        folder = (tmp_path / grade / old).rename(tmp_path / grade / new)
        for path in list(folder.iterdir()): path.rename(folder / path.name.replace(old, new))
    centre = read_brats(tmp_path, "t1", 16).table.set_index("patient").centre
    assert centre["Brats18_2013_10_1"] == "2013" and centre["patient_7"] == "" and centre["Brats18_CBICA_001_1"] == "CBICA"


def test_no_such_slice_and_no_such_folder(brats):
    folder, _ = brats
    with pytest.raises(ValueError, match="there is no slice 99, the volume has 10"): read_brats(folder, "t1", 16, slices=99)
    with pytest.raises(ValueError, match="HGG and LGG.*HGG holds: Brats18_CBICA_000_1/"): read_brats(folder / "HGG")
    write_brats(folder.parent / "again")
    with pytest.raises(ValueError, match="Several have them: MICCAI_BraTS_2018_Data_Training, again; give one"): read_brats(folder.parent)
