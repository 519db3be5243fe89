"NIfTI against written volumes whose corners are known, nibabel's canonical form, and the files of its wheel."
import gzip
import itertools
import logging
import random
import shutil
import struct
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medstrat.data.cohort.nifti import cut, read_nifti
from medstrat.data.cohort.rules import Rules, Skipped

RULES = Rules()
WHEEL = Path(nib.__file__).parent / "tests" / "data"
AFFINE = np.diag([2., 2, 2, 1])
AXES = ("sagittal", "coronal", "axial")


def body(shape=(7, 9, 5), dtype=np.int16):
    "Each voxel another number, no symmetry"
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(dtype)


def save(path, volume, affine=AFFINE, kind=nib.Nifti1Image):
    image = kind(volume, affine, dtype=volume.dtype)
    nib.save(image, path)
    return path


def scaled(path, volume, slope, inter):
    "A file whose header says slope and intercept of the numbers that are stored"
    save(path, volume)
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<2f", slope, inter)
    raw[352:] = volume.tobytes(order="F")
    path.write_bytes(raw)
    return path


def one(path, **rules):
    picture, = read_nifti(path, Rules(**rules))
    return picture


def skipped(path, rules=RULES):
    with pytest.raises(Skipped) as caught: read_nifti(path, rules)
    return caught.value.kind, caught.value.reason


# which way a patient lies

@pytest.mark.parametrize("axis, top, left", [("axial", 1, 0), ("coronal", 2, 0), ("sagittal", 2, 1)])
def test_a_marker_lies_where_radiologists_expect_it(tmp_path, axis, top, left):
    for marked in (0, 1, 2):                               # the last layer to the right, to the front, at the top
        volume = np.zeros((6, 8, 10), np.int16)
        volume[tuple(slice(-1, None) if a == marked else slice(None) for a in range(3))] = 1
        pixels = one(save(tmp_path / "v.nii", volume), axis=axis).pixels
        if marked == top: assert pixels[0].all() and not pixels[1:].any()
        elif marked == left: assert pixels[:, 0].all() and not pixels[:, 1:].any()
        else: assert not pixels.any()                      # the layer is not the middle slice

def test_slices_of_one_volume_by_hand(tmp_path):
    v = body()
    path = save(tmp_path / "v.nii", v)
    np.testing.assert_array_equal(one(path).pixels, v[::-1, ::-1, 2].T)
    np.testing.assert_array_equal(one(path, axis="coronal").pixels, v[::-1, 4, ::-1].T)
    np.testing.assert_array_equal(one(path, axis="sagittal").pixels, v[3, ::-1, ::-1].T)
    assert one(path, position=0.).columns == {"slice": 0} and one(path, position=1.).columns == {"slice": 4}
    np.testing.assert_array_equal(one(path, position=1.).pixels, v[::-1, ::-1, 4].T)

@pytest.mark.parametrize("axis", AXES)
def test_all_48_ways_to_store_a_volume_give_one_picture(tmp_path, axis):
    v = body()
    image = nib.Nifti1Image(v, np.array([[2, .1, 0, 5], [-.1, 2.5, .2, -3], [0, -.2, 3, 9], [0, 0, 0, 1.]]))
    expected = one(save(tmp_path / "v.nii", v, image.affine), axis=axis, position=.3)
    assert expected.pixels.dtype == np.int16
    for order, directions in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        other = image.as_reoriented(np.stack([order, directions], 1))
        path = tmp_path / "other.nii"
        other.to_filename(path)
        found = one(path, axis=axis, position=.3)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.columns == expected.columns and found.notes == expected.notes
        canonical = nib.as_closest_canonical(nib.load(path))           # nibabel's own canonical form, and once more
        np.testing.assert_array_equal(np.asarray(canonical.dataobj), v)
        canonical.to_filename(tmp_path / "canonical.nii")
        np.testing.assert_array_equal(one(tmp_path / "canonical.nii", axis=axis, position=.3).pixels, expected.pixels)

