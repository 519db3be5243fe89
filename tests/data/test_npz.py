"Damaged npz files: refused by name, or read as exactly what was written. Bombs are refused by their declared size."
import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from helpers import memory

from medstrat.data import npz
from medstrat.data.npz import gunzip, open_npz, read_arrays, read_shapes

KINDS = ("stored", "packed", "version 1", "version 2", "version 3")


def content(seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.add.outer(np.arange(40), np.add.outer(np.arange(12), np.arange(12))).astype(np.uint8)   # compresses well
    return {"train_images": smooth, "train_labels": (np.arange(40) % 2)[:, None], "train_view": np.array(["PA", "lateral"])[np.arange(40) % 2], "train_age": rng.random(40).astype("f4"),
            "test_images": np.asfortranarray(rng.integers(0, 256, (9, 12, 12), np.uint8)), "test_labels": np.arange(9)[:, None] % 2,
            "test_view": np.array(["PA"] * 9), "test_age": np.zeros(9, ">f8")}


def write(path, kind, arrays):
    "An npz: stored or compressed as numpy does, or with array headers of one version"
    if not kind.startswith("version"): return (np.savez_compressed if kind == "packed" else np.savez)(path, **arrays)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for k, a in arrays.items():
            f = io.BytesIO()
            np.lib.format.write_array(f, a, version=(int(kind[-1]), 0))
            z.writestr(f"{k}.npy", f.getvalue())


def mutated(raw, rng):
    "One damage: bits flipped, bytes overwritten, a header edited, a piece cut out or doubled, the end lost, something appended"
    b, n = bytearray(raw), len(raw)
    heads = [i for i in range(n - 4) if raw[i:i + 4] in (b"PK\3\4", b"PK\1\2", b"PK\5\6") or raw[i:i + 4] == b"\x93NUM"]
    match rng.integers(8):
        case 0: b[rng.integers(n)] ^= 1 << rng.integers(8)
        case 1:
            for i in rng.integers(0, n, rng.integers(1, 20)): b[i] = rng.integers(256)
        case 2:                                             # near a header: a zip record or the text of an array's header
            i = heads[rng.integers(len(heads))] + int(rng.integers(0, 140))
            if i < n: b[i] = rng.choice([b[i] ^ (1 << rng.integers(8)), rng.integers(256), 0, 255])
        case 3:                                             # the central directory
            i = int(rng.integers(raw.rindex(b"PK\5\6") - 600, n))
            b[i] = rng.integers(256)
        case 4: return raw[:rng.integers(n)]
        case 5:
            i, m = sorted(rng.integers(0, n, 2))
            del b[i:min(m, i + 200)]
        case 6:
            i, m = rng.integers(0, n, 2)
            b[i:i + 60] = raw[m:m + 60]
        case 7: b[rng.integers(n):] += rng.bytes(rng.integers(1, 60))
    return bytes(b)


def same(a, b): return a.keys() == b.keys() and all(x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y) for x, y in ((a[k], b[k]) for k in a))


def survive(path, raw, arrays, n, seed):
    "Read `n` damaged copies; returns how many were refused and how many gave what was written"
    rng, refused, right = np.random.default_rng(seed), 0, 0
    for _ in range(n):
        path.write_bytes(mutated(raw, rng))
        try: got = read_arrays(path)
        except ValueError as e:
            assert path.name in str(e)
            refused += 1
        else:
            assert same(got, arrays)
            right += 1
    return refused, right


@pytest.mark.filterwarnings("ignore")   # numpy's and zipfile's remarks on odd headers
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_npz_is_refused_or_gives_what_was_written(tmp_path, kind):
    arrays, path = content(), tmp_path / "cohort.npz"
    write(path, kind, arrays)
    assert same(read_arrays(path), arrays)
    refused, right = survive(path, path.read_bytes(), arrays, 80, KINDS.index(kind))
    assert refused > 20 and refused + right == 80


def rezipped(path, edit):
    "The same arrays with the bytes of each member changed by `edit`, and checksums that fit"
    with zipfile.ZipFile(path) as z: parts = {n: z.read(n) for n in z.namelist()}
    with zipfile.ZipFile(path, "w") as z:
        for name, b in parts.items(): z.writestr(name, edit(name, b))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("edit", [
    lambda b: b.replace(b"(40, 12, 12)", b"(20, 12, 12)"), lambda b: b.replace(b"(40, 12, 12)", b"(80, 12, 12)"), lambda b: b.replace(b"(40, 12, 12)", b"(-4, 12, 12)"),
    lambda b: b.replace(b"(40, 12, 12), ", b"(99999999999,)"), lambda b: b.replace(b"(40, 12, 12), ", b"(9**9**9**9,) "), lambda b: b.replace(b"(40, 12, 12)", b"(40, 12, '2)"),
    lambda b: b.replace(b"'|u1'", b"'<u2'"), lambda b: b.replace(b"'|u1'", b"'|O1'"), lambda b: b.replace(b"'|u1'", b"'|V1'"), lambda b: b.replace(b"'|u1'", b"\"|u1'"),
    lambda b: b.replace(b"{'descr'", b"{'\xff\xfesc'"), lambda b: b.replace(b"}", b"("), lambda b: b.replace(b"{", b"(" * 1), lambda b: b.replace(b"False", b"None "),
    lambda b: b[:6] + b"\7" + b[7:], lambda b: b[:8] + b"\xff\xff" + b[10:], lambda b: b + b"x", lambda b: b[:-1], lambda b: b[:9], lambda b: b"", lambda b: b"\0" * len(b),
])
def test_headers_that_were_edited_with_fitting_checksums(tmp_path, edit):
    path = tmp_path / "cohort.npz"
    write(path, "stored", content())
    rezipped(path, lambda name, b: edit(b) if name == "train_images.npy" else b)
    with pytest.raises(ValueError, match="cohort.npz"): read_arrays(path)


