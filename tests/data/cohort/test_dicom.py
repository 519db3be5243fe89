"DICOM against written pairs, the standard's equations, and pydicom's own functions on all files of its wheel."
import io
import logging
import random
import struct
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.sequence import Sequence
from pydicom.uid import (CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian,
                         JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSLossless, RLELossless)

from medstrat.data.cohort.dicom import apply_window, check_tags, is_dicom, look_up, read_dicom, stream_size
from medstrat.data.cohort.rules import Rules, Skipped

RULES = Rules()
FILES = Path(pydicom.__file__).parent / "data"
TEST = FILES / "test_files"
SECRET = "GEHEIMNIS"


def dataset(pixels, syntax=ExplicitVRLittleEndian, **entries):
    "A data set with these pixels (as they are stored), and what the header says of them"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = syntax, CTImageStorage, "1.2.3"
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=syntax == ImplicitVRLittleEndian, is_little_endian=syntax != ExplicitVRBigEndian)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PatientName, ds.PatientID = CTImageStorage, "1.2.3", SECRET, SECRET
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    ds.Rows, ds.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour: ds.PlanarConfiguration = 0
    if pixels.dtype.kind != "f":
        bits = pixels.dtype.itemsize * 8
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, entries.get("BitsStored", bits), entries.get("BitsStored", bits) - 1, int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<>"[syntax == ExplicitVRBigEndian])).tobytes()
        ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in entries.items(): setattr(ds, keyword, value)
    return ds


def save(ds):
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def written(pixels, *args, **entries):
    return save(dataset(pixels, *args, **entries))


def lut(values, first=0, bits=16, data=None):
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, bits])
    item.add_new("LUTData", "US" if data is None else "OW", [int(v) for v in values] if data is None else data)
    return Sequence([item])


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
SIGNED = (np.arange(256).reshape(16, 16) * 9 - 1000).astype(np.int16)


def skipped(data, rules=RULES):
    with pytest.raises(Skipped) as caught: read_dicom(data, rules)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value.kind, caught.value.reason


# gray: which way is up, how far do the bits reach

def test_eight_bits_stay_as_they_are():
    picture = read_dicom(written(BYTES), RULES)
    assert picture.pixels.dtype == np.uint8 and not picture.deep and not picture.notes
    np.testing.assert_array_equal(picture.pixels, BYTES)

def test_an_inverted_pair_of_eight_bits_reads_equal():
    picture = read_dicom(written(255 - BYTES, PhotometricInterpretation="MONOCHROME1"), RULES)
    assert picture.pixels.dtype == np.uint8 and picture.notes == ["MONOCHROME1: mirrored"]
    np.testing.assert_array_equal(picture.pixels, BYTES)

