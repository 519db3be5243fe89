"Random changes of images: each operation against an independent computation, its probability, and what a batch may look like."
import random
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from medstrat.parts import augmentation
from medstrat.parts.augmentation import (
    AUGMENTATIONS,
    BLUR,
    DEGREES,
    NOISE,
    OPERATIONS,
    SCALE,
    SHIFT,
    TURN,
    Augmentation,
    augment,
    augmenter,
)

SIZES = [(16, 16), (12, 20), (21, 13)]     # square, wide, high


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


def smooth(n, size=(16, 16), channels=1, seed=0):
    "Images (n,C,H,W) in [0,1] on which interpolation can be compared"
    x = np.random.default_rng(seed).random((n, channels, *size))
    x = ndimage.gaussian_filter(x, (0, 0, 1.5, 1.5))
    return torch.from_numpy(((x - x.min()) / np.ptp(x)).astype(np.float32))


def drawn(name, size, crop=0.5): return augmentation.make_operation(name, size, crop, 0.2)._params     # what kornia has drawn last


def watched(monkeypatch, names=OPERATIONS):
    "Operations that change nothing and note which images they were given: the first pixel is the image's number"
    seen = {name: [] for name in names}
    def make(name, size, crop, exposure):
        def note(x): seen[name] += (x[:, 0, 0, 0] * 2**14).round().int().tolist(); return x
        return note
    monkeypatch.setattr(augmentation, "make_operation", make)
    return seen


def numbered(n): return (torch.arange(n) / 2**14).reshape(n, 1, 1, 1).expand(n, 1, 8, 8).contiguous()


# ---- geometry

def turned(image, matrix, mode):
    "scipy: output pixel (x,y) comes from matrix⁻¹ (x,y,1), linear interpolation"
    back = np.linalg.inv(matrix)
    swap = lambda m: m[[1, 0]][:, [1, 0]]      # scipy counts rows first
    return ndimage.affine_transform(image.astype(np.float64), swap(back[:2, :2]), back[:2, 2][[1, 0]], order=1, mode=mode)


def around_centre(size, degrees, scale=1.0, shift=(0, 0)):
    "Turn (counter-clockwise as seen, so that y points down), scale, then shift; about the middle of the pixels' centres"
    h, w = size
    t, c = np.deg2rad(degrees), np.array([(w - 1) / 2, (h - 1) / 2])
    turn = scale * np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
    m = np.eye(3)
    m[:2, :2], m[:2, 2] = turn, c + np.asarray(shift) - turn @ c
    return m


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rotation(size):
    x = smooth(40, size)
    y, angles = augment(x, dict(rotation=1.0)), drawn("rotation", size)["degrees"].numpy()
    assert np.abs(angles).max() <= TURN == 30 and angles.min() < -15 and angles.max() > 15 and len(set(angles)) == 40
    inside = ndimage.distance_transform_edt(np.pad(np.ones(size), 1))[1:-1, 1:-1] > 1
    for one, two, a in zip(x[:, 0].numpy(), y[:, 0].numpy(), angles):
        m = around_centre(size, a)
        whole = turned(np.ones(size), m, "constant") > 0.999      # at the rim the two differ in what lies outside
        assert (whole & inside).mean() > 0.4
        np.testing.assert_allclose(two[whole], turned(one, m, "constant")[whole], atol=2e-3)
    corners = y[np.abs(angles) > 20][:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).all()       # black comes in


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_affine(size):
    x = smooth(40, size)
    y, p = augment(x, dict(affine=1.0)), {k: v.numpy() for k, v in drawn("affine", size).items() if isinstance(v, torch.Tensor)}
    assert np.abs(p["angle"]).max() <= DEGREES and 1 - SCALE <= p["scale"].min() <= p["scale"].max() <= 1 + SCALE and (p["scale"][:, 0] == p["scale"][:, 1]).all()
    h, w = size
    assert (np.abs(p["translations"]) <= np.array([w, h]) * SHIFT + 1e-4).all() and all(len(np.unique(v)) > 20 for v in (p["angle"], p["scale"], p["translations"]))
    for i in range(len(x)):
        m = around_centre(size, -p["angle"][i], p["scale"][i, 0], p["translations"][i])
        np.testing.assert_allclose(y[i, 0], turned(x[i, 0].numpy(), m, "nearest"), atol=2e-3)
    assert (augment(torch.full((9, 1, *size), 0.7), dict(affine=1.0)) - 0.7).abs().max() < 1e-5     # the border is drawn out: nothing black


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_flip(size, channels):
    x = smooth(6, size, channels)
    np.testing.assert_allclose(augment(x, dict(flip=1.0)), x.numpy()[..., ::-1], atol=1e-6)
    assert augment(augment(x, dict(flip=1.0)), dict(flip=1.0)).sub(x).abs().max() < 1e-6


