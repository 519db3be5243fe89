"Raster files: every way of storing a picture against a written pair, and what is damaged never half read."
import io
import logging
import pickle
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from medstrat.data.cohort.rasters import quiet, raster_format, read_raster
from medstrat.data.cohort.rules import Rules, Skipped

RNG = np.random.default_rng(0)
GRAY = np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 5), np.uint8)).resize((20, 24), Image.Resampling.BICUBIC))   # smooth, 24×20
DEEP = (GRAY.astype(np.uint16) << 8) + RNG.integers(0, 256, GRAY.shape, np.uint16)


def written(image, kind="PNG", **how):
    f = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(f, kind, **how)
    return f.getvalue()


def tiff(x, photometric=1, order="<", bits=None, sign=None, orientation=None, more=(), raw=None):
    "An uncompressed TIFF of one strip, written by hand: the tags, then the pixels"
    channels = 1 if x.ndim == 2 else x.shape[2]
    bits, sign = bits or x.itemsize * 8, sign or dict(u=1, i=2, f=3)[x.dtype.kind]
    raw = x.astype(x.dtype.newbyteorder(order)).tobytes() if raw is None else raw
    tags = {256: (4, x.shape[1]), 257: (4, x.shape[0]), 258: (3, bits), 259: (3, 1), 262: (3, photometric), 273: (4, 0), 277: (3, channels),
            278: (4, x.shape[0]), 279: (4, len(raw)), 339: (3, sign)}
    if orientation: tags[274] = 3, orientation
    if photometric is None: del tags[262]
    tags = {k: (t, 1, struct.pack(order + "I" if t == 4 else order + "Hxx", v)) for k, (t, v) in tags.items()} | dict(more)
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = 4, 1, struct.pack(order + "I", start)
    entries = b"".join(struct.pack(order + "HHI", k, t, n) + v for k, (t, n, v) in sorted(tags.items()))
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4) + raw


def chunk(name, data): return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(x, bits, colour, between=b"", rows=None):
    "A PNG written by hand"
    raw = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in x) if rows is None else rows
    header = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def skipped(data, **rules):
    with pytest.raises(Skipped) as e: read_raster(data, Rules(**rules))
    return e.value