def test_every_nth_slice_is_counted_in_the_patient(tmp_path):
    v = body((7, 9, 11))
    turned = nib.Nifti1Image(v, AFFINE).as_reoriented(np.array([[0, 1], [1, 1], [2, -1]]))
    for path in (tmp_path / "v.nii", tmp_path / "v.nii.gz"):
        nib.save(turned, path)
        pictures = read_nifti(path, Rules(every=4))
        assert [p.columns["slice"] for p in pictures] == [0, 4, 8]
        for p, i in zip(pictures, (0, 4, 8)): np.testing.assert_array_equal(p.pixels, v[::-1, ::-1, i].T)
        assert all(p.pixels.base is None or p.pixels.base.size == p.pixels.size for p in pictures)   # none holds the volume

def test_cut_takes_arrays_and_files(tmp_path):
    v = body()
    image = nib.load(save(tmp_path / "v.nii", v))
    for axis in range(3): np.testing.assert_array_equal(cut(v, np.array([[0, 1], [1, 1], [2, 1]]), axis, 1), cut(image.dataobj, nib.io_orientation(image.affine), axis, 1))

def test_a_file_without_orientation_says_so(tmp_path):
    path = save(tmp_path / "v.nii", body())
    raw = bytearray(path.read_bytes())
    raw[252:256] = bytes(4)                                # qform_code, sform_code
    path.write_bytes(raw)
    assert any("no orientation" in n for n in one(path).notes)
    np.testing.assert_array_equal(one(path).pixels, np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)[::-1, ::-1, 2].T)
    assert not any("no orientation" in n for n in one(save(tmp_path / "w.nii", body())).notes)

def test_pixels_that_are_not_square_are_noted(tmp_path):
    path = save(tmp_path / "v.nii", body(), np.diag([1, 1.04, 3, 1]))
    assert "pixels are not square" not in one(path).notes and "pixels are not square" in one(path, axis="coronal").notes


# numbers

@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, ">i2", ">u2"])
def test_whole_numbers_keep_their_depth(tmp_path, dtype):
    v = (body((4, 5, 3)) * 2).astype(dtype)
    picture = one(save(tmp_path / "v.nii", v))
    np.testing.assert_array_equal(picture.pixels, v[::-1, ::-1, 1].T)
    native = np.dtype(dtype).newbyteorder("=")
    assert picture.pixels.dtype == native
    if native == np.uint8: assert not picture.deep and (picture.bits, picture.low, picture.high) == (8, None, None)
    else: assert (picture.bits, picture.low, picture.high) == (native.itemsize * 8, np.iinfo(native).min, np.iinfo(native).max)

@pytest.mark.parametrize("slope, inter", [(2, 0), (.5, -10), (-1, 3)])
def test_slope_and_intercept(tmp_path, slope, inter):
    v = body()
    path = scaled(tmp_path / "v.nii", v, slope, inter)
    picture = one(path)
    np.testing.assert_allclose(picture.pixels, v[::-1, ::-1, 2].T * float(slope) + inter)
    np.testing.assert_allclose(picture.pixels, nib.load(path).get_fdata()[::-1, ::-1, 2].T)
    assert (picture.low, picture.high) == tuple(sorted((-2**15 * slope + inter, (2**15 - 1) * slope + inter)))
    assert "slope and intercept" in picture.notes and picture.bits == 16

def test_scaled_bytes_are_no_plain_picture(tmp_path):
    picture = one(scaled(tmp_path / "v.nii", body((4, 5, 3), np.uint8), .5, 0))
    assert picture.deep and (picture.low, picture.high, picture.bits) == (0, 127.5, 8)

