"Damaged sets, pictures and volumes: refused by name. Bombs are refused by their declared size. (What is inside an npz: tests/data/test_npz.py.)"
import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image
from helpers import memory

from medstrat.data import npz
from medstrat.data.private.brats import _volume
from medstrat.data.private.her2 import _patch
from medstrat.data.private.refuge import _photograph
from medstrat.data.sources import list_datasets, load_dataset


def cohort():
    "Arrays of a small set"
    return {f"{p}_{k}": v for p, n in (("train", 40), ("test", 9)) for k, v in dict(images=np.zeros((n, 12, 12), np.uint8), labels=np.arange(n)[:, None] % 2, age=np.zeros(n)).items()}


@pytest.mark.filterwarnings("ignore")   # numpy's and zipfile's remarks on odd headers
@pytest.mark.parametrize("edit", [
    lambda b: b.replace(b"(40, 12, 12)", b"(20, 12, 12)"), lambda b: b.replace(b"(40, 12, 12), ", b"(9**9**9**9,) "), lambda b: b.replace(b"'|u1'", b"'|O1'"), lambda b: b.replace(b"}", b"("),
    lambda b: b + b"x", lambda b: b[:-1], lambda b: b""])
def test_a_set_with_an_edited_header(tmp_path, edit):
    "The checksum fits, since it was made after the edit: refused by name, and a list of sets survives it (further edits: tests/data/test_npz.py)"
    with zipfile.ZipFile(tmp_path / "cohort.npz", "w") as z:
        for name, a in cohort().items():
            f = io.BytesIO()
            np.save(f, a)
            z.writestr(f"{name}.npy", edit(f.getvalue()) if name == "train_images" else f.getvalue())
    with pytest.raises(ValueError, match="cohort.npz"): load_dataset(tmp_path / "cohort.npz")
    list_datasets(tmp_path)


def test_things_that_are_no_npz(tmp_path):
    arrays = cohort()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.npz").touch()
    with zipfile.ZipFile(tmp_path / "nothing.npz", "w"): pass
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as z, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2): z.writestr("train_images.npy", b"")
    inner = io.BytesIO()
    np.savez(inner, **arrays)
    with zipfile.ZipFile(tmp_path / "nested.npz", "w") as z: z.writestr("cohort.npz", inner.getvalue())
    np.savez(tmp_path / "objects.npz", **arrays | {"train_age": np.array([None] * 40)})
    np.savez(tmp_path / "records.npz", **arrays | {"train_age": np.zeros(40, [("a", int)])})
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as z: z.writestr("train_images.npy", b"x" * 1000)
    for name, says in dict(empty="truncated", nothing="incomplete", twice="one name", nested="no arrays", objects="Python objects", records="records", lzma="another method").items():
        with pytest.raises(ValueError, match=says) as e: load_dataset(tmp_path / f"{name}.npz")
        assert f"{name}.npz" in str(e.value)
    with pytest.raises((ValueError, FileNotFoundError), match="folder.npz"): load_dataset(tmp_path / "folder.npz")
    rows = list_datasets(tmp_path).set_index("name")["where"]
    assert all("unreadable" in rows[n] for n in ("empty", "nothing", "twice", "nested", "lzma")) and "folder" not in rows.index


# ---- bombs


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "SMALL", 2**22)
    np.savez_compressed(tmp_path / "bomb.npz", train_images=np.zeros((32, 512, 512), np.uint8), train_labels=np.zeros(32, int))
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(bytes(2**24)))
    def refused():
        with pytest.raises(ValueError, match="bomb.npz.*would unpack to 8,389,"): load_dataset(tmp_path / "bomb.npz")
        with pytest.raises(ValueError, match="scan.nii.gz.*not unpacked"): _volume(tmp_path / "scan.nii.gz")
        assert "unreadable" in list_datasets(tmp_path).set_index("name").loc["bomb", "where"]
    refused()   # what is imported on the way does not count
    assert memory(refused) < 2**22


def png(path, width, height):
    "A PNG that declares a size and holds next to nothing"
    def chunk(kind, data):
        import zlib
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.parametrize("read", [_patch, _photograph])
def test_pictures_that_are_bombs_or_damaged(tmp_path, read):
    png(tmp_path / "bomb.png", 60_000, 60_000)
    with pytest.raises(ValueError, match="bomb.png cannot be read as an image.*DecompressionBomb"): read(tmp_path / "bomb.png", 8)
    f = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(f, "PNG")
    rng = np.random.default_rng(1)
    for _ in range(60):
        raw = bytearray(f.getvalue())
        for i in rng.integers(0, len(raw), 3): raw[i] = rng.integers(256)
        (tmp_path / "a.png").write_bytes(raw[:rng.integers(1, len(raw))])
        try: read(tmp_path / "a.png", 8)
        except ValueError as e: assert "a.png" in str(e)


def test_a_volume_that_promises_more_than_it_holds(tmp_path):
    import nibabel as nib
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(raw[:42] + struct.pack("<3h", 32000, 32000, 32000) + raw[48:])
    with pytest.raises(ValueError, match="a.nii cannot be read as NIfTI.*promises"): _volume(tmp_path / "a.nii")
    rng = np.random.default_rng(0)
    for _ in range(60):
        b = bytearray(raw)
        for i in rng.integers(0, 352, 2): b[i] = rng.integers(256)
        (tmp_path / "a.nii").write_bytes(b)
        try: _volume(tmp_path / "a.nii")
        except ValueError as e: assert "a.nii" in str(e)