def boxes(size, crop):
    s = drawn("crop", size, crop)["src"].numpy()
    return [tuple(int(v) for v in (b[0, 1], b[2, 1] + 1, b[0, 0], b[2, 0] + 1)) for b in s]     # top, bottom, left, right


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_is_a_rectangle_made_larger(size):
    x = smooth(40, size)
    y = augment(x, dict(crop=1.0), crop=0.3)
    for one, two, (top, bottom, left, right) in zip(x[:, 0].numpy(), y[:, 0].numpy(), boxes(size, 0.3)):
        rows, cols = np.linspace(top, bottom - 1, size[0]), np.linspace(left, right - 1, size[1])     # corners on corners
        np.testing.assert_allclose(two, ndimage.map_coordinates(one, np.meshgrid(rows, cols, indexing="ij"), order=1), atol=2e-3)


@pytest.mark.parametrize("crop", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [(32, 32), (16, 32), (48, 24)], ids=str)
def test_share_of_a_crop(size, crop):
    "At least `crop` of the area, up to all of it, and the sides keep their proportion to 0.9 … 1.1"
    augment(smooth(300, size), dict(crop=1.0), crop=crop)
    sides = np.array([(bottom - top, right - left) for top, bottom, left, right in boxes(size, crop)])
    share, stretch = sides.prod(1) / np.prod(size), (sides[:, 1] / size[1]) / (sides[:, 0] / size[0])
    whole_pixels = 1 / sides.min(1)
    assert (share >= crop - 2 * whole_pixels * crop - 1e-6).all() and share.max() >= min(1.0, crop + 0.3) * 0.9
    assert (stretch >= 0.9 - 1.5 * whole_pixels).all() and (stretch <= 1.1 + 1.5 * whole_pixels).all()


@pytest.mark.parametrize("size", [(16, 16), (12, 20)], ids=str)
def test_a_crop_that_keeps_everything(size):
    "But for a row or a column that rounding costs"
    x = smooth(50, size)
    y = augment(x, dict(crop=1.0), crop=1.0)
    whole = [b == (0, size[0], 0, size[1]) for b in boxes(size, 1.0)]
    assert all(bottom - top >= size[0] - 1 and right - left >= size[1] - 1 for top, bottom, left, right in boxes(size, 1.0)) and sum(whole) > 25
    assert y[whole].sub(x[whole]).abs().max() < 1e-5


@pytest.mark.parametrize("side", [1, 2, 8, 28])
def test_the_smallest_crops_keep_a_pixel(side):
    x = smooth(200, (side, side)) if side > 2 else torch.rand(200, 1, side, side)
    y = augment(x, dict(crop=1.0), crop=1e-9)
    assert y.shape == x.shape and y.isfinite().all() and min(b - t for t, b, l, r in boxes((side, side), 1e-9)) >= 1


def test_crops_lie_everywhere():
    augment(smooth(500, (20, 20)), dict(crop=1.0), crop=0.1)
    b = np.array([v for v in boxes((20, 20), 0.1) if v[1] - v[0] < 12])
    middle = np.stack([b[:, :2].mean(1), b[:, 2:].mean(1)])
    assert (middle.min(1) < 6).all() and (middle.max(1) > 14).all() and abs(np.corrcoef(middle)[0, 1]) < 0.3 and (np.abs(middle.mean(1) - 10) < 1).all()


# ---- gray values

