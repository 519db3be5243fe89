"Arrays: what is refused and how, and properties that hold for any images in any layout."
import re
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.data.arrays import as_images, as_items, resize
from medstrat.data.images import ImageSet

rng = np.random.RandomState(0)


def grey(n, side=8): return rng.randint(0, 256, (n, side, side), np.uint8)


@pytest.mark.parametrize("x, error, says", [
    (np.zeros((5, 64), np.uint8), ValueError, "x.reshape"),
    (np.zeros((64, 64, 3), np.uint8), ValueError, r"x\[None\]"),
    (np.zeros((0, 8, 8), np.uint8), ValueError, "Zero images"),
    ([], ValueError, "Zero images"),
    (np.zeros((5, 1, 1, 1), np.uint8), ValueError, "smallest side is 2"),
    (np.zeros((5, 8, 1, 3), np.uint8), ValueError, "smallest side is 2"),
    (np.zeros((5, 8, 8, 4), np.uint8), ValueError, "1 .gray. or 3"),
    (np.zeros((5, 8, 8, 8, 1), np.uint8), ValueError, "Images of shape"),
    (np.zeros((5, 8, 8), np.int16), TypeError, "int16"),
    (np.zeros((5, 8, 8), bool), TypeError, "bool"),
    (np.full((5, 8, 8), None), TypeError, "object"),
    (np.full((5, 8, 8), np.nan), ValueError, "Image 0 holds NaN"),
    (np.full((5, 8, 8), np.inf, np.float32), ValueError, "infinite"),
    (np.full((5, 8, 8), 1.01), ValueError, "from 1.01 to 1.01"),
    (np.full((5, 8, 8), -.01), ValueError, r"must lie in \[0, 1\]"),
    ([np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], ValueError, "Item 1 has shape"),
    ([np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32)], ValueError, "float32"),
    ([{"img": np.zeros((8, 8))}], KeyError, "without 'image'"),
    ([1, 2, 3], ValueError, "Item 0 should be an image"),
    ("digits", TypeError, "load_dataset"),
    ({"image": 1}, TypeError, "dict"),
    (7, TypeError, "int was given"),
    (None, TypeError, "NoneType"),
    (pd.DataFrame(np.zeros((5, 64))), ValueError, "x.reshape"),
])
def test_bad_images(x, error, says):
    with pytest.raises(error, match=says): as_images(x)


def test_an_iterable_dataset_is_refused():
    import torch
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): yield from grey(3)
    with pytest.raises(TypeError, match="a dataset with a length"): as_images(Stream())


def test_the_bad_image_is_named_in_any_block(monkeypatch):
    monkeypatch.setattr(sys.modules["medstrat.data.arrays"]._blocks, "__defaults__", (64 * 3,))
    x = np.zeros((20, 8, 8), np.float32)
    x[13, 2, 2] = np.nan
    with pytest.raises(ValueError, match="Image 13 holds NaN"): as_images(x)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 4), h=st.integers(4, 12), w=st.integers(4, 12), c=st.sampled_from([1, 3]), floats=st.booleans())
def test_all_orders_and_types_are_the_same_images(n, h, w, c, floats):
    import torch
    x = rng.randint(0, 256, (n, h, w, c), np.uint8)
    x = (x / 255).astype(np.float32) if floats else x
    chw = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    guises = [x, chw, torch.from_numpy(x), torch.from_numpy(chw), list(x), list(chw), [(a, 0) for a in x], [{"image": torch.from_numpy(a)} for a in chw], ImageSet(x)]
    guises += [x[..., 0]] if c == 1 else []
    for g in guises:
        out = as_images(g)
        assert out.dtype == x.dtype and np.array_equal(out, x)


def test_other_floats_become_float32():
    import torch
    for x in (np.full((2, 4, 4), .5), np.full((2, 4, 4), .5, np.float16), torch.full((2, 4, 4), .5, dtype=torch.bfloat16, requires_grad=True)):
        assert as_images(x).dtype == np.float32 and np.all(as_images(x) == .5)


@settings(deadline=None, max_examples=40)
@given(side=st.integers(2, 40), new=st.integers(2, 40), value=st.integers(0, 255))
def test_resize_keeps_constant_images_and_ranges(side, new, value):
    assert np.all(resize(np.full((2, side, side, 1), value, np.uint8), new) == value)
    x = rng.rand(2, side, side, 3).astype(np.float32)
    y = resize(x, new)
    assert y.shape == (2, new, new, 3) and y.dtype == np.float32 and y.min() >= x.min() - 1e-6 and y.max() <= x.max() + 1e-6