@pytest.mark.parametrize("kind, how", [("PNG", {}), ("BMP", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", dict(compression="tiff_lzw")), ("TIFF", dict(big_tiff=True)),
                                       ("TIFF", dict(compression="tiff_adobe_deflate")), ("WEBP", dict(lossless=True))])
@pytest.mark.parametrize("colour", [False, True])
def test_eight_bits_are_as_they_are(kind, how, colour):
    x = np.dstack([GRAY, GRAY[::-1], 255 - GRAY]) if colour else GRAY
    if colour and kind == "GIF": x = np.where(x > 128, 255, 0).astype(np.uint8)    # few colours
    p = read_raster(written(x, kind, **how))
    if kind in ("WEBP", "GIF") and not colour: assert (p.pixels == x[..., None]).all()      # WebP knows no gray, and GIF only palettes
    else: assert p.pixels.dtype == np.uint8 and np.array_equal(p.pixels, x)
    assert p.bits == 8 and p.notes == (["palette looked up"] if kind == "GIF" else []) and not p.deep


def test_jpeg_is_as_pillow_unpacks_it():
    for x in (GRAY, np.dstack([GRAY, GRAY[::-1], 255 - GRAY])):
        data = written(x, "JPEG")
        assert np.array_equal(read_raster(data).pixels, np.asarray(Image.open(io.BytesIO(data)))) and read_raster(data).notes == []


@pytest.mark.parametrize("data", [written(DEEP), written(DEEP, "TIFF"), written(DEEP, "TIFF", compression="tiff_lzw"), tiff(DEEP), tiff(DEEP, order=">"), png(DEEP, 16, 0)])
def test_sixteen_bits(data):
    p = read_raster(data)
    assert p.pixels.dtype == np.uint16 and p.pixels.dtype.isnative and np.array_equal(p.pixels, DEEP) and (p.bits, p.low, p.high, p.notes) == (16, 0, 65535, [])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("x", [GRAY, DEEP, DEEP.astype(np.int16), DEEP.astype(np.int32) * 9 - 7, DEEP.astype(np.float32) / 7 - 1000])
def test_a_negative_reads_upright(x, order):
    top = 0 if x.dtype.kind == "f" else -1 if x.dtype.kind == "i" else np.iinfo(x.dtype).max    # what is black in the negative
    a, b = (read_raster(tiff(y, w, order)) for y, w in ((x, 1), ((top - x.astype(np.float64 if x.dtype.kind == "f" else np.int64)).astype(x.dtype), 0)))
    assert np.array_equal(a.pixels, x) and np.array_equal(a.pixels, b.pixels) and (a.low, a.high, a.bits) == (b.low, b.high, b.bits)
    assert b.notes == (["negative turned upright"] if x.dtype != np.uint8 else []) and a.notes == []


def test_a_compressed_negative():
    p = read_raster(written(65535 - DEEP, "TIFF", compression="tiff_adobe_deflate", tiffinfo={262: 0}))
    assert np.array_equal(p.pixels, DEEP)


@pytest.mark.parametrize("x, bits, low, high", [(DEEP.astype(np.int16), 16, -2**15, 2**15 - 1), (DEEP.astype(np.uint32) * 60_000, 32, 0, 2**32 - 1),
                                                (DEEP.astype(np.int32) * -30_000, 32, -2**31, 2**31 - 1)])
def test_signs_and_32_bits(x, bits, low, high):
    p = read_raster(tiff(x))
    assert np.array_equal(p.pixels, x) and (p.bits, p.low, p.high) == (bits, low, high) and p.pixels.max() == x.max()


def test_twelve_bits_packed():
    x = DEEP >> 4
    a, b = x.reshape(-1, 2).astype(int).T
    raw = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    p = read_raster(tiff(x, bits=12, raw=raw))
    assert np.array_equal(p.pixels, x) and (p.bits, p.low, p.high) == (12, 0, 4095)


def test_signed_bytes():
    p = read_raster(tiff((GRAY.astype(int) - 128).astype(np.int8)))
    assert np.array_equal(p.pixels, GRAY) and p.notes == ["signed values: 128 added"]


def test_floats_have_no_depth_and_holes_are_filled():
    x = (GRAY / 7 - 12).astype(np.float32)
    for data in (written(x, "TIFF"), tiff(x, order=">"), written(x, "TIFF", compression="tiff_lzw")):
        p = read_raster(data)
        assert p.pixels.dtype == np.float32 and np.array_equal(p.pixels, x) and (p.bits, p.low, p.high, p.deep) == (None, None, None, True)
    for hole in (np.nan, np.inf):
        y = x.copy()
        y[3, 4] = y[0, 0] = hole
        p = read_raster(tiff(y))
        assert np.array_equal(p.pixels, np.where(np.isfinite(y), y, y[np.isfinite(y)].min())) and p.notes == ["values that are no number set to the least value measured"]
    e = skipped(tiff(x * np.float32(np.nan)))
    assert (e.kind, e.reason) == ("damaged", "nothing but values that are no number")


def test_one_bit():
    x = np.where(GRAY > 128, 255, 0).astype(np.uint8)
    image = Image.fromarray(x).convert("1")
    for data in (written(image), written(image, "TIFF"), written(image, "TIFF", compression="group4"), written(image, "TIFF", tiffinfo={262: 0}), written(image, "BMP")):
        p = read_raster(data)
        assert np.array_equal(p.pixels, x) and p.pixels.dtype == np.uint8
    p = read_raster(written(image))
    assert (p.bits, p.notes) == (1, ["1 bit: black and white"])


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_use_the_whole_range(bits):
    x = np.arange(16).reshape(2, 8) % 2**bits
    packed = np.packbits(np.unpackbits(x.astype(np.uint8)[..., None], axis=2)[..., 8 - bits:].reshape(2, -1), axis=1)
    p = read_raster(png(x, bits, 0, rows=b"".join(b"\0" + r.tobytes() for r in packed)))
    assert np.array_equal(p.pixels, x * (255 // (2**bits - 1))) and p.bits == bits


def test_palette():
    colours = np.array([[255, 0, 0], [0, 255, 0], [9, 8, 7]], np.uint8)
    i = np.arange(12).reshape(3, 4) % 3
    image = Image.fromarray(i.astype(np.uint8), "P")
    image.putpalette(colours.tobytes())
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        p = read_raster(written(image, kind))
        assert np.array_equal(p.pixels, colours[i]) and p.notes == ["palette looked up"] and p.bits == 8
    for kind in ("PNG", "GIF"):
        p = read_raster(written(image, kind, transparency=1), Rules(background=77))
        assert np.array_equal(p.pixels, np.where((i == 1)[..., None], 77, colours[i])) and p.notes == ["palette looked up", "transparency laid on gray 77"]
    p = read_raster(written(image, transparency=bytes([255, 51, 0])), Rules(background=100))     # one fifth there, and not there
    assert np.array_equal(p.pixels, np.array([[255, 0, 0], [80, 131, 80], [100, 100, 100]])[i])


@pytest.mark.parametrize("background", [0, 200])
def test_alpha_is_laid_on_the_background(background):
    alpha = np.tile(np.array([0, 51, 128, 255], np.uint8), (24, 5))
    rgb = np.dstack([GRAY, GRAY[::-1], 255 - GRAY])
    for x in (GRAY[..., None], rgb):
        share = alpha[..., None] / 255
        want = (x * share + background * (1 - share)).squeeze()
        files = [written(np.dstack([x, alpha]))] + [written(np.dstack([x, alpha]), "TIFF")] + [written(np.dstack([x, alpha]), "WEBP", lossless=True, exact=True)] * (x.shape[2] == 3)
        for data in files:
            p = read_raster(data, Rules(background=background))
            assert np.abs(p.pixels - want).max() <= 1 and p.notes == [f"transparency laid on gray {background}"]
    opaque = read_raster(written(np.dstack([rgb, np.full_like(GRAY, 255)])), Rules(background=background))
    assert np.array_equal(opaque.pixels, rgb) and opaque.notes == ["opaque alpha dropped"]


@pytest.mark.parametrize("channels", [1, 3])
def test_premultiplied_alpha(channels):
    x = np.dstack([GRAY] * channels + [np.full_like(GRAY, 128)])
    x[..., :channels] = x[..., :channels] // 2       # the gray, times one half
    more = {338: (3, 1, struct.pack("<Hxx", 1))}
    raw, photometric = x.tobytes(), 1 if channels == 1 else 2
    more |= {258: (3, 2, struct.pack("<HH", 8, 8))} if channels == 1 else {258: (3, 1, struct.pack("<Hxx", 8))}
    p = read_raster(tiff(x, photometric, raw=raw, more=more))
    want = GRAY // 2         # laid on black it is what is stored
    assert np.abs(p.pixels.reshape(*GRAY.shape, -1).astype(int) - want[..., None]).max() <= 2 and p.notes == ["transparency laid on gray 0"]


def test_one_transparent_colour():
    x = np.where(GRAY > 128, 3, GRAY)
    p = read_raster(png(x, 8, 0, chunk(b"tRNS", struct.pack(">H", 3))), Rules(background=50))
    assert np.array_equal(p.pixels, np.where(x == 3, 50, x))
    rgb = np.dstack([x] * 3)
    p = read_raster(png(rgb, 8, 2, chunk(b"tRNS", struct.pack(">HHH", 3, 3, 3))), Rules(background=50))
    assert np.array_equal(p.pixels, np.where(rgb == 3, 50, rgb))
    p = read_raster(png(DEEP, 16, 0, chunk(b"tRNS", struct.pack(">H", 3))))
    assert np.array_equal(p.pixels, DEEP) and p.notes == ["one transparent value taken as a gray"]


def test_sixteen_bits_of_colour_are_read_as_eight():
    x = RNG.integers(0, 65536, (24, 20, 4)).astype(np.uint16)
    p = read_raster(png(x[..., :3], 16, 2))
    assert np.abs(p.pixels - x[..., :3] / 257).max() <= 1 and (p.bits, p.notes) == (16, ["16 bits a channel read as 8"])
    x[..., 3] = 65535
    assert np.abs(read_raster(png(x, 16, 6)).pixels - x[..., :3] / 257).max() <= 1
    p = read_raster(png(x[..., 2:], 16, 4))
    assert np.abs(p.pixels.reshape(24, 20, -1) - x[..., 2:3] / 257).max() <= 1 and "16 bits a channel read as 8" in p.notes
    p = read_raster(tiff(x[..., :3], 2, ">"))
    assert np.abs(p.pixels - x[..., :3] / 257).max() <= 1 and p.notes == ["16 bits a channel read as 8"]


def test_inks():
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 255, 0], [0, 0, 0, 255], [0, 0, 0, 128]]], np.uint8).repeat(16, 0).repeat(16, 1)
    want = np.array([[[255, 255, 255], [0, 255, 255], [255, 0, 255]], [[255, 255, 0], [0, 0, 0], [127, 127, 127]]]).repeat(16, 0).repeat(16, 1)
    note = ["CMYK converted to RGB, without a colour profile"]
    p = read_raster(tiff(inks, 5))
    assert np.abs(p.pixels - want).max() <= 1 and p.notes == note
    adobe = written(Image.fromarray(inks, "CMYK"), "JPEG", quality=95, subsampling=0)
    assert b"Adobe" in adobe                                                        # the convention of inverted inks
    p = read_raster(adobe)
    assert np.abs(p.pixels - want).max() <= 8 and p.notes == note