def test_blur_of_a_point():
    x = torch.zeros(50, 1, 9, 11)
    x[:, :, 4, 5] = 1
    y, sigma = augment(x, dict(blur=1.0)), drawn("blur", (9, 11))["sigma"].numpy()
    assert BLUR[0] <= sigma.min() < 0.4 and 1.2 < sigma.max() <= BLUR[1] and len(np.unique(sigma)) == 50
    d = np.array([-1, 0, 1])
    for one, s in zip(y[:, 0].numpy(), sigma):
        g = np.exp(-(d**2) / (2 * s**2))
        expected = np.zeros((9, 11)); expected[3:6, 4:7] = np.outer(g, g) / g.sum() ** 2
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_blur_at_the_border():
    "Nothing dark comes in, and the mean of a smooth image stays"
    assert (augment(torch.full((9, 3, 8, 8), 0.3), dict(blur=1.0)) - 0.3).abs().max() < 1e-6
    x = smooth(30, (24, 24))
    assert (augment(x, dict(blur=1.0)).mean((1, 2, 3)) - x.mean((1, 2, 3))).abs().max() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_noise(channels):
    x = torch.full((100, channels, 32, 32), 0.5)
    noise = (augment(x, dict(noise=1.0)) - x).numpy()
    assert noise.std() == pytest.approx(NOISE, rel=0.02) and abs(noise.mean()) < 0.001
    assert stats.kstest(noise.ravel()[::7] / NOISE, "norm").pvalue > 1e-3
    each = noise.reshape(100, -1)
    np.testing.assert_allclose(each.std(1), NOISE, rtol=0.25)
    off = np.corrcoef(each) - np.eye(100)
    assert np.abs(off).max() < 6 / np.sqrt(each.shape[1])                      # every image its own
    if channels == 3: assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[..., :-1].ravel(), noise[..., 1:].ravel())[0, 1]) < 0.02


def test_exposure_is_a_growing_curve():
    "Black below, white above, no two pixels change places, every image its own curve"
    x = torch.linspace(0, 1, 16 * 16).reshape(1, 1, 16, 16).repeat(300, 1, 1, 1)
    y = augment(x, dict(exposure=1.0)).flatten(1).numpy()
    assert (np.diff(y) >= 0).all() and len(np.unique(y, axis=0)) == 300
    shown = np.abs(y - x[0].flatten().numpy()).max(1)
    assert shown.max() < 0.5 and (shown > 0.01).mean() > 0.9
    low, high = EXPOSURE = (0.8, 1.2)   # the default, 0.2
    bounds = [np.clip(np.clip(np.array([0.25, 0.5, 0.75]) + f - 1, 0, 1) * f, 0, 1) for f in EXPOSURE]     # shift, factor; then the power
    lowest, highest = bounds[0] ** high, bounds[1] ** low
    got = y[:, [64, 128, 191]]
    assert (got >= lowest - 0.02).all() and (got <= highest + 0.02).all()
    middle = got[:, 1]
    assert middle.min() < 0.35 and middle.max() > 0.65 and 0.4 < middle.mean() < 0.6                            # darker as often as brighter


def test_exposure_is_the_same_for_all_colours():
    x = smooth(20).repeat(1, 3, 1, 1)
    y = augment(x, dict(exposure=1.0))
    assert (y[:, 0] - y[:, 1]).abs().max() < 1e-6 and (y[:, 0] - y[:, 2]).abs().max() < 1e-6


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n not in ("noise",)])
def test_colours_change_together(name):
    "A gray picture in three channels stays gray; but for the noise"
    y = augment(smooth(20).repeat(1, 3, 1, 1), {name: 1.0})
    assert (y[:, 0] - y[:, 1]).abs().max() < 1e-6


@pytest.mark.parametrize("how", [*(dict([(n, 1.0)]) for n in OPERATIONS), dict.fromkeys(OPERATIONS, 1.0), dict.fromkeys(reversed(OPERATIONS), 1.0), "medical", "contrastive", "affine"], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, "both"])
def test_black_and_white(how, value):
    "The ends of the range, and noise before a power: no NaN, nothing outside"
    x = (torch.rand(30, 1, 12, 12) > 0.5).float() if value == "both" else torch.full((30, 1, 12, 12), value)
    y = augment(x, how)
    assert y.isfinite().all() and y.min() >= 0 and y.max() <= 1


# ---- probabilities

@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(list(OPERATIONS)), st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.8, 1.0]), min_size=1), st.integers(0, 1000))
def test_each_operation_has_its_own_probability(how, seed):
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as m:
        seen = watched(m)
        augment(numbered(2000), how)
    for name in OPERATIONS:
        p = how.get(name, 0.0)
        assert stats.binom.ppf(1e-6, 2000, p) <= len(seen[name]) <= stats.binom.ppf(1 - 1e-6, 2000, p) and len(set(seen[name])) == len(seen[name])


