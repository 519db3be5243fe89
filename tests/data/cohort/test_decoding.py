"One door for every format: what a file is, its levels, gray or colour, a square; and nothing but Skipped comes out."
import gzip
import hashlib
import io
import json
import os
import struct
import threading

import numpy as np
import pytest
from PIL import Image

from medstrat.data.cohort.decoding import HEAD, TINT, Decoded, decode, native, settle, settled, sniff, square, tint
from medstrat.data.cohort.rules import Picture, Rules, Skipped

RNG = np.random.default_rng(0)
GRAY = np.asarray(Image.fromarray(RNG.integers(0, 256, (9, 7), np.uint8)).resize((64, 80), Image.Resampling.BICUBIC))
RGB = np.dstack([GRAY, GRAY[::-1], 255 - GRAY])
DEEP = GRAY.astype(np.uint16) * 16


def put(path, x, **how):
    (x if isinstance(x, Image.Image) else Image.fromarray(x)).save(path, **how)
    return path


def skipped(f, *args):
    with pytest.raises(Skipped) as e: f(*args)
    return e.value


def nifti(magic=b"n+1\0", at=344, size=348):
    head = bytearray(400)
    head[:4], head[at:at + 4] = struct.pack("<i", size), magic
    return bytes(head)


@pytest.mark.parametrize("head, name, kind", [
    (b"\x89PNG\r\n\x1a\n", "a.jpg", "PNG"), (b"\xff\xd8\xff\xdb", "a", "JPEG"), (b"II*\0\x08\0\0\0", "a.svs", "TIFF"), (b"GIF89a", "", "GIF"),
    (bytes(128) + b"DICM", "a.png", "DICOM"), (b"II*\0".ljust(128, b"\0") + b"DICM", "a.tif", "DICOM"), (struct.pack("<HH2sHI", 8, 5, b"CS", 10, 0) + b"ISO_IR 100", "1", "DICOM"),
    (nifti(), "a", "NIfTI"), (nifti(b"ni1\0"), "a.hdr", "NIfTI"), (nifti(b"n+2\0", 4, 540), "a.nii", "NIfTI"), (gzip.compress(nifti(), mtime=0), "a", "NIfTI"),
    (gzip.compress(nifti() + RNG.bytes(10**6), mtime=0)[:600], "a.nii.gz", "NIfTI"), (struct.pack("<i", 348) + bytes(400), "a.hdr", "NIfTI")])
def test_content_says_what_a_file_is(head, name, kind): assert sniff(head, name) == kind


@pytest.mark.parametrize("head, name, kind, words", [
    (b"", "a.txt", "no image", "it is empty"), (b"", "a.PNG", "damaged", "its name says PNG, but it is empty"), (b"a;b\n1;2\n", "a.csv", "no image", "it is a text"),
    (b"<!DOCTYPE html>", "a.dcm", "damaged", "its name says DICOM, but it is a text"), (b"%PDF-1.4", "a.pdf", "no image", "it is a PDF"),
    (b"PK\3\4", "a.xlsx", "no image", "zip archive"), (gzip.compress(b"x" * 999, mtime=0), "a.gz", "no image", "a gzip archive"), (b"\x1f\x8b\x08broken", "a.nii.gz", "damaged", "says NIfTI"),
    (gzip.compress(b"x" * 999, mtime=0), "a.nii.gz", "damaged", "says NIfTI"), (bytes(999), "a.img", "no image", "voxels of a .hdr file"), (b"ENVI\nsamples = 3", "a.hdr", "no image", "a text"),
    (b"\0\0\0\x0cjP  \r\n", "a.jp2", "unsupported", "JPEG 2000 is not read"), (b"\0\0\0\x18ftypheic", "a.jpg", "unsupported", "HEIC"), (b"NRRD0004", "a.nrrd", "unsupported", "NRRD"),
    (bytes(99), "Thumbs.db", "no image", "nothing that is known here"), (bytes(9), "x.tiff", "damaged", "says TIFF")])
def test_what_is_no_picture(head, name, kind, words):
    e = skipped(sniff, head, name)
    assert e.kind == kind and words in e.reason


def test_gzip_is_not_unpacked_to_be_recognised():
    import tracemalloc
    bomb = gzip.compress(nifti() + bytes(2**26))
    tracemalloc.start()
    assert sniff(bomb) == "NIfTI" and tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("name, x, how", [("a.png", GRAY, {}), ("a.jpg", GRAY, {}), ("a.tif", GRAY, {}), ("a.bmp", GRAY, {}), ("a.png", RGB, {}), ("a.webp", RGB, dict(lossless=True))])