def test_ycbcr():
    rgb = np.array([[200, 30, 90], [10, 180, 250], [128, 128, 128], [0, 0, 0]])
    kr, kg, kb = .299, .587, .114
    y = rgb @ [kr, kg, kb]
    cb, cr = 128 + (rgb[:, 2] - y) / (2 - 2 * kb), 128 + (rgb[:, 0] - y) / (2 - 2 * kr)
    x = np.rint(np.stack([y, cb, cr], 1)).astype(np.uint8).reshape(2, 2, 3).repeat(2, 0).repeat(2, 1)
    p = read_raster(tiff(x, 6, more={530: (3, 2, struct.pack("<HH", 1, 1))}))
    assert np.abs(p.pixels[::2, ::2].reshape(-1, 3) - rgb).max() <= 2 and p.notes == ["YCbCr converted to RGB, without a colour profile"]


def test_lab():
    "The gray axis of L*: L* = 50 is a luminance of 0.184, 119 in sRGB; 100 is white"
    x = np.array([[[0, 0, 0], [128, 0, 0], [255, 0, 0]]], np.uint8).repeat(2, 0)
    p = read_raster(tiff(x, 8))
    assert np.abs(p.pixels[0] - np.array([[0] * 3, [119] * 3, [255] * 3])).max() <= 2 and p.notes == ["LAB converted to RGB, without a colour profile"]