def test_a_slope_of_zero_means_none(tmp_path):
    v = body()
    np.testing.assert_array_equal(one(scaled(tmp_path / "v.nii", v, 0, 7)).pixels, v[::-1, ::-1, 2].T)

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_and_what_is_no_number(tmp_path, dtype):
    v = body(dtype=dtype) / 7
    picture = one(save(tmp_path / "v.nii", v))
    np.testing.assert_allclose(picture.pixels, v[::-1, ::-1, 2].T, rtol=1e-6)
    assert picture.pixels.dtype == np.float32 and (picture.bits, picture.low, picture.high) == (None, None, None)
    v[0, :, 2], v[1, 0, 2], v[:, :, 4] = np.nan, np.inf, np.nan
    path = save(tmp_path / "w.nii", v)
    picture = one(path)
    least = v[:, :, 2][np.isfinite(v[:, :, 2])].min()
    np.testing.assert_allclose(picture.pixels, np.where(np.isfinite(v), v, least)[::-1, ::-1, 2].T, rtol=1e-6)
    assert "values that are no number set to the least value measured" in picture.notes
    assert skipped(path, Rules(position=1.)) == ("damaged", "nothing but values that are no number")
    assert [p.columns["slice"] for p in read_nifti(path, Rules(every=2))] == [0, 2]
    assert skipped(save(tmp_path / "x.nii", v * np.nan), Rules(every=2))[0] == "damaged"

@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colour(tmp_path, names):
    v = np.zeros((4, 5, 3), [(c, "u1") for c in names])
    for i, c in enumerate(names): v[c] = body((4, 5, 3), np.uint8) + i * 50
    picture = one(save(tmp_path / "v.nii", v))
    np.testing.assert_array_equal(picture.pixels, np.stack([v[c][::-1, ::-1, 1].T for c in "RGB"], -1))
    assert picture.pixels.dtype == np.uint8 and ("transparency left out" in picture.notes) == (names == "RGBA")

def test_complex_numbers_are_refused(tmp_path):
    assert skipped(save(tmp_path / "v.nii", body(dtype=np.complex64)))[0] == "refused"


# series, pairs, other files

def test_series(tmp_path):
    v = np.stack([body() + 1000 * i for i in range(3)], -1)
    for path in (save(tmp_path / "v.nii", v), save(tmp_path / "v.nii.gz", v)):
        kind, reason = skipped(path)
        assert kind == "refused" and "3 volumes" in reason and "volume=" in reason
        for i in range(3): np.testing.assert_array_equal(one(path, volume=i).pixels, v[::-1, ::-1, 2, i].T)
        kind, reason = skipped(path, Rules(volume=3))
        assert kind == "refused" and "volume=3" in reason and "holds 3" in reason
    np.testing.assert_array_equal(one(save(tmp_path / "one.nii", v[..., :1])).pixels, v[::-1, ::-1, 2, 0].T)
    assert skipped(save(tmp_path / "five.nii", v[..., None].repeat(2, -1)), Rules(volume=0))[0] == "refused"

def test_one_plane(tmp_path):
    v = body((6, 8, 1))
    np.testing.assert_array_equal(one(save(tmp_path / "v.nii", v[..., 0])).pixels, v[::-1, ::-1, 0].T)

@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_pairs(tmp_path, kind):
    v = body()
    save(tmp_path / "v.img", v, kind=kind)
    for name in ("v.img", "v.hdr"): np.testing.assert_array_equal(one(tmp_path / name).pixels, v[::-1, ::-1, 2].T)
    (tmp_path / "v.hdr").rename(tmp_path / "V.HDR"), (tmp_path / "v.img").rename(tmp_path / "V.IMG")
    np.testing.assert_array_equal(one(tmp_path / "V.IMG").pixels, v[::-1, ::-1, 2].T)
    (tmp_path / "V.HDR").unlink()
    assert skipped(tmp_path / "V.IMG")[0] == "damaged"

def test_the_other_half_of_a_pair_is_no_link(tmp_path):
    save(tmp_path / "v.img", body(), kind=nib.Nifti1Pair)
    (tmp_path / "out").mkdir()
    (tmp_path / "v.hdr").rename(tmp_path / "out" / "v.hdr")
    (tmp_path / "v.hdr").symlink_to(tmp_path / "out" / "v.hdr")
    assert skipped(tmp_path / "v.img")[0] == "outside"