def test_a_right_sized_picture_is_not_touched(tmp_path, name, x, how):
    x = x[:64, :64]
    d = decode(put(tmp_path / name, x, **how), Rules(size=64))
    want = np.asarray(Image.open(tmp_path / name))
    assert np.array_equal(d.pictures[0], want.reshape(64, 64, -1)) and d.pictures[0].dtype == np.uint8 and not d.pending and d.facts["how"] == []
    assert d.facts["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() and (name == "a.jpg" or np.array_equal(want, x))


def test_facts_go_into_json(tmp_path):
    d = decode(put(tmp_path / "a.png", DEEP), Rules())
    assert isinstance(d, Decoded) and d.pending and d.pictures == [] and json.loads(json.dumps(d.facts)) == d.facts
    assert d.facts == dict(format="PNG", width=64, height=80, bits=16, mode="uint16", gray=True, low=int(DEEP.min()), high=int(DEEP.max()), window=False, how=[], columns=[{}],
                           sha256=hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest())
    f = decode(put(tmp_path / "b.tif", GRAY / np.float32(7)), Rules()).facts
    assert f["bits"] is None and isinstance(f["low"], float) and f["high"] == (GRAY / np.float32(7)).max() and json.loads(json.dumps(f)) == f
    f = decode(put(tmp_path / "c.png", RGB)).facts
    assert (f["bits"], f["mode"], f["gray"], f["low"], f["high"], f["window"]) == (8, "RGB", False, None, None, False)


def line(x, low, high): return np.rint(255 * np.clip((x.astype(np.float64) - low) / (high - low), 0, 1))


@pytest.mark.parametrize("rules, low, high, note", [
    (Rules(levels="depth"), 0, 65535, "16 bits as black…white"), (Rules(levels="range", low=0, high=4080), 0, 4080, "0…4080 as black…white"),
    (Rules(levels="window", low=500.5, high=2000), 500.5, 2000, "500.5…2000 as black…white, {} % of the pixels clipped")])
def test_levels(tmp_path, rules, low, high, note):
    path, share = put(tmp_path / "a.png", DEEP), ((DEEP < low) | (DEEP > high)).mean()
    x = native(path, rules)
    assert x.dtype == np.uint8 and np.abs(x - line(DEEP, low, high)).max() == 0
    d = decode(path, rules)
    assert not d.pending and d.facts["how"] == [note.format(f"{100 * share:.2g}")] and ("clipped" in note) == (share > 0)
    assert np.abs(d.pictures[0][..., 0][:, 6:-6].astype(int) - square(x, rules)[..., 0][:, 6:-6]).max() == 0


@pytest.mark.parametrize("dtype, low, high", [(np.int16, -1024, 3071), (np.uint16, 0, 65535), (np.int32, -2**31, 2**31 - 1), (np.uint32, 0, 2**32 - 1), (np.float32, -1.5, 2.5),
                                              (np.float64, -1e9, 1e9)])
def test_the_line_in_every_type(monkeypatch, tmp_path, dtype, low, high):
    x = RNG.uniform(low, high, (40, 40)).astype(dtype)
    x[0, :2] = low, high
    from medstrat.data.cohort import decoding
    monkeypatch.setattr(decoding, "read_raster", lambda data, rules: Picture(x, 16, low, high))
    path = put(tmp_path / "a.png", GRAY)
    for rules in (Rules(levels="depth"), Rules(levels="window", low=low, high=high)):
        y = native(path, rules)
        assert np.abs(y - line(x, low, high)).max() <= (1 if x.dtype == np.float32 else 0) and (y[0, 0], y[0, 1]) == (0, 255)


def test_windows(monkeypatch, tmp_path):
    from medstrat.data.cohort import decoding
    path, shown = put(tmp_path / "a.png", GRAY), np.linspace(.1, .9, 100).reshape(10, 10)
    bring = Picture(np.zeros((10, 10), np.int16), 16, -32768, 32767, lambda: shown)
    monkeypatch.setattr(decoding, "read_raster", lambda data, rules: bring)
    d = decode(path, Rules(levels="window"))
    assert d.facts["window"] and d.facts["how"] == ["the file's window as black…white"] and np.array_equal(native(path, Rules(levels="window")), np.rint(255 * shown))
    shown[0, :5] = 0
    assert decode(path, Rules(levels="window")).facts["how"] == ["the file's window as black…white, 5 % of the pixels at its ends"]
    assert decode(path, Rules(levels="window", low=-1, high=1)).facts["how"] == ["-1…1 as black…white"]
    bring.windowed = None
    e = skipped(decode, path, Rules(levels="window"))
    assert e.kind == "unsupported" and "brings no window" in e.reason


def test_floats_need_a_range(tmp_path):
    path = put(tmp_path / "a.tif", GRAY / np.float32(255))
    assert decode(path, Rules(levels="range")).pending
    assert skipped(decode, path, Rules(levels="depth")).kind == "unsupported"
    assert np.abs(native(path, Rules(levels="range", low=0, high=1)) - GRAY.astype(int)).max() == 0


@pytest.mark.parametrize("sigma, quality", [(0, 75), (0, 100), (1, 75), (1, 90), (2, 90)])
def test_gray_with_the_noise_of_jpeg_is_gray(tmp_path, sigma, quality):
    noisy = np.clip(GRAY[..., None] + RNG.normal(0, sigma, (*GRAY.shape, 3)), 0, 255).round().astype(np.uint8)
    d = decode(put(tmp_path / "a.jpg", noisy, quality=quality, subsampling=0), Rules(size=80))
    stored = np.asarray(Image.open(tmp_path / "a.jpg")).astype(int)
    assert d.facts["gray"] and d.facts["how"] == ["gray content stored as RGB"] and d.pictures[0].shape == (80, 80, 1) and d.facts["mode"] == "RGB"
    assert np.abs(d.pictures[0][:, 8:-8, 0] - stored @ [.299, .587, .114]).max() <= 1


def test_colour_is_not_gray(tmp_path):
    sections = RGB // 2 + np.array([90, 20, 80], np.uint8)
    marked = np.dstack([GRAY] * 3)
    marked[10:12, 10:12] = 255, 0, 0
    for i, x in enumerate((RGB, sections, marked)):
        d = decode(put(tmp_path / f"{i}.png", x), Rules(size=80))
        assert not d.facts["gray"] and np.array_equal(d.pictures[0][:, 8:-8], x) and d.facts["how"] == []


def test_tint_is_the_largest_difference():
    for x in (RGB, RGB // 40, RGB[:1, :1], np.dstack([GRAY] * 3), np.asarray(RGB[::-1, ::2])):
        x = x.astype(int)
        assert tint(x.astype(np.uint8)) == max(np.abs(x[..., 0] - x[..., 1]).max(), np.abs(x[..., 1] - x[..., 2]).max())
    edge = np.dstack([GRAY] * 3)
    for value, gray in ((TINT, True), (TINT + 1, False)):
        edge[37, 41] = 100, 100 + value, 100
        assert (tint(edge) <= TINT) == gray


@pytest.mark.parametrize("colour, gray_file, rgb_file, gray_note, rgb_note", [("gray", 1, 1, [], ["colour turned into gray"]), ("auto", 1, 3, [], []),
                                                                              ("rgb", 3, 3, ["gray repeated in three channels"], [])])
def test_channels(tmp_path, colour, gray_file, rgb_file, gray_note, rgb_note):
    a, b, c = (decode(put(tmp_path / n, x), Rules(size=80, colour=colour)) for n, x in (("a.png", GRAY), ("b.png", RGB), ("c.png", np.dstack([GRAY] * 3))))
    assert [x.pictures[0].shape[2] for x in (a, b, c)] == [gray_file, rgb_file, gray_file] and (a.facts["how"], b.facts["how"]) == (gray_note, rgb_note)
    assert np.array_equal(a.pictures[0], c.pictures[0]) and np.array_equal(a.pictures[0][:, 8:-8, 0], GRAY)
    if colour == "gray": assert np.abs(b.pictures[0][:, 8:-8, 0] - RGB @ [.299, .587, .114]).max() <= 1


@pytest.mark.parametrize("w, h", [(40, 20), (20, 40), (39, 20), (4000, 1), (1, 4000), (30, 30)])
@pytest.mark.parametrize("channels", [1, 3])
def test_padded_to_a_centred_square(w, h, channels):
    x = np.full((h, w, 3), 255, np.uint8) if channels == 3 else np.full((h, w), 255, np.uint8)
    s = square(x, Rules(size=20, background=9))
    height, width = max(1, round(20 * h / max(w, h))), max(1, round(20 * w / max(w, h)))
    want = np.full((20, 20), 9)
    want[(20 - height) // 2:(20 - height) // 2 + height, (20 - width) // 2:(20 - width) // 2 + width] = 255
    assert s.shape == (20, 20, channels) and (s == want[..., None]).all()
    assert (square(x, Rules(size=20, aspect="stretch")) == 255).all()


def test_made_small_without_aliases():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.abs(square(stripes, Rules(size=16))[:, 1:-1].astype(int) - 127.5).max() < 2     # the first and the last see the border


def test_a_file_larger_than_the_beginning(tmp_path):
    x = RNG.integers(0, 256, (400, 400), np.uint8)
    path = put(tmp_path / "a.bmp", x)
    assert path.stat().st_size > 2 * HEAD and np.array_equal(native(str(path), Rules()), x)
    assert decode(path).facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "missing.png"):
        e = skipped(decode, tmp_path / name, Rules())
        assert e.kind == "refused" and e.reason.startswith("it cannot be opened: ") and str(tmp_path) not in e.reason


def test_voxels_behind_a_link(tmp_path):
    (tmp_path / "a.hdr").write_bytes(nifti(b"ni1\0"))
    (tmp_path / "secret").write_bytes(b"secret")
    try: os.symlink(tmp_path / "secret", tmp_path / "a.img")
    except OSError: pytest.skip("no links here")
    assert skipped(decode, tmp_path / "a.hdr", Rules()).kind == "outside"


def fact(gray=True, low=None, high=None, window=False): return dict(gray=gray, low=low, high=high, window=window, width=64, height=80)


@pytest.mark.parametrize("rules, facts, want", [
    (Rules(), [fact(), fact(), fact(False)], dict(colour="gray", levels="depth")),
    (Rules(), [fact(), fact(False), fact(False)], dict(colour="rgb", levels="depth")),
    (Rules(), [fact(), fact(False)], dict(colour="gray", levels="depth")),
    (Rules(), [fact(low=-5, high=9, window=True), fact(low=0, high=99, window=True), fact()], dict(colour="gray", levels="window")),
    (Rules(), [fact(low=-5, high=9, window=True), fact(low=0, high=99)], dict(colour="gray", levels="range", low=-5, high=99)),
    (Rules(), [fact(low=7, high=7)], dict(colour="gray", levels="range", low=7, high=8)),
    (Rules(levels="range"), [fact(low=-5, high=9, window=True)], dict(colour="gray", levels="range", low=-5, high=9)),
    (Rules(levels="range", low=1, high=2), [fact(low=-5, high=9)], dict(colour="gray", levels="range", low=1, high=2)),
    (Rules(levels="depth", colour="rgb"), [fact(low=-5, high=9)], dict(colour="rgb", levels="depth")),
    (Rules(levels="window", low=1, high=2), [fact(low=-5, high=9)], dict(colour="gray", levels="window", low=1, high=2))])
def test_rules_for_all(rules, facts, want):
    got = settle(rules, facts)
    assert got == rules.but(**want) and settle(got, facts[::-1]) == got          # settled once, settled for good
    assert f"{len(facts):,} files" in settled(got, facts) and ("more than 8 bits" in settled(got, facts)) == any(f["low"] is not None for f in facts)
    if got.low is not None: assert f"Black is {got.low:g} and white {got.high:g}" in settled(got, facts)


def test_settled_rules_leave_nothing_pending(tmp_path):
    paths = [put(tmp_path / "a.png", DEEP), put(tmp_path / "b.tif", DEEP.astype(np.float32) - 7), put(tmp_path / "c.jpg", RGB)]
    first = [decode(p) for p in paths]
    assert [d.pending for d in first] == [True, True, False]
    rules = settle(Rules(), [d.facts for d in first])
    with pytest.raises(ValueError, match="levels='auto' is open; use the rules that settle"): native(paths[0], Rules())
    second = [decode(p, rules) for p in paths]
    assert not any(d.pending for d in second) and {d.pictures[0].shape for d in second} == {(64, 64, 1)}
    assert not any("clipped" in n for d in second for n in d.facts["how"])
    shallow = settle(Rules(levels="range"), [first[2].facts])           # no deep file, no range: a later one has its depth
    assert (shallow.levels, shallow.low) == ("depth", None) and not decode(paths[0], shallow).pending
    known = "low", "high", "bits", "sha256", "width"
    assert [[d.facts[k] for k in known] for d in first] == [[d.facts[k] for k in known] for d in second]


def test_in_threads(tmp_path):
    paths = [put(tmp_path / f"{i}.png", GRAY) for i in range(40)]
    out = []
    threads = [threading.Thread(target=lambda: out.extend(decode(p).pictures[0].sum() for p in paths)) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(out) == 160 and len(set(out)) == 1


def test_300_damaged_files(tmp_path):
    rng, f, counts = np.random.default_rng(2), io.BytesIO(), {}
    Image.fromarray(GRAY).save(f, "PNG")
    files = [put(tmp_path / n, x, **how).read_bytes() for n, x, how in (
        ("a.png", GRAY, {}), ("b.png", DEEP, {}), ("a.jpg", RGB, {}), ("a.tif", DEEP, dict(compression="tiff_lzw")), ("b.tif", RGB, {}), ("a.gif", GRAY, {}), ("a.bmp", RGB, {}),
        ("a.webp", RGB, {}), ("c.tif", GRAY / np.float32(9), {}))]
    path = tmp_path / "damaged.png"
    for i in range(300):
        data = bytearray(files[i % len(files)])
        if i % 4 == 3: del data[int(rng.integers(len(data))):]
        for _ in range(int(rng.integers(1, 6))):
            a = int(rng.integers(0, min(len(data) or 1, 500 if i % 2 else 10**9)))
            data[a:a + 1] = rng.bytes(int(rng.integers(0, 3)))
        path.write_bytes(bytes(data))
        try:
            d = decode(path, Rules(size=32, levels="range", low=0, high=4000, max_pixels=10**6))
            kind = "read"
            assert d.pictures[0].shape in ((32, 32, 1), (32, 32, 3)) and json.dumps(d.facts)
        except Skipped as e: kind = e.kind
        counts[kind] = counts.get(kind, 0) + 1
    assert set(counts) <= {"read", "damaged", "refused", "unsupported"} and counts["damaged"] > 60 and counts["read"] > 20


def test_a_ct_as_dicom_and_as_nifti(tmp_path):
    "The same values by both readers, one after the other, with levels of the cohort"
    import nibabel
    from pydicom import dcmread
    from pydicom.data import get_testdata_file
    path = get_testdata_file("CT_small.dcm", download=False)
    ds = dcmread(path)
    hounsfield = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    first = decode(path, Rules(size=128))
    low, high = hounsfield.min(), hounsfield.max()
    assert first.pending and (first.facts["format"], first.facts["low"], first.facts["high"]) == ("DICOM", low, high)
    rules = settle(Rules(size=128), [first.facts]).but(levels="range", low=float(low), high=float(high))
    assert np.abs(decode(path, rules).pictures[0][..., 0] - line(hounsfield, low, high)).max() <= 1
    volume = np.stack([hounsfield.T[:, ::-1], hounsfield.T[:, ::-1] / 2], axis=2)[::-1].astype(np.float32)     # right to left, back to front: RAS+
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    d = decode(tmp_path / "a.nii.gz", rules.but(every=1))
    assert d.facts["format"] == "NIfTI" and len(d.pictures) == len(d.facts["columns"]) == 2 and json.dumps(d.facts)
    assert d.facts["sha256"] == hashlib.sha256((tmp_path / "a.nii.gz").read_bytes()).hexdigest()
    assert np.abs(d.pictures[0].astype(int) - decode(path, rules).pictures[0]).max() <= 1
    assert native(tmp_path / "a.nii.gz", rules).shape == (128, 128)


def test_a_pair_counts_both_files(tmp_path):
    import nibabel
    x = RNG.integers(0, 99, (8, 9, 3)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Pair(x, np.eye(4)), tmp_path / "a.hdr")
    before = decode(tmp_path / "a.hdr")
    assert before.pending and skipped(decode, tmp_path / "a.img", Rules()).kind == "no image"
    data = bytearray((tmp_path / "a.img").read_bytes())
    data[5] ^= 1
    (tmp_path / "a.img").write_bytes(data)
    assert decode(tmp_path / "a.hdr").facts["sha256"] != before.facts["sha256"]