def masks(seen, n): return {k: np.isin(np.arange(n), v) for k, v in seen.items() if 0 < len(v) < n}


def test_operations_and_images_are_drawn_independently(monkeypatch):
    seen, n = watched(monkeypatch), 16000
    augment(numbered(n), dict.fromkeys(OPERATIONS, 0.5))
    m = masks(seen, n)
    assert len(m) == len(OPERATIONS)
    c = np.corrcoef(list(m.values())) - np.eye(len(m))
    assert np.abs(c).max() < 5 / np.sqrt(n)                                   # two operations of one image
    for v in m.values():
        for lag in (1, 2, n // 2): assert abs(np.corrcoef(v[:-lag], v[lag:])[0, 1]) < 5 / np.sqrt(n - lag)     # images beside each other, and the two views of one
    again = {k: list(v) for k, v in seen.items()}
    augment(numbered(n), dict.fromkeys(OPERATIONS, 0.5))
    for k, v in m.items(): assert abs(np.corrcoef(v, np.isin(np.arange(n), seen[k][len(again[k]):]))[0, 1]) < 5 / np.sqrt(n)    # one step and the next


def test_operations_are_done_in_their_order(monkeypatch):
    order = []
    monkeypatch.setattr(augmentation, "make_operation", lambda name, size, crop, exposure: lambda x: order.append(name) or x)
    for names in (list(OPERATIONS), list(OPERATIONS)[::-1]):
        order.clear()
        augment(torch.rand(3, 1, 8, 8), dict.fromkeys(names, 1.0))
        assert order == names


def test_the_named_sets():
    assert set(AUGMENTATIONS) == {"none", "affine", "contrastive", "medical"} and AUGMENTATIONS["none"] == {}
    assert AUGMENTATIONS["contrastive"] == dict.fromkeys(["rotation", "blur", "noise", "flip", "crop"], 0.5)
    assert not {"flip", "rotation"} & set(AUGMENTATIONS["medical"])
    for how in AUGMENTATIONS.values(): assert set(how) <= set(OPERATIONS) and all(0 < p <= 1 for p in how.values())
    names, own = get_args(Augmentation)     # what may be typed is what there is
    assert set(get_args(names)) == set(AUGMENTATIONS) and set(get_args(get_args(own)[0])) == set(OPERATIONS)


@pytest.mark.parametrize("name", ["affine", "blur", "flip", "crop"])
def test_what_moves_pixels_brings_nothing_in(name):
    gray = torch.full((50, 1, 32, 32), 0.4)
    torch.testing.assert_close(augment(gray, {name: 1.0}), gray, rtol=1e-4, atol=1e-4)


def test_one_call_or_two():
    x = smooth(30)
    torch.manual_seed(2); once = augmenter("medical")(x)
    torch.manual_seed(2); assert augment(x, "medical").equal(once)
    assert augment(x, "none") is x and augmenter({})(x) is x


@pytest.mark.parametrize("how", ["affine", "contrastive", "medical"])
def test_a_name_stands_for_its_dictionary(how):
    x = smooth(12)
    torch.manual_seed(3); one = augment(x, how)
    torch.manual_seed(3); assert one.equal(augment(x, dict(AUGMENTATIONS[how])))


def test_the_images_that_are_not_chosen_stay_as_they_are():
    x = smooth(400)
    same = (augment(x, dict.fromkeys(OPERATIONS, 0.05)) == x).flatten(1).all(1).float().mean()
    assert 0.95**7 - 0.1 < same < 0.95**7 + 0.1
    assert augment(x, dict.fromkeys(OPERATIONS, 0.0)).equal(x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_image_is_changed_by_itself(name):
    x = smooth(1, (32, 32)).repeat(60, 1, 1, 1)
    y = augment(x, {name: 1.0})
    kinds = lambda t: len(np.unique(t.flatten(1).numpy().round(4), axis=0))
    assert kinds(y) == 1 if name == "flip" else kinds(y) > 50      # crops end at whole pixels: some agree
    some = augment(x, {name: 0.5})
    changed = (some != x).flatten(1).any(1)
    assert 15 <= changed.sum() <= 45 and (name == "flip" or kinds(some[changed]) > 0.8 * changed.sum())


# ---- what a batch may look like

@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 3, 16, 9), (5, 3, 8, 8), (4, 1, 33, 17), (3, 2, 3, 2), (2, 5, 64, 64)], ids=str)
def test_shapes(name, p, shape):
    x = torch.rand(shape)
    for _ in range(3):
        y = augment(x, {name: p})
        assert y.shape == shape and y.dtype == torch.float32 and y.isfinite().all() and 0 <= y.min() and y.max() <= 1