def test_nifti2_and_gzip_by_content(tmp_path):
    v = body()
    np.testing.assert_array_equal(one(save(tmp_path / "v.nii", v, kind=nib.Nifti2Image)).pixels, v[::-1, ::-1, 2].T)
    save(tmp_path / "w.nii.gz", v)
    (tmp_path / "w.nii.gz").rename(tmp_path / "Änne Ö.nii")
    np.testing.assert_array_equal(one(tmp_path / "Änne Ö.nii").pixels, v[::-1, ::-1, 2].T)

def test_files_of_nibabel():
    expected = {"analyze.hdr": "damaged", "anatomical.nii": "read", "example4d.nii.gz": "refused", "example_nifti2.nii.gz": "refused", "functional.nii": "refused",
                "nifti1.hdr": "damaged", "nifti2.hdr": "damaged", "reoriented_anat_moved.nii": "read", "resampled_anat_moved.nii": "read",
                "row_major.dconn.nii": "no image", "standard.nii.gz": "read"}   # .hdr: they come without their .img
    for name, kind in expected.items():
        path = WHEEL / name
        if kind != "read": assert skipped(path)[0] == kind
        if kind not in ("read", "refused"): continue
        for axis, number in zip(AXES, range(3)):
            whole = nib.as_closest_canonical(nib.load(path)).get_fdata()
            if whole.ndim == 4: whole = whole[..., 1]
            picture = one(path, axis=axis, position=.5, volume=1 if kind == "refused" else None)
            expect = whole.take(round(.5 * (whole.shape[number] - 1)), number).T[::-1, ::-1]
            np.testing.assert_allclose(picture.pixels, np.where(np.isnan(expect), np.nanmin(expect), expect), rtol=1e-5)

def test_analyze_is_not_guessed(tmp_path):
    shutil.copy(WHEEL / "analyze.hdr", tmp_path / "a.hdr")
    (tmp_path / "a.img").write_bytes(bytes(91 * 109 * 91))
    kind, reason = skipped(tmp_path / "a.img")
    assert kind == "unsupported" and "Analyze" in reason


# safe

