"""Thousands of damaged files: none crashes a reading, none hangs it, and each is in the list with a documented reason."""
import io
import warnings

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medstrat.data.cohort.folder import read_folder
from medstrat.data.cohort.rules import FAILURES, Rules
from medstrat.data.cohort.tables import read_table

PICTURE = np.add.outer(np.arange(0, 240, 10), np.arange(0, 15)).astype(np.uint8)


def raster(kind, picture=PICTURE, **more):
    f = io.BytesIO()
    Image.fromarray(picture).save(f, kind, **more)
    return f.getvalue()


def dicom():
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.7", generate_uid()
    d = pydicom.Dataset()
    d.file_meta, d.SOPClassUID, d.SOPInstanceUID = meta, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    d.Rows, d.Columns = PICTURE.shape
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.SamplesPerPixel, d.PixelRepresentation, d.PhotometricInterpretation = 15, 1, 0, "MONOCHROME2"
    d.PixelData = (PICTURE.astype(np.uint16) * 100).tobytes()
    f = io.BytesIO()
    d.save_as(f, enforce_file_format=True)
    return f.getvalue()


def nifti(): return nibabel.Nifti1Image(np.stack([PICTURE.astype(np.int16)] * 5, axis=2), np.eye(4)).to_bytes()


FILES = {
    "png": raster("PNG"), "jpg": raster("JPEG"), "tif": raster("TIFF", compression="tiff_lzw"), "bmp": raster("BMP"),
    "rgb.png": raster("PNG", np.dstack([PICTURE, PICTURE.T.copy().T[::-1], PICTURE])), "deep.tif": raster("TIFF", PICTURE.astype(np.uint16) * 200),
    "dcm": dicom(), "nii": nifti(),
}


def damaged(data, rng):
    "Cut, with bytes changed, with a hole, with a number blown up, or with another file's end."
    data = bytearray(data)
    what, at = rng.integers(6), int(rng.integers(len(data)))
    if what == 0: return bytes(data[:at])
    if what == 1:
        for i in rng.integers(0, len(data), 8): data[i] = rng.integers(256)
    if what == 2: data[at:at + 64] = bytes(len(data[at:at + 64]))
    if what == 3: data[at:at + 4] = b"\xff" * len(data[at:at + 4])       # mostly hits data, sometimes a size
    if what == 4:                                                       # … and this one hits the header
        at = int(rng.integers(min(200, len(data))))
        data[at] = rng.integers(256)
    if what == 5: data[at:] = list(FILES.values())[rng.integers(len(FILES))][at:]
    return bytes(data)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("damaged"), np.random.default_rng(0)
    for kind, data in FILES.items():
        (folder / f"whole.{kind}").write_bytes(data)
        for i in range(260): (folder / f"{i:03}.{kind}").write_bytes(damaged(data, rng))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read = read_folder(folder, rules=Rules(size=16), max_failed=1, cache_dir=tmp_path_factory.mktemp("cache"))
    return folder, read, said


def test_each_of_two_thousand_damaged_files_is_accounted_for(cohort):
    folder, read, _ = cohort
    files = read.files.set_index("file")
    assert len(files) >= 2000 and set(files.index) == {p.name for p in folder.iterdir()}
    assert set(files.status) <= {"read", "converted", "skipped"}
    skipped = files[files.status == "skipped"]
    assert 300 < len(skipped) < len(files) and set(skipped.kind) <= {*FAILURES, "no image"} and (skipped.reason.str.len() > 10).all()
    assert len(read.images) == files.pictures.sum()
    for kind in FILES: assert files.status[f"whole.{kind}"] != "skipped"


def test_a_damaged_reading_says_little(cohort):
    "Thousands of damaged files are no thousands of warnings"
    assert len(cohort[2]) < 20


def test_what_was_whole_reads_as_it_would_alone(cohort, tmp_path):
    folder, read, _ = cohort
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "whole.png").write_bytes(FILES["png"])
    (tmp_path / "one" / "whole.bmp").write_bytes(FILES["bmp"])
    alone = read_folder(tmp_path / "one", rules=Rules(size=16, colour=read.rules.colour), cache_dir=tmp_path / "cache")
    row = lambda cohort, name: np.asarray(cohort.images.images[int(np.flatnonzero(cohort.images.table.file == name)[0])])
    for name in ("whole.png", "whole.bmp"): assert (row(read, name) == row(alone, name)).all()


def test_a_share_of_failures_ends_it(cohort, tmp_path):
    with pytest.raises(ValueError, match="damaged") as e: read_folder(cohort[0], rules=Rules(size=16), cache_dir=tmp_path)
    assert len(e.value.files)


def test_damaged_tables_give_a_table_or_a_sentence(tmp_path):
    table = pd.DataFrame(dict(file=[f"{i:03}.png" for i in range(40)], age=range(40), note=["a;b", "ä", '"q"', "1,5"] * 10))
    rng, read = np.random.default_rng(0), 0
    for i in range(200):
        path = tmp_path / f"{i}.csv"
        data = table.to_csv(index=False, sep=",;\t"[i % 3]).encode(["utf-8", "utf-8-sig", "utf-16", "cp1252"][i % 4])
        path.write_bytes(damaged(data, rng))
        try: found, _ = read_table(path)
        except ValueError as e: assert len(str(e)) > 20
        else: read += len(found) > 0
    assert read > 50