TURNS = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: np.swapaxes(x, 0, 1), 6: lambda x: np.rot90(x, -1),
         7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2), 8: lambda x: np.rot90(x, 1)}    # from what is stored to what is upright (EXIF 2.3, table 6)


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_rotation_is_undone(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    notes = ["EXIF rotation undone"] * (orientation > 1)
    for data, x in ((written(GRAY, exif=exif), GRAY), (written(DEEP, exif=exif), DEEP), (written(np.dstack([GRAY] * 3), "WEBP", lossless=True, exif=exif), np.dstack([GRAY] * 3)),
                    (tiff(GRAY, orientation=orientation), GRAY), (tiff(DEEP, order=">", orientation=orientation), DEEP),
                    (written(GRAY, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation}), GRAY)):
        p = read_raster(data)
        assert np.array_equal(p.pixels, TURNS[orientation](x)) and p.notes == notes
    flat = written(GRAY, "JPEG")
    segment = exif.tobytes()
    p = read_raster(flat[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + flat[2:])
    assert np.array_equal(p.pixels, TURNS[orientation](read_raster(flat).pixels)) and p.notes == notes


def test_damaged_exif_does_not_damage_the_picture():
    p = read_raster(written(GRAY, exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage"))
    assert np.array_equal(p.pixels, GRAY)
    p = read_raster(written(GRAY, exif=b"Exif\0\0nonsense"))
    assert np.array_equal(p.pixels, GRAY) and p.notes == ["EXIF data are damaged: taken as it lies"]


@pytest.mark.parametrize("kind, how", [("TIFF", {}), ("GIF", {}), ("PNG", {}), ("WEBP", dict(lossless=True)), ("MPO", dict(quality=100))])
def test_the_first_of_several_pages(kind, how):
    data = written(GRAY, kind, save_all=True, append_images=[Image.fromarray(255 - GRAY), Image.fromarray(GRAY[::-1])], **how)
    p = read_raster(data)
    x = p.pixels.reshape(*GRAY.shape, -1)[..., 0].astype(int)
    assert np.abs(x - GRAY).max() <= (3 if kind == "MPO" else 0) and p.notes == ["first of 3 pages"] + ["palette looked up"] * (kind == "GIF")


FILES = {f"{kind} {how} {x.ndim}{x.dtype}": written(x, kind, **how) for x in (GRAY, np.dstack([GRAY, GRAY[::-1], 255 - GRAY])) for kind, how in (
    ("PNG", {}), ("JPEG", {}), ("JPEG", dict(progressive=True)), ("BMP", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", dict(compression="tiff_lzw")),
    ("TIFF", dict(compression="tiff_adobe_deflate")), ("TIFF", dict(compression="jpeg")), ("TIFF", dict(compression="packbits")), ("WEBP", {}), ("WEBP", dict(lossless=True)))}
FILES |= {"16": written(DEEP), "16B": tiff(DEEP, order=">"), "negative": tiff(DEEP, 0, ">"), "float": written(DEEP.astype(np.float32), "TIFF"),
          "palette": written(Image.fromarray(GRAY).convert("P"), transparency=3), "MPO": written(GRAY, "MPO", save_all=True, append_images=[Image.fromarray(GRAY)])}


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_whole_or_nothing(name, monkeypatch):
    data = FILES[name]
    whole, kind = read_raster(data).pixels, raster_format(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)       # as a program may have set it
    read = 0
    for n in sorted({*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data))}):
        try: assert np.array_equal(read_raster(data[:n]).pixels, whole), n
        except Skipped as e: assert e.kind == "damaged" or n < 32 or kind == "TIFF" and e.kind == "unsupported"     # tags lost
        else: read += 1
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and read < 50


def test_damaged_files_give_only_the_documented_error(recwarn):
    rng, counts = np.random.default_rng(1), {}
    for i in range(600):
        data = bytearray(list(FILES.values())[i % len(FILES)])
        for _ in range(rng.integers(1, 9)):
            a = int(rng.integers(0, min(len(data), 400 if i % 2 else len(data))))
            if i % 3: data[a] = rng.integers(256)
            else: data[a:a + int(rng.integers(1, 5))] = rng.bytes(int(rng.integers(0, 6)))
        try: kind = "read" if read_raster(bytes(data), Rules(max_pixels=10**6)).pixels.size else ""
        except Skipped as e: kind = e.kind
        counts[kind] = counts.get(kind, 0) + 1
    assert set(counts) <= {"read", "damaged", "refused", "unsupported", "no image"} and counts["damaged"] > 100 and counts["read"] > 50
    assert not [w for w in recwarn if "PIL" in w.filename]


def test_memory_that_is_not_there_is_a_damage(monkeypatch):
    def load(self): raise MemoryError
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert skipped(written(GRAY, "BMP")).reason == "BMP: MemoryError"


def test_too_many_pixels_are_refused_before_they_are_unpacked(monkeypatch):
    large = np.broadcast_to(np.uint8(0), (65000, 65000))
    claims = png(large, 8, 0, rows=b"\0")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)              # would raise if it were called
    for data in (claims, tiff(large, raw=b"\0")):
        e = skipped(data)
        assert e.kind == "refused" and "max_pixels=67,108,864" in e.reason
    assert skipped(written(GRAY, "JPEG"), max_pixels=479).kind == "refused"
    monkeypatch.undo()
    assert read_raster(written(GRAY, "JPEG"), Rules(max_pixels=480)).pixels.shape == GRAY.shape


def test_text_that_grows_is_refused():
    bomb = zlib.compress(bytes(5 * PngImagePlugin.MAX_TEXT_CHUNK), 9)
    e = skipped(png(GRAY, 8, 0, chunk(b"zTXt", b"note\0\0" + bomb)))
    assert e.kind == "refused" and "MAX_TEXT_CHUNK" in e.reason


def test_a_tag_that_claims_gigabytes():
    import tracemalloc
    data = tiff(GRAY, more={700: (1, 2**31 - 1, struct.pack("<I", 200)), 33432: (2, 2**32 - 1, struct.pack("<I", 8))})
    tracemalloc.start()
    try: assert np.array_equal(read_raster(data).pixels, GRAY)
    except Skipped as e: assert e.kind == "damaged"
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_what_pillow_does_not_know():
    assert skipped(tiff(DEEP.astype(np.float64))).kind == "unsupported"         # floats of 64 bits
    e = skipped(tiff(GRAY, more={259: (3, 1, struct.pack("<Hxx", 34712))}))
    assert e.kind == "unsupported" and "34712" in e.reason and "save it as PNG" in e.reason
    e = skipped(tiff(GRAY, None))
    assert e.kind == "damaged" and "PhotometricInterpretation is missing" in e.reason


@pytest.mark.parametrize("data", [b"", b"BMI,age\n23,4\n", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", b"II", b"\x89PN"])
def test_no_raster(data):
    assert raster_format(data) is None and skipped(data).kind == "no image"


def test_errors_go_from_one_process_to_another():
    e = skipped(written(GRAY)[:90])
    assert (pickle.loads(pickle.dumps(e)).kind, pickle.loads(pickle.dumps(e)).reason) == (e.kind, e.reason)


def test_switches_are_put_back(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    before = warnings.filters[:]
    gate = threading.Barrier(2)

    log = logging.getLogger("some.decoder")
    log.setLevel(logging.INFO)

    def work(late):
        with quiet("some.decoder"):
            gate.wait()
            assert ImageFile.LOAD_TRUNCATED_IMAGES is False and not log.isEnabledFor(logging.CRITICAL)
            if late: gate.wait()
        if not late: gate.wait()                # the other one leaves last

    threads = [threading.Thread(target=work, args=(late,)) for late in (False, True)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and warnings.filters == before and log.level == logging.INFO
    try:
        with quiet(): raise KeyError
    except KeyError: assert ImageFile.LOAD_TRUNCATED_IMAGES is True and warnings.filters == before