def patched(raw, field, value, central=True):
    "Overwrite a field of the first record in the list of members (offset, length), or of the first local header"
    at = raw.index(b"PK\1\2" if central else b"PK\3\4") + field[0]
    return raw[:at] + int(value).to_bytes(field[1], "little") + raw[at + field[1]:]


@pytest.mark.parametrize("field, value", [((8, 2), 1), ((8, 2), 0x20), ((10, 2), 99), ((10, 2), 8), ((10, 2), 14), ((16, 4), 5), ((20, 4), 900), ((24, 4), 900), ((24, 4), 2**32 - 2),
                                          ((6, 2), 255), ((28, 2), 3), ((30, 2), 9), ((42, 4), 7), ((42, 4), 2**32 - 2)])
def test_fields_of_the_zip_records(tmp_path, field, value):
    "Encrypted, patched, unknown method, wrong checksum, sizes, version, lengths, position"
    path = tmp_path / "cohort.npz"
    write(path, "stored", content())
    path.write_bytes(patched(path.read_bytes(), field, value))
    with pytest.raises(ValueError, match="cohort.npz"): read_arrays(path)


def test_a_list_of_members_that_lacks_one(tmp_path):
    path = tmp_path / "cohort.npz"
    write(path, "stored", content())
    raw = path.read_bytes()
    first, second = raw.index(b"PK\1\2"), raw.index(b"PK\1\2", raw.index(b"PK\1\2") + 4)
    end = raw.rindex(b"PK\5\6")
    size = struct.unpack("<L", raw[end + 12:end + 16])[0] - (second - first)
    path.write_bytes(raw[:end + 12] + struct.pack("<L", size) + raw[end + 16:])   # zipfile starts at the second entry
    with pytest.raises(ValueError, match="list of its arrays is incomplete"): read_arrays(path)


def test_things_that_are_no_npz(tmp_path):
    arrays = content()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.npz").touch()
    with zipfile.ZipFile(tmp_path / "nothing.npz", "w"): pass
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as z, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2): z.writestr("train_images.npy", b"")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as z: z.writestr("readme.txt", "images!")
    np.savez(tmp_path / "objects.npz", **arrays | {"train_age": np.array([None] * 40)})
    np.savez(tmp_path / "records.npz", **arrays | {"train_age": np.zeros(40, [("a", int)])})
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as z: z.writestr("train_images.npy", b"x" * 1000)
    for name, says in dict(empty="truncated", nothing="incomplete", twice="one name", text="no npz: no arrays", objects="Python objects", records="records", lzma="another method").items():
        for read in (read_arrays, read_shapes):
            with pytest.raises(ValueError, match=says) as e: read(tmp_path / f"{name}.npz")
            assert f"{name}.npz" in str(e.value)
    with pytest.raises(FileNotFoundError, match="is a folder"): read_arrays(tmp_path / "folder.npz")
    with pytest.raises(FileNotFoundError, match="There is no file"): read_arrays(tmp_path / "none.npz")


def test_shapes_alone_and_arrays_one_by_one(tmp_path):
    arrays = content()
    write(tmp_path / "cohort.npz", "packed", arrays)
    assert read_shapes(tmp_path / "cohort.npz") == {k: a.shape for k, a in arrays.items()}
    with open_npz(tmp_path / "cohort.npz") as (z, found):
        assert list(found) == list(arrays)
        one = npz.read_array(z, found["test_images"], tmp_path / "cohort.npz", "test_images")
    assert np.array_equal(one, arrays["test_images"]) and one.flags.f_contiguous
    with pytest.raises(KeyboardInterrupt), open_npz(tmp_path / "cohort.npz"): raise KeyboardInterrupt   # not the file's fault


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "SMALL", 2**22)
    np.savez_compressed(tmp_path / "bomb.npz", train_images=np.zeros((32, 512, 512), np.uint8), train_labels=np.zeros(32, int))
    liar = gzip.compress(bytes(2**24))
    (tmp_path / "bomb.gz").write_bytes(liar)
    (tmp_path / "liar.gz").write_bytes(liar[:-4] + struct.pack("<L", 5))   # declares five bytes: unpacked up to the limit
    def refused():
        with pytest.raises(ValueError, match="bomb.npz.*would unpack to 8,389,"): read_arrays(tmp_path / "bomb.npz")
        with pytest.raises(ValueError, match="bomb.gz.*would unpack to more"): gunzip(tmp_path / "bomb.gz")
    refused()   # what is imported on the way does not count
    assert memory(refused) < 2**22
    with pytest.raises((ValueError, OSError)): gunzip(tmp_path / "liar.gz")
    np.savez(tmp_path / "large.npz", train_images=np.zeros((32, 512, 512), np.uint8))   # as large, but not packed
    assert len(read_arrays(tmp_path / "large.npz")["train_images"]) == 32


def test_gzipped_bytes(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"pixels") * 2)
    assert gunzip(tmp_path / "a.gz") == b"pixelspixels"
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"pixels")[:-9] + bytes(9))
    with pytest.raises((ValueError, OSError, EOFError)): gunzip(tmp_path / "a.gz")