def layouts(x, folder):
    "The values of `x` (N×H×W×C) in every layout that an array may have"
    np.save(folder / "x.npy", x)
    out = {"mirrored": x[:, :, ::-1].copy()[:, :, ::-1], "reversed": x[::-1].copy()[::-1], "bgr": x[..., ::-1].copy()[..., ::-1], "Fortran": np.asfortranarray(x),
           "channels first": np.ascontiguousarray(np.moveaxis(x, -1, 1)), "every other": np.repeat(x, 2, 0)[::2], "mapped": np.load(folder / "x.npy", mmap_mode="r"), "read-only": x.copy()}
    out["read-only"].flags.writeable = False
    return out | ({"big-endian": x.astype(">f4"), "double": x.astype(">f8")} if x.dtype.kind == "f" else {})


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.filterwarnings("error")
def test_every_layout_gives_the_same_images(tmp_path, floats):
    x = rng.randint(0, 256, (6, 9, 9, 3), np.uint8)
    x = x / np.float32(256) if floats else x   # no multiples of 1/255
    want = resize(x, 5)
    for name, view in layouts(x, tmp_path).items():
        assert np.array_equal(as_images(view), x), name
        assert np.array_equal(resize(view, 5), want) and np.array_equal(ImageSet(view).resize(5).images, want), name


@settings(deadline=None, max_examples=40)
@given(data=st.data(), new=st.integers(2, 20))
def test_an_image_is_resized_the_same_whatever_lies_beside_it(data, new):
    x = np.stack([rng.randint(0, 256, (9, 9, 1)) / data.draw(st.sampled_from([255, 256, 300])) for _ in range(4)]).astype(np.float32)
    assert np.array_equal(resize(x, new), np.concatenate([resize(a[None], new) for a in x]))


def test_advice_for_deep_images_keeps_every_level():
    from PIL import Image
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    pictures = {"I;16": Image.fromarray(ramp.astype(np.uint16)), "I;16B": Image.frombytes("I;16B", (8, 8), ramp.astype(">u2").tobytes()),
                "I": Image.fromarray(ramp.astype(np.int32)), "F": Image.fromarray(ramp.astype(np.float32))}
    for mode, picture in pictures.items():
        assert picture.mode == mode
        with pytest.raises(TypeError, match=f"Item 1 is a Pillow image of mode {mode}") as e: as_images([Image.new("L", (8, 8)), picture])
        assert "convert" not in str(e.value)
        for advice in re.findall(r"numpy\.(?:asarray|clip)\(.*?\) / 65535|numpy\.clip\(.*?, 0, 1\)", str(e.value)):
            got = as_images([eval(advice, {"numpy": np, "image": picture, "low": 0, "high": 65535})])
            assert len(np.unique(got)) == 64 and got.max() == 1
    for x in (ramp.astype(np.uint16), ramp.astype(">u2"), (ramp - 32768).astype(np.int16), ramp.astype(np.int64)):
        with pytest.raises(TypeError, match="Images of type") as e: as_images(x[None])
        advice = re.search(r"numpy\.clip\(.*?, 0, 1\)", str(e.value))[0]
        assert len(np.unique(as_images(eval(advice, {"numpy": np, "x": x[None], "low": int(x.min()), "high": int(x.max())})))) == 64
    for mode, word in (("1", "'L'"), ("P", "'RGB'"), ("RGBA", "transparency"), ("CMYK", "'RGB'"), ("LA", "transparency")):
        with pytest.raises(TypeError, match=word): as_images([Image.new(mode, (8, 8))])


@pytest.mark.parametrize("value", [np.float32(1.0000001), np.float64(1 + 1e-12), np.float32(-1e-9), np.float32(1.5), np.float16(1.001)])
def test_a_value_just_outside_is_shown_to_its_last_digit(value):
    with pytest.raises(ValueError, match="values from") as e: as_images(np.full((1, 4, 4), value))
    said = re.search("from (.*?) to", str(e.value))[1]
    assert value.dtype.type(said) == value and said not in ("0", "1")


def test_resize_does_not_depend_on_blocks(monkeypatch):
    x = grey(50, 20)
    whole = resize(x, 9)
    monkeypatch.setattr(sys.modules["medstrat.data.arrays"]._blocks, "__defaults__", (400 * 7,))
    assert np.array_equal(resize(x, 9), whole)


def test_masks_are_told_how_to_become_images():
    with pytest.raises(TypeError, match=r"Images of type bool.*x.astype\('uint8'\) \* 255"): as_images(grey(2) > 9)


def test_bytes_and_floats_are_resized_alike():
    "Bytes are rounded to bytes, and floats that were bytes to such floats; others keep their digits"
    x = grey(20)
    small, floats = resize(x, 5), resize((x / 255).astype(np.float32), 5)
    assert small.dtype == np.uint8 and floats.dtype == np.float32 and np.array_equal(floats, small / np.float32(255))
    other = resize((x / 255 * .7).astype(np.float32), 5)
    assert not np.array_equal(other, np.rint(other * 255) / np.float32(255))


@pytest.mark.parametrize("size", [1, 0, -3, 2.5, "28", True, None])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="a whole number of at least 2"): resize(grey(2), size)


def test_a_table_of_whole_numbers_is_told_how_it_becomes_features():
    with pytest.raises(ValueError, match=r"Features of whole numbers: x.astype\('float32'\)"): as_items(np.zeros((5, 7), int))