@pytest.mark.parametrize("slope, intercept", [(1, 0), (1, -1024), (2, 7), (.5, -3.25), (-1, 4095)])
@pytest.mark.parametrize("window", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_an_inverted_pair_reads_equal(slope, intercept, window):
    ends = slope * 0 + intercept, slope * 4095 + intercept
    both = sum(ends)                                       # v and both − v are a mirrored pair of real values
    entries = dict(RescaleSlope=slope, RescaleIntercept=intercept, BitsStored=12)
    windows = {} if window is None else dict(WindowWidth=600, VOILUTFunction=window)
    centre = 1000 * slope + intercept
    other = both - centre + (window == "LINEAR")           # LINEAR counts from the centre less a half
    upright = read_dicom(written(RAMP, **entries, **windows, **({} if window is None else dict(WindowCenter=centre))), RULES)
    turned = read_dicom(written(4095 - RAMP, PhotometricInterpretation="MONOCHROME1", **entries, **windows,
                                **({} if window is None else dict(WindowCenter=other))), RULES)
    np.testing.assert_array_equal(upright.pixels, RAMP * float(slope) + intercept)
    np.testing.assert_array_equal(turned.pixels, upright.pixels)
    assert (upright.low, upright.high, upright.bits) == (turned.low, turned.high, turned.bits) == (*sorted(ends), 12)
    if window is None: assert upright.windowed is turned.windowed is None
    else: np.testing.assert_allclose(upright.windowed(), turned.windowed(), atol=1e-6)

def test_signed_numbers_and_their_ends():
    picture = read_dicom(written(SIGNED, RescaleIntercept=-24, RescaleSlope=2), RULES)
    assert picture.pixels.dtype == np.int32 and (picture.low, picture.high, picture.bits) == (-65560, 65510, 16)
    np.testing.assert_array_equal(picture.pixels, SIGNED.astype(int) * 2 - 24)

def test_bits_that_are_not_used_are_no_part_of_the_number():
    dirty = (RAMP | 0xA000).astype(np.uint16)              # an overlay in the upper bits, as old scanners wrote it
    picture = read_dicom(written(dirty, BitsStored=12), RULES)
    np.testing.assert_array_equal(picture.pixels, RAMP)
    assert (picture.low, picture.high, picture.bits) == (0, 4095, 12)
    negative = (SIGNED.astype(np.int32) & 0x0FFF).astype(np.int16)     # 12 bits, two's complement, upper bits empty
    np.testing.assert_array_equal(read_dicom(written(negative, BitsStored=12), RULES).pixels, SIGNED)

def test_bits_at_the_upper_end_are_refused():
    kind, reason = skipped(written((RAMP << 4).astype(np.uint16), BitsStored=12, HighBit=15))
    assert kind == "unsupported" and "lower end" in reason

def test_eight_of_sixteen_bits_are_a_plain_picture():
    np.testing.assert_array_equal((p := read_dicom(written(BYTES.astype(np.uint16), BitsStored=8), RULES)).pixels, BYTES)
    assert p.pixels.dtype == np.uint8

def test_a_window_on_eight_bits_counts_unless_it_changes_nothing():
    same = read_dicom(written(BYTES, WindowCenter=128, WindowWidth=256), RULES)
    assert same.pixels.dtype == np.uint8 and same.windowed is None
    other = read_dicom(written(BYTES, WindowCenter=100, WindowWidth=51), RULES)
    assert other.deep and (other.low, other.high, other.bits) == (0, 255, 8)
    np.testing.assert_allclose(other.windowed(), np.clip((BYTES - 99.5) / 50 + .5, 0, 1), atol=1e-6)

def test_a_slope_of_zero_or_without_a_number_is_damage():
    assert skipped(written(RAMP, RescaleSlope=0, RescaleIntercept=0))[0] == "damaged"
    for number in (b"1..345", b"Infini", b"nan   "):
        assert skipped(written(RAMP, RescaleIntercept=0, RescaleSlope=1.2345).replace(b"1.2345", number))[0] == "damaged"

def test_32_bits():
    deep = np.array([[0, 2**32 - 1], [2**31, 5]], np.uint32)
    picture = read_dicom(written(deep), RULES)
    assert picture.pixels.dtype == np.float32 and (picture.low, picture.high) == (0, 2**32 - 1)
    np.testing.assert_allclose(picture.pixels, deep)

@pytest.mark.parametrize("slope, intercept", [(2**12, 2**30), (2**11, -2**30), (1, 2**31 - 70000), (-2**15, 5), (2**20, 0), (1e38, 0)])
def test_large_slopes_do_not_wrap_round(slope, intercept):
    real = SIGNED.astype(float) * slope + intercept
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        data = written(SIGNED, RescaleSlope=slope, RescaleIntercept=intercept, PhotometricInterpretation=photometric)
        if slope == 1e38: assert skipped(data)[0] == "damaged"
        else:
            picture = read_dicom(data, RULES)
            np.testing.assert_allclose(picture.pixels, real if photometric == "MONOCHROME2" else picture.low + picture.high - real, rtol=1e-6)

def test_numbers_beyond_the_stored_bits_are_noted():
    Image.fromarray(RAMP).save(stream := io.BytesIO(), "jpeg2000", irreversible=False)
    picture = read_dicom(compressed(stream.getvalue(), JPEG2000Lossless, RAMP, BitsStored=8), RULES)
    np.testing.assert_array_equal(picture.pixels, RAMP)
    assert picture.deep and "numbers beyond the stored bits" in picture.notes

def test_overlays_do_not_show():
    ds = dataset(RAMP, BitsStored=12)
    ds.add_new((0x6000, 0x3000), "OW", bytes([255] * 32))
    np.testing.assert_array_equal(read_dicom(save(ds), RULES).pixels, RAMP)


# tables

def test_modality_table():
    table = np.arange(300)[::-1] * 7
    picture = read_dicom(written(RAMP, BitsStored=12, ModalityLUTSequence=lut(table, 100, 12)), RULES)
    np.testing.assert_array_equal(picture.pixels, [[table[min(max(v - 100, 0), 299)] for v in row] for row in RAMP.astype(int).tolist()])
    assert (picture.low, picture.high) == (0, 4095) and picture.notes == ["modality table"]

@pytest.mark.parametrize("data", [None, "OW"])
def test_display_table(data):
    table = (np.arange(2000) % 1024).astype("<u2")
    picture = read_dicom(written(RAMP, BitsStored=12, VOILUTSequence=lut(table, 1000, 10, table.tobytes() if data else None),
                                 WindowCenter=5, WindowWidth=9), RULES)          # the table comes before the window
    expected = table[np.clip(RAMP.astype(int) - 1000, 0, 1999)] / 1023
    assert picture.windowed().dtype == np.float32
    np.testing.assert_allclose(picture.windowed(), expected, atol=1e-6)
    np.testing.assert_array_equal(picture.pixels, RAMP)

def test_display_table_of_bytes_with_many_entries_and_a_negative_beginning():
    table = (np.arange(600) % 256).astype(np.uint8)
    picture = read_dicom(written(SIGNED, VOILUTSequence=lut(table, -300, 8, table.tobytes())), RULES)
    np.testing.assert_allclose(picture.windowed(), table[np.clip(SIGNED.astype(int) + 300, 0, 599)] / 255, atol=1e-6)

def test_look_up():
    assert look_up(np.array([-2**31, 2, 2.4, 3, 2**31 - 1]), np.array([5, 6, 7]), 2).tolist() == [5, 5, 5, 6, 7]


# windows

@pytest.mark.filterwarnings("ignore:overflow")     # in pydicom's own
@pytest.mark.parametrize("centre, width", [(40, 400), (2048, 4096), (0, 1), (10.5, 3), (-600, 1500)])
@pytest.mark.parametrize("shape", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_equal_pydicoms(centre, width, shape):
    values = np.concatenate([np.arange(-1500, 1500), np.linspace(centre - 3, centre + 3, 61)])
    ds = Dataset()
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", 12, 0
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = centre, width, shape
    gray = apply_window(values, centre, width, shape)
    assert gray.dtype == np.float32 and 0 <= gray.min() and gray.max() <= 1
    np.testing.assert_allclose(gray, apply_voi_lut(values, ds) / 4095, atol=2e-6)

def test_the_first_of_several_windows_is_taken_and_noted():
    picture = read_dicom(written(RAMP, BitsStored=12, WindowCenter=[1000, 5], WindowWidth=[600, 7]), RULES)
    assert "first of 2 windows" in picture.notes
    np.testing.assert_allclose(picture.windowed(), np.clip((RAMP - 999.5) / 599 + .5, 0, 1), atol=1e-6)

@pytest.mark.parametrize("bad", [dict(WindowWidth=0), dict(WindowWidth=-5), dict(WindowWidth=9, VOILUTFunction="CUBIC"), dict(WindowWidth=.5)])
def test_a_window_that_is_none_is_noted(bad):
    picture = read_dicom(written(RAMP, WindowCenter=9, **bad), RULES)
    assert picture.windowed is None and picture.notes == ["window not valid: ignored"]

def test_centre_without_width_is_no_window():
    assert read_dicom(written(RAMP, WindowCenter=9), RULES).windowed is None

def test_windows_do_not_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apply_window(np.array([-1e9, 0, 1e9]), 0, 1e-3, "SIGMOID").tolist() == [0, .5, 1]
    for bad in ((0, 0, "LINEAR"), (0, float("nan"), "SIGMOID"), (float("inf"), 2, "LINEAR"), (0, 2, "linear")):
        with pytest.raises(ValueError): apply_window(np.zeros(2), *bad)


# colour

RGB = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)

def test_rgb_in_pixels_and_in_planes():
    np.testing.assert_array_equal(read_dicom(written(RGB), RULES).pixels, RGB)
    planes = dataset(RGB, PlanarConfiguration=1)
    planes.PixelData = np.moveaxis(RGB, -1, 0).tobytes()
    np.testing.assert_array_equal(read_dicom(save(planes), RULES).pixels, RGB)

def test_rgb_of_12_bits():
    deep = (RGB.astype(np.uint16) << 4)
    picture = read_dicom(written(deep, BitsStored=12), RULES)
    np.testing.assert_array_equal(picture.pixels, deep)
    assert (picture.low, picture.high, picture.bits, picture.deep) == (0, 4095, 12, True)

def ybr(rgb): return np.asarray(Image.fromarray(rgb).convert("YCbCr"))

def test_ybr_full():
    picture = read_dicom(written(ybr(RGB), PhotometricInterpretation="YBR_FULL"), RULES)
    assert picture.notes == ["YBR to RGB"]
    assert np.abs(picture.pixels.astype(int) - RGB).max() <= 3            # rounded twice

def test_ybr_full_422():
    pairs = np.repeat(RGB[:, ::2], 2, axis=1)                             # neighbours share their colour, as 4:2:2 stores it
    y = ybr(pairs).reshape(8, 5, 2, 3)
    packed = np.stack([y[:, :, 0, 0], y[:, :, 1, 0], y[:, :, 0, 1], y[:, :, 0, 2]], -1)
    ds = dataset(ybr(pairs), PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = packed.tobytes()
    assert np.abs(read_dicom(save(ds), RULES).pixels.astype(int) - pairs).max() <= 3

@pytest.mark.parametrize("other", ["HSV", "YBR_PARTIAL_422", "CMYK"])
def test_other_colours_are_refused(other):
    assert skipped(written(RGB, PhotometricInterpretation=other))[0] == "unsupported"

def palette(bits, n=256, first=0, big=False):
    tables = {c: (np.arange(n)[:: 1 if c == "Red" else -1] * (3 if c == "Blue" else 1) % 256) for c in ("Red", "Green", "Blue")}
    entries = {}
    for c, t in tables.items():
        entries[f"{c}PaletteColorLookupTableDescriptor"] = [n, first, bits]
        stored = t.astype("u1") if bits == 8 else (t * 256 + 17).astype(">u2" if big else "<u2")
        entries[f"{c}PaletteColorLookupTableData"] = stored.tobytes()
    return entries, np.stack(list(tables.values()), -1)

@pytest.mark.parametrize("bits", [8, 16])
def test_palette(bits):
    entries, table = palette(bits)
    picture = read_dicom(written(BYTES, PhotometricInterpretation="PALETTE COLOR", **entries), RULES)
    assert picture.pixels.dtype == np.uint8 and picture.notes == ["palette"]
    np.testing.assert_array_equal(picture.pixels, table[BYTES])

def test_palette_that_begins_later_and_has_many_entries_of_8_bits():
    entries, table = palette(8, n=600, first=100)
    picture = read_dicom(written(RAMP, PhotometricInterpretation="PALETTE COLOR", **entries), RULES)
    np.testing.assert_array_equal(picture.pixels, table[np.clip(RAMP.astype(int) - 100, 0, 599)])

def test_palette_of_big_endian_and_of_16_bits_that_hold_8():
    entries, table = palette(16, big=True)
    ds = dataset(BYTES, ExplicitVRBigEndian, PhotometricInterpretation="PALETTE COLOR", **entries)
    np.testing.assert_array_equal(read_dicom(save(ds), RULES).pixels, table[BYTES])
    for c in ("Red", "Green", "Blue"): entries[f"{c}PaletteColorLookupTableData"] = (np.arange(256) % 200).astype("<u2").tobytes()
    low = read_dicom(written(BYTES, PhotometricInterpretation="PALETTE COLOR", **entries), RULES).pixels
    np.testing.assert_array_equal(low[..., 0], np.arange(256).reshape(16, 16) % 200)

def test_palette_in_segments_is_refused():
    kind, reason = skipped(written(BYTES, PhotometricInterpretation="PALETTE COLOR", RedPaletteColorLookupTableDescriptor=[256, 0, 16],
                                   SegmentedRedPaletteColorLookupTableData=bytes(8)))
    assert kind == "unsupported" and "segments" in reason


# ways to store it

def test_encodings_read_equal():
    plain = read_dicom(written(SIGNED), RULES).pixels
    np.testing.assert_array_equal(plain, SIGNED)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        np.testing.assert_array_equal(read_dicom(written(SIGNED, syntax), RULES).pixels, plain)
    large = np.tile(SIGNED, (4, 4))
    for syntax in (RLELossless, JPEG2000Lossless):
        ds = dataset(large)
        ds.compress(syntax)
        np.testing.assert_array_equal(read_dicom(save(ds), RULES).pixels, large)

def test_jpeg_gray_and_colour():
    smooth = np.add.outer(np.arange(40), np.arange(40)).astype(np.uint8) * 3
    for pixels, colours in ((smooth, "MONOCHROME2"), (np.repeat(smooth[..., None], 3, -1), "YBR_FULL_422")):
        Image.fromarray(pixels).save(stream := io.BytesIO(), "jpeg", quality=95)
        ds = dataset(pixels, JPEGBaseline8Bit, PhotometricInterpretation=colours)
        ds.PixelData = encapsulate([stream.getvalue()])
        ds["PixelData"].is_undefined_length = True
        assert np.abs(read_dicom(save(ds), RULES).pixels.astype(int) - pixels).max() <= 4

@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("with_meta", [False, True])
def test_without_preamble(syntax, with_meta):
    data = written(SIGNED, syntax)[132:]
    if not with_meta: data = data[12 + struct.unpack("<L", data[8:12])[0]:]     # as before there was a part 10
    assert is_dicom(data[:512])
    picture = read_dicom(data, RULES)
    assert picture.notes == ["no preamble"]
    np.testing.assert_array_equal(picture.pixels, SIGNED)

def test_what_is_no_dicom_file_is_not_forced():
    for data in (b"", b"DICM", b"\x08\0", b"P5 16 16 255 " + bytes(300), b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(4000), b"patient;age\nA;3\n" * 40):
        assert not is_dicom(data) and skipped(data)[0] == "damaged"

def test_deflated_bombs_are_not_unpacked():
    data = save(dataset(RAMP, DeflatedExplicitVRLittleEndian))
    start = 144 + struct.unpack("<L", data[140:144])[0]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = data[:start] + squeeze.compress(bytes(2**28)) + squeeze.flush()
    tracemalloc.start()
    kind, reason = skipped(bomb, Rules(max_pixels=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind == "refused" and "deflated" in reason and len(bomb) < 2**20 and peak < 2**26

def test_size_is_looked_at_before_decoding():
    kind, reason = skipped(written(RAMP), Rules(max_pixels=255))
    assert kind == "refused" and "16×16" in reason and "max_pixels=255" in reason
    assert read_dicom(written(RAMP), Rules(max_pixels=256)).pixels.shape == (16, 16)
    assert skipped(written(RAMP, Rows=65535, Columns=65535))[0] == "refused"

def compressed(stream, syntax=JPEGBaseline8Bit, pixels=BYTES, **entries):
    ds = dataset(pixels, syntax, **entries)
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].is_undefined_length = True
    return save(ds)

def test_a_stream_of_another_size_is_not_decoded(monkeypatch):
    Image.new("L", (4000, 4000)).save(stream := io.BytesIO(), "jpeg")
    monkeypatch.setattr(Decoder, "as_array", lambda *a, **k: pytest.fail("decoded"))
    kind, reason = skipped(compressed(stream.getvalue()))
    assert kind == "damaged" and "size" in reason
    assert skipped(compressed(b"no stream at all" * 4))[0] == "damaged"
    rle = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * 20000      # 128 zeros by two bytes, again and again
    assert skipped(compressed(rle, RLELossless))[0] == "damaged"

def test_streams_say_their_size():
    for form, mode, channels in (("jpeg", "L", 1), ("jpeg", "RGB", 3), ("jpeg2000", "L", 1), ("jpeg2000", "RGB", 3)):
        Image.new(mode, (37, 21)).save(stream := io.BytesIO(), form)
        assert stream_size(stream.getvalue()) == (37, 21, channels, 8)
        for cut in range(0, 60): stream_size(stream.getvalue()[:cut]) if form == "jpeg" else None
    assert stream_size(b"") is None and stream_size(b"\xff\xd8\xff\xd9") is None


# frames

def enhanced(frames, shared=None, own=None, **entries):
    def group(values):
        g, v, w = Dataset(), Dataset(), Dataset()
        if "slope" in values:
            v.RescaleSlope, v.RescaleIntercept, v.RescaleType = values["slope"], values["intercept"], "US"
            g.PixelValueTransformationSequence = Sequence([v])
        if "centre" in values:
            w.WindowCenter, w.WindowWidth = values["centre"], values["width"]
            g.FrameVOILUTSequence = Sequence([w])
        return g
    ds = dataset(frames, NumberOfFrames=len(frames), **entries)
    if shared: ds.SharedFunctionalGroupsSequence = Sequence([group(shared)])
    ds.PerFrameFunctionalGroupsSequence = Sequence([group(o) for o in own or [{}] * len(frames)])
    return save(ds)

def test_the_first_frame_with_its_own_values():
    frames = np.stack([RAMP, RAMP[::-1]])
    data = enhanced(frames, own=[dict(slope=2, intercept=-5, centre=100, width=51), dict(slope=9, intercept=0, centre=0, width=2)], BitsStored=12,
                    RescaleSlope=77, RescaleIntercept=77, WindowCenter=1, WindowWidth=2)
    picture = read_dicom(data, RULES)
    np.testing.assert_array_equal(picture.pixels, RAMP.astype(int) * 2 - 5)
    np.testing.assert_allclose(picture.windowed(), np.clip((RAMP * 2. - 5 - 99.5) / 50 + .5, 0, 1), atol=1e-6)
    assert "first of 2 frames" in picture.notes

def test_values_that_all_frames_share_and_those_of_the_frame_itself():
    frames = np.stack([RAMP, RAMP])
    picture = read_dicom(enhanced(frames, dict(slope=3, intercept=1, centre=9, width=9), [dict(centre=100, width=51), {}]), RULES)
    np.testing.assert_array_equal(picture.pixels, RAMP.astype(int) * 3 + 1)
    np.testing.assert_allclose(picture.windowed(), np.clip((RAMP * 3. + 1 - 99.5) / 50 + .5, 0, 1), atol=1e-6)

def test_only_the_first_frame_is_held(monkeypatch):
    frames = np.zeros((300, 64, 64), np.uint16)
    frames[0] = 7
    data = written(frames, NumberOfFrames=300)
    read_dicom(written(RAMP), RULES)                          # what is imported once
    tracemalloc.start()
    picture = read_dicom(data, Rules(max_pixels=64 * 64))     # a frame's size counts
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (picture.pixels == 7).all() and picture.notes == ["first of 300 frames"] and peak < 2 * len(data)

def test_a_slide_in_tiles_is_refused():
    kind, reason = skipped(written(np.stack([RGB, RGB]), NumberOfFrames=2, TotalPixelMatrixRows=16, TotalPixelMatrixColumns=10))
    assert kind == "refused" and "tiles" in reason

def test_masks_of_one_bit():
    mask = np.random.default_rng(1).integers(0, 2, (16, 16), dtype=np.uint8)
    ds = dataset(mask, BitsAllocated=1, BitsStored=1, HighBit=0)
    ds.PixelData = np.packbits(mask.ravel(), bitorder="little").tobytes()
    picture = read_dicom(save(ds), RULES)
    assert picture.pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture.pixels, mask * 255)

@pytest.mark.parametrize("dtype, keyword", [(np.float32, "FloatPixelData"), (np.float64, "DoubleFloatPixelData")])
def test_floats(dtype, keyword):
    values = np.linspace(-1, 1, 64, dtype=dtype).reshape(8, 8)
    def floats(v, **more): return written(v, **{keyword: v.tobytes()}, BitsAllocated=v.dtype.itemsize * 8, **more)
    picture = read_dicom(floats(values), RULES)
    np.testing.assert_allclose(picture.pixels, values, rtol=1e-6)
    assert picture.pixels.dtype == np.float32 and (picture.bits, picture.low, picture.high) == (None, None, None)
    np.testing.assert_allclose(read_dicom(floats(-values, PhotometricInterpretation="MONOCHROME1"), RULES).pixels, values, rtol=1e-6)
    holes = values.copy()
    holes[0, :3] = np.nan, np.inf, -np.inf
    picture = read_dicom(floats(holes), RULES)
    assert (picture.pixels[0, :3] == values[0, 3].astype(np.float32)).all() and picture.notes
    assert skipped(floats(values * np.nan))[0] == "damaged"

def corners(pixels, value):
    "A round field of view: the pixels, and the same with a number in the corners"
    y, x = np.ogrid[-1:1:pixels.shape[0] * 1j, -1:1:pixels.shape[1] * 1j]
    out = x**2 + y**2 > 1
    return out, np.where(out, value, pixels).astype(pixels.dtype)

@pytest.mark.parametrize("more", [{}, dict(RescaleSlope=1, RescaleIntercept=-1024), dict(WindowCenter=40, WindowWidth=400), dict(RescaleSlope=.5, RescaleIntercept=3)])
def test_padding_is_the_least_value_measured(more):
    out, round_ = corners(SIGNED, -2000)
    bare, picture = (read_dicom(written(v, **more), RULES) for v in (SIGNED, corners(SIGNED, SIGNED[~out].min())[1]))
    got = read_dicom(written(round_, PixelPaddingValue=-2000, **more), RULES)
    np.testing.assert_array_equal(got.pixels, picture.pixels)
    np.testing.assert_array_equal(got.pixels[~out], bare.pixels[~out])
    assert got.pixels.min() == got.pixels[~out].min() and "padding set to the least value measured" in got.notes
    if more.get("WindowWidth"): np.testing.assert_array_equal(got.windowed(), picture.windowed())

def test_padding_that_shines_and_padding_of_a_mirrored_picture():
    out, bright = corners(RAMP, 65535)
    got = read_dicom(written(bright, PixelPaddingValue=65535), RULES)
    assert got.pixels.max() == RAMP[~out].max() and (got.pixels[out] == RAMP[~out].min()).all()
    turned = read_dicom(written(65535 - bright, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0), RULES)
    np.testing.assert_array_equal(turned.pixels, got.pixels)
    eight = read_dicom(written(corners(255 - BYTES, 0)[1], PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0), RULES)
    assert eight.pixels.dtype == np.uint8 and (eight.pixels[out] == BYTES[~out].min()).all() and (eight.pixels[~out] == BYTES[~out]).all()

def test_padding_in_a_range_with_another_sign_in_floats_and_alone():
    out, round_ = corners(SIGNED, -2000)
    round_[0, 0] = -1990
    expected = np.where(out, SIGNED[~out].min(), SIGNED)
    for value, limit in ((-2000, -1990), (-1990, -2000)):
        np.testing.assert_array_equal(read_dicom(written(round_, PixelPaddingValue=value, PixelPaddingRangeLimit=limit), RULES).pixels, expected)
    round_[0, 0] = -2000
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds = dataset(round_, syntax)
        ds.add_new("PixelPaddingValue", "US", 65536 - 2000)         # as some write it, beside signed pixels
        np.testing.assert_array_equal(read_dicom(save(ds), RULES).pixels, expected)
    real = (round_ / 7).astype(np.float32)
    floats = dict(BitsAllocated=32, FloatPixelPaddingValue=float(real[0, 0]))
    real[3, 3] = np.nan
    got = read_dicom(written(real, FloatPixelData=real.tobytes(), **floats), RULES)
    assert (got.pixels[out] == got.pixels[~out].min()).all() and got.pixels[3, 3] == got.pixels.min() == real[~out & np.isfinite(real)].min()
    assert skipped(written(np.full_like(SIGNED, -2000), PixelPaddingValue=-2000)) == ("damaged", "nothing but padding")
    assert not read_dicom(written(SIGNED, PixelPaddingValue=-2000), RULES).notes          # announced, and nowhere


# what leaves the header

def test_only_asked_for_entries_leave_the_header():
    ds = dataset(RAMP, PatientSex="F", PatientAge="063Y", KVP=120.5, InstanceNumber=7, ImageType=["ORIGINAL", "PRIMARY"], StudyDescription="")
    ds.private_block(0x0009, "SECRET MAKER", create=True).add_new(1, "LO", SECRET)
    tags = ("PatientSex", "PatientAge", "KVP", "InstanceNumber", "ImageType", "StudyDescription", "StationName")
    picture = read_dicom(save(ds), Rules(tags=tags))
    assert picture.columns == dict(PatientSex="F", PatientAge="063Y", KVP=120.5, InstanceNumber=7, ImageType="ORIGINAL\\PRIMARY", StudyDescription=None, StationName=None)
    assert [type(v) for v in picture.columns.values()] == [str, str, float, int, str, type(None), type(None)]
    assert SECRET not in repr(picture) and read_dicom(save(ds), RULES).columns == {}
    assert read_dicom(save(ds), Rules(tags=("PatientName",))).columns == {"PatientName": SECRET} and type(read_dicom(save(ds), Rules(tags=("PatientName",))).columns["PatientName"]) is str

def test_unknown_keywords_are_errors_of_the_rules():
    for read in (lambda: check_tags(("PatientSecks",)), lambda: read_dicom(b"", Rules(tags=("PatientSecks",)))):
        with pytest.raises(ValueError, match="Did you mean 'PatientSex'") as caught: read()
        assert not isinstance(caught.value, Skipped)
    for keyword in ("PixelData", "ModalityLUTSequence"):
        with pytest.raises(ValueError, match=keyword): check_tags((keyword,))

def test_entries_that_cannot_be_read_do_not_damage_the_picture():
    data = written(RAMP, KVP=1203).replace(b"1203.0", b"x9z.0 ")
    assert b"x9z" in data and read_dicom(data, Rules(tags=("KVP",))).columns == {"KVP": None}

def test_nothing_is_printed_or_logged(capfd, caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    for name in ("badVR.dcm", "MR_truncated.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "SC_rgb_jpeg.dcm", "meta_missing_tsyntax.dcm", "chrH31.dcm"):
        data = next(FILES.rglob(name)).read_bytes()
        for raw in (data, data[:len(data) // 2], data[:-20]):
            try: read_dicom(raw, Rules(tags=("PatientName", "StudyDate", "PatientAge")))
            except Skipped: pass
    shown = capfd.readouterr()
    assert not caplog.records and not len(recwarn) and shown.out == shown.err == ""
    assert logging.getLogger("pydicom").level < logging.CRITICAL          # as it was before


# objects

def test_objects_without_an_image():
    ds = dataset(RAMP)
    del ds.PixelData, ds.Rows, ds.Columns
    for uid, name in (("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR"), ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF"),
                      ("1.2.840.10008.5.1.4.1.1.481.5", "RT Plan"), ("1.2.840.10008.1.3.10", "Media Storage Directory"), ("1.2.3.4.5", "no known class")):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid
        kind, reason = skipped(save(ds))
        assert kind == "no image" and name in reason and "1.2.3" not in reason

def test_an_image_without_pixels_is_damaged():
    ds = dataset(RAMP)
    del ds.PixelData
    assert skipped(save(ds)) == ("damaged", "CT Image Storage without pixels")


# pydicom's own files

def held():
    for path in sorted(FILES.rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".json", ".md", ".txt", ".dump", ".gz", ".icc") and path.name != "README": yield path

# those with pixels that are not read, and why
NOT_READ = {"badVR.dcm": ("damaged", "header"),                       # "1A" frames
            "meta_missing_tsyntax.dcm": ("damaged", "header"),        # neither rows nor columns
            "nested_priv_SQ.dcm": ("damaged", "header"),
            "MR_truncated.dcm": ("damaged", "decoded"),
            "JPEG2000-embedded-sequence-delimiter.dcm": ("damaged", "announces"),    # its stream claims 3,722,445,056 columns
            "JPEG-lossy.dcm": ("unsupported", "JPEG Extended"), "JPGExtended.dcm": ("unsupported", "JPEG Extended")}   # 12 bits
pydicoms = pytest.mark.filterwarnings("ignore")

def reference(path):
    "Pixels by pydicom's functions alone: real values, and as shown"
    ds = pydicom.dcmread(path, force=True)
    frame, found = get_decoder(ds.file_meta.TransferSyntaxUID).as_array(ds, index=0)
    if ds.SamplesPerPixel == 3: return frame, None
    if ds.PhotometricInterpretation == "PALETTE COLOR": return pydicom.pixels.apply_color_lut(frame, ds) >> 8, None
    real, padding = apply_modality_lut(frame, ds), frame == ds.get("PixelPaddingValue", 2**40)
    m, b = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    low = -2**(ds.BitsStored - 1) if ds.PixelRepresentation else 0
    low, high = m * low + b, m * (low + 2**ds.BitsStored - 1) + b
    shown = (apply_voi_lut(real, ds) - low) / (high - low) if "WindowWidth" in ds else None
    if ds.PhotometricInterpretation == "MONOCHROME1": real, shown = low + high - real, 1 - shown
    real = np.where(padding, real[~padding].min(), real)
    return real * 255 if ds.BitsStored == 1 else real, shown

@pydicoms
def test_all_files_of_pydicom():
    pytest.importorskip("gdcm")
    pytest.importorskip("openjpeg")
    counts = Counter()
    for path in held():
        ds = pydicom.dcmread(path, force=True)
        try: picture = read_dicom(path.read_bytes(), RULES)
        except Skipped as fault:
            counts[fault.kind] += 1
            if "PixelData" in ds:
                kind, word = NOT_READ[path.name]
                assert fault.kind == kind and word in fault.reason, path
            else:
                kind = ds.get("SOPClassUID", ds.file_meta.get("MediaStorageSOPClassUID"))
                expected = "damaged" if path.name == "no_meta.dcm" or kind and "Image Storage" in kind.name else "no image"
                assert fault.kind == expected, (path, fault.reason)
            continue
        counts["read"] += 1
        assert "PixelData" in ds and path.name not in NOT_READ
        real, shown = reference(path)
        near = 1 if picture.pixels.dtype == np.uint8 and ds.SamplesPerPixel == 3 else 1e-3     # two JPEG decoders round differently
        np.testing.assert_allclose(picture.pixels.astype(float), real.astype(float), atol=near, rtol=1e-6, err_msg=path.name)
        assert (shown is None) == (picture.windowed is None)
        if shown is not None: np.testing.assert_allclose(picture.windowed(), shown, atol=1e-5, err_msg=path.name)
    if pydicom.__version__ == "3.0.2": assert counts == {"read": 100, "no image": 26, "damaged": 64, "unsupported": 2}

@pydicoms
def test_pairs_of_the_same_picture_in_several_syntaxes():
    pytest.importorskip("gdcm")
    read = {n: read_dicom((TEST / f"{n}.dcm").read_bytes(), RULES).pixels for n in (
        "MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_padded")}
    for pixels in read.values(): np.testing.assert_array_equal(pixels, read["MR_small"])
    raw = (TEST / "MR_small.dcm").read_bytes()
    np.testing.assert_array_equal(read["MR_small"].ravel(), np.frombuffer(raw[raw.rfind(b"\xe0\x7f\x10\0OW") + 12:], "<i2", 64 * 64))

def test_missing_decoders_are_named(monkeypatch):
    monkeypatch.setattr(Decoder, "available_plugins", property(lambda self: ("pydicom",) if self.UID == RLELossless else ()))
    for name, syntax in (("MR_small_jpeg_ls_lossless.dcm", JPEGLSLossless), ("JPEG2000.dcm", pydicom.uid.JPEG2000), ("SC_rgb_jpeg_dcmtk.dcm", JPEGBaseline8Bit),
                         ("SC_rgb_jpeg_gdcm.dcm", pydicom.uid.JPEGLosslessSV1)):
        kind, reason = skipped((TEST / name).read_bytes())
        assert kind == "unsupported" and syntax.name in reason and reason.endswith("pip install 'medstrat[dicom]'")
    kind, reason = skipped((TEST / "JPGExtended.dcm").read_bytes())
    assert kind == "unsupported" and JPEGExtended12Bit.name in reason and reason.endswith("pip install pylibjpeg-libjpeg")
    assert read_dicom((TEST / "MR_small_RLE.dcm").read_bytes(), RULES).bits == 16      # pydicom reads it alone

def test_unknown_syntaxes_are_unsupported():
    for uid in ("1.2.840.10008.1.2.4.100", "1.2.3.4.5.6"):      # MPEG-2, and none
        data = compressed(b"\0" * 64)
        ds = pydicom.dcmread(io.BytesIO(data))
        ds.file_meta.TransferSyntaxUID = uid
        ds.save_as(buffer := io.BytesIO(), implicit_vr=False, little_endian=True)
        kind, reason = skipped(buffer.getvalue())
        assert kind == "unsupported" and "1.2.3" not in reason


# damage

SEEDS = ("CT_small", "MR_small_RLE", "MR_small_implicit", "MR_small_bigendian", "SC_rgb_small_odd_jpeg", "SC_rgb_jls_lossy_line", "JPEGLSNearLossless_16",
         "SC_rgb_jpeg_gdcm", "MR_small_jp2klossless", "SC_rgb_rle_2frame", "SC_ybr_full_422_uncompressed", "rtdose_expb_1frame", "image_dfl", "liver_1frame", "reportsi")

def damage(raw, rng):
    "Bytes changed, left out, put in, or the end cut off; the header more often than the pixels"
    raw, way = bytearray(raw), rng.randrange(4)
    for _ in range(rng.choice([1, 2, 8, 30])):
        at = rng.randrange(min(len(raw), rng.choice([400, 2000, 10**9])))
        if way == 0: raw[at] = rng.randrange(256)
        elif way == 1: del raw[at:at + rng.randrange(1, 9)]
        elif way == 2: raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        if not raw: break
    return bytes(raw[:rng.randrange(len(raw) + 1)] if way == 3 else raw)

def test_damaged_files_give_a_picture_or_a_reason():
    rng, kinds = random.Random(0), Counter()
    files = [(TEST / f"{name}.dcm").read_bytes() for name in SEEDS]
    files += [enhanced(np.stack([RAMP, RAMP]), dict(slope=3, intercept=1), [dict(centre=9, width=9)] * 2), written(BYTES, PhotometricInterpretation="PALETTE COLOR", **palette(16)[0]),
              written(RAMP, VOILUTSequence=lut(np.arange(99), 5, 12), ModalityLUTSequence=lut(np.arange(300), 0, 16))]
    rules = Rules(tags=("PatientName", "PatientAge"), max_pixels=2**20)
    began = time.monotonic()
    for i in range(360):
        data, start = damage(files[i % len(files)], rng), time.monotonic()
        try:
            picture = read_dicom(data, rules)
            assert picture.pixels.ndim in (2, 3) and picture.pixels.size and np.isfinite(picture.pixels).all()
            if picture.windowed: assert np.isfinite(picture.windowed()).all()
            kinds["read"] += 1
        except Skipped as fault:
            kinds[fault.kind] += 1
        assert time.monotonic() - start < 5
    assert {"read", "damaged"} <= set(kinds) and time.monotonic() - began < 60