@pytest.mark.parametrize("how", ["contrastive", "medical", "affine", dict(noise=0.0), "none"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype, how):
    x = torch.rand(10, 1, 12, 12).to(dtype)
    torch.manual_seed(1); y = augment(x, how)
    torch.manual_seed(1); z = augment(x.float(), how)
    assert y.dtype == torch.float32 and y.equal(z.float())


@pytest.mark.parametrize("how", ["contrastive", "medical", "affine"])
def test_under_autocast(how):
    "Interpolation weights of eight bits would draw a grid over the image"
    x = smooth(20)
    torch.manual_seed(1); y = augment(x, how)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1); z = augment(x, how)
    assert z.dtype == torch.float32 and z.equal(y)


@pytest.mark.parametrize("how", ["contrastive", "medical", dict(noise=0.1), dict(flip=0.0)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_memory_layouts(channels, how):
    "The same values in either layout, and the layout is kept"
    x = torch.rand(6, channels, 10, 12)
    torch.manual_seed(2); y = augment(x, how)
    torch.manual_seed(2); z = augment(x.to(memory_format=torch.channels_last), how)
    assert y.equal(z) and y.is_contiguous() and z.is_contiguous(memory_format=torch.channels_last)
    for odd in (x.expand(6, channels, 10, 12), torch.rand(6, channels, 20, 24)[:, :, ::2, ::2], x.transpose(2, 3).contiguous().transpose(2, 3), torch.rand(1, channels, 10, 12).expand(6, -1, -1, -1)):
        torch.manual_seed(2); one = augment(odd, how)
        torch.manual_seed(2); assert one.equal(augment(odd.contiguous(), how))


@pytest.mark.parametrize("how", [*(dict([(n, p)]) for n in OPERATIONS for p in (0.5, 1.0)), "contrastive", "medical"], ids=str)
def test_the_input_stays_as_it_was(how):
    x = torch.rand(8, 1, 12, 12)
    before = x.clone()
    y = augment(x, how)
    assert x.equal(before) and y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("how", ["contrastive", dict(noise=1.0)], ids=str)
def test_no_gradient(how):
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    assert not augment(x, how).requires_grad and torch.is_grad_enabled()
    with torch.inference_mode(): augment(torch.rand(4, 1, 9, 9), how)       # operations that were made in inference mode …
    w = torch.ones(1, requires_grad=True)
    (w * augment(torch.rand(4, 1, 9, 9), how)).sum().backward()             # … still serve a training
    assert w.grad.isfinite().all()


def test_random_numbers_come_from_torch_alone():
    x = smooth(20)
    states = random.getstate(), np.random.get_state()[1].copy()
    torch.manual_seed(5); one = augment(x, "medical")
    augment(smooth(7, (9, 13)), "contrastive", crop=0.2)            # other sizes in between, and operations made anew
    augmentation.make_operation.cache_clear()
    torch.manual_seed(5); two = augment(x, "medical")
    assert one.equal(two) and not one.equal(augment(x, "medical")) and random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
@pytest.mark.parametrize("how", ["contrastive", "medical", "affine"])
def test_on_an_accelerator(how):
    device = torch.accelerator.current_accelerator()
    x = smooth(20, channels=3).to(device).to(memory_format=torch.channels_last)
    torch.manual_seed(1); y = augment(x, how)
    torch.manual_seed(1); assert y.equal(augment(x, how)) and y.device.type == device.type and y.isfinite().all() and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("how, says", [("medcal", "medcal.*medical"), (dict(rotate=0.5), "rotate.*rotation"), (dict(flip=1.5), "1.5"), (dict(flip=-0.5), "-0.5"), (dict(flip=float("nan")), "nan")], ids=str)
def test_names_and_probabilities_that_do_not_exist(how, says):
    with pytest.raises(ValueError, match=f"(?s){says}"): augment(torch.rand(4, 1, 8, 8), how)


def test_an_operation_given_twice():
    with pytest.raises(ValueError, match="'flip' is given twice"): augment(torch.rand(4, 1, 8, 8), {"Flip": 0.5, "flip": 0.1})