def test_large_files_are_refused_before_they_are_unpacked(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((3000, 3000, 3000))
    header.set_data_dtype(np.int16)
    bomb = tmp_path / "bomb.nii.gz"
    with gzip.open(bomb, "wb") as f:
        header["vox_offset"] = 352
        f.write(header.binaryblock + bytes(4))
        for _ in range(64): f.write(bytes(2**20))
    tracemalloc.start()
    kind, reason = skipped(bomb)
    assert kind == "refused" and "max_pixels" in reason and tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert skipped(save(tmp_path / "v.nii", body()), Rules(max_pixels=62))[0] == "refused"
    assert one(save(tmp_path / "v.nii", body()), max_pixels=63).pixels.shape == (9, 7)

def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    path = save(tmp_path / "v.nii.gz", body())
    with gzip.open(path, "ab") as f:
        for _ in range(256): f.write(bytes(2**20))          # a second member: 256 MB of zeros
    tracemalloc.start()
    began = time.monotonic()
    kind, reason = skipped(path)
    assert kind == "damaged" and "more" in reason and tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert time.monotonic() - began < 2

def test_a_huge_extension_is_not_read(tmp_path):
    raw = bytearray(save(tmp_path / "v.nii", body()).read_bytes())
    raw[348:352] = b"\1\0\0\0"
    raw[108:112] = struct.pack("<f", 2**20)
    secret = struct.pack("<ii", 2**20 - 352, 2) + b"GEHEIMNIS"
    path = tmp_path / "w.nii"
    path.write_bytes(bytes(raw[:352]) + secret.ljust(2**20 - 352, b"x") + bytes(raw[352:]))
    picture = one(path)
    np.testing.assert_array_equal(picture.pixels, body()[::-1, ::-1, 2].T)
    assert "GEHEIMNIS" not in repr(picture)

def test_only_the_slice_is_read(tmp_path):
    v = np.zeros((256, 256, 200), np.int16)
    path = save(tmp_path / "v.nii", v)
    one(path)
    tracemalloc.start()
    one(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20 < v.nbytes / 20
    tracemalloc.stop()

def test_cut_short_anywhere(tmp_path):
    for name in ("v.nii", "v.nii.gz"):
        raw = save(tmp_path / name, body()).read_bytes()
        for n in (0, 1, 2, 3, 50, 347, 348, 351, len(raw) // 2, len(raw) - 9, len(raw) - 1):
            (tmp_path / name).write_bytes(raw[:n])
            assert skipped(tmp_path / name)[0] == "damaged", (name, n)

def test_a_flipped_bit_in_a_gzip_file_is_found(tmp_path):
    path = save(tmp_path / "v.nii.gz", body())
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1                                            # of the check sum
    path.write_bytes(raw)
    assert skipped(path, Rules(position=0.))[0] == "damaged"

def test_damaged_directions(tmp_path):
    path = save(tmp_path / "v.nii", body())
    raw = bytearray(path.read_bytes())
    for values in ([0.] * 12, [float("nan")] * 12, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]):
        raw[280:328] = struct.pack("<12f", *values)
        path.write_bytes(raw)
        assert skipped(path)[0] == "damaged"

def test_damaged_files_give_pictures_or_a_reason(tmp_path, capfd, caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    rng, kinds = random.Random(0), Counter()
    small = body((6, 7, 5))
    for name, kind in (("a.nii", nib.Nifti1Image), ("b.nii", nib.Nifti2Image), ("c.nii.gz", nib.Nifti1Image), ("d.img", nib.Nifti1Pair)): save(tmp_path / name, small, kind=kind)
    save(tmp_path / "e.nii", small / 3)
    files = [p for p in sorted(tmp_path.iterdir())] + [WHEEL / "standard.nii.gz"]
    began = time.monotonic()
    for i in range(400):
        source = files[i % len(files)]
        raw, zipped = source.read_bytes(), source.suffix == ".gz" and rng.random() < .7     # else the gzip stream itself is hit
        raw = bytearray(gzip.decompress(raw) if zipped else raw)
        for _ in range(rng.choice([1, 2, 6])): raw[rng.randrange(min(len(raw), rng.choice([120, 348, 10**6])))] = rng.randrange(256)
        if rng.random() < .15: raw = raw[:rng.randrange(len(raw))]
        broken = tmp_path / "broken" / source.name
        shutil.rmtree(broken.parent, ignore_errors=True)
        broken.parent.mkdir()
        for pair in (".hdr", ".img"):
            if source.suffix in (".hdr", ".img"): shutil.copy(source.with_suffix(pair), broken.with_suffix(pair))
        broken.write_bytes(gzip.compress(bytes(raw), 1) if zipped else bytes(raw))
        start = time.monotonic()
        try:
            for picture in read_nifti(broken, Rules(max_pixels=2**16, every=rng.choice([None, 2]), axis=rng.choice(AXES), volume=rng.choice([None, 0]))):
                assert picture.pixels.size and np.isfinite(picture.pixels).all()
            kinds["read"] += 1
        except Skipped as fault: kinds[fault.kind] += 1
        assert time.monotonic() - start < 5
    assert {"read", "damaged", "refused"} <= set(kinds) and time.monotonic() - began < 60
    shown = capfd.readouterr()
    assert shown.out == shown.err == "" and not caplog.records and not len(recwarn)

def test_what_is_no_nifti_file(tmp_path):
    for raw in (b"", b"x" * 1000, gzip.compress(b"name;age\n" * 99), bytes(800)):
        (tmp_path / "v.nii").write_bytes(raw)
        assert skipped(tmp_path / "v.nii")[0] == "damaged"
    assert skipped(tmp_path / "is not there.nii")[0] == "damaged"
