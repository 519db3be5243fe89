"""Artefacts: each measure moves with what it is named after and with little else; files; and when one of them leads."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medstrat.data.cohort.rules import Rules
from medstrat.evaluation.artefacts import LeadingArtefact, leading_artefact, measure_file, measure_files, measure_picture, text_marks
from medstrat.evaluation.association import associations


def film(seed=0, shape=(224, 200), noise=2.):
    "Soft shapes in the middle, an uneven flat margin, noise: something like a chest film"
    rng = np.random.default_rng(seed)
    h, w = shape
    y, x = np.mgrid[-1:1:h * 1j, -1:1:w * 1j]
    body = 140 * np.exp(-((x / .55) ** 4 + (y / .8) ** 6)) + 15 * np.sin(9 * y) * (abs(x) < .45) * (abs(y) < .6)
    return (25 + 10 * x + 5 * y + ndimage.gaussian_filter(body, 3) + rng.normal(0, noise, shape)).clip(0, 255).round().astype(np.uint8)


def write(picture, text, at, level, size):
    im = Image.fromarray(picture.copy())
    ImageDraw.Draw(im).text(at, text, fill=level, font=ImageFont.load_default(size=size))
    return np.asarray(im)


def moved(a, b, least=.02):
    "The measures that differ by more than 2 % of their value"
    a, b = measure_picture(a), measure_picture(b)
    return {k.removeprefix("file_") for k in a if abs(a[k] - b[k]) > least * max(abs(a[k]), abs(b[k]), 1e-9) + 1e-3}


# --- one change, one measure -------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(3))
def test_each_change_moves_its_measure(seed):
    p = film(seed)
    assert moved(p, p + np.uint8(30)) == {"exposure"}
    assert moved(p, np.pad(p, 12)) >= {"border", "width", "height"}
    assert {"text"} <= moved(p, write(p, "R", (10, 12), 200, 18)) <= {"text", "sharpness"}
    assert moved(p, p[:, ::-1]) == set()
    assert moved(p, p.T) == {"width", "height", "aspect"}
    assert "noise" in moved(p, film(seed, noise=4)) and "colour" not in moved(p, np.dstack([p] * 3))


def test_blurred_is_less_sharp_and_less_noisy():
    p, q = (measure_picture(x) for x in (film(), np.asarray(ndimage.gaussian_filter(film(), 2))))
    assert q["file_sharpness"] < .5 * p["file_sharpness"] and q["file_noise"] < .5 * p["file_noise"]
    assert abs(q["file_exposure"] - p["file_exposure"]) < .01


@pytest.mark.parametrize("top, bottom, left, right", [(10, 0, 0, 0), (0, 5, 7, 0), (20, 20, 20, 20), (0, 0, 0, 0)])
def test_border_is_the_framed_share(top, bottom, left, right):
    p = film()
    framed = np.pad(p, [(top, bottom), (left, right)], constant_values=255)
    assert measure_picture(framed)["file_border"] == pytest.approx(1 - p.size / framed.size)


def test_light_by_hand():
    p = np.repeat(np.array([0, 50, 100, 255], np.uint8), [10, 40, 40, 10]).reshape(10, 10)
    m = measure_picture(p)
    assert m["file_exposure"] == pytest.approx(p.mean() / 255) and m["file_clipped"] == pytest.approx(.2)
    assert m["file_contrast"] == 1 and measure_picture(p.clip(50, 100))["file_contrast"] == pytest.approx(50 / 255)


def test_sharpness_by_hand():
    "The standard deviation of scipy's Laplacian inside the picture, by the contrast"
    p = film()
    laplace = ndimage.laplace(p.astype(float))[1:-1, 1:-1]
    m = measure_picture(p)
    assert m["file_sharpness"] == pytest.approx(laplace.std() / (255 * m["file_contrast"]), rel=1e-4)


@pytest.mark.parametrize("sigma", [1, 3, 6, 12])
def test_noise_is_in_gray_levels(sigma):
    flat = np.random.default_rng(0).normal(120, sigma, (200, 200)).round().clip(0, 255).astype(np.uint8)
    assert measure_picture(flat)["file_noise"] == pytest.approx(np.hypot(sigma, 12 ** -.5), rel=.05)  # rounding is noise, too


def test_colour():
    p = film()
    red = np.dstack([p, p // 2, p // 2])
    m = measure_picture(red)
    assert m["file_colour"] == pytest.approx((p - p // 2).mean() / 255) and measure_picture(p)["file_colour"] == 0
    assert m["file_exposure"] < measure_picture(p)["file_exposure"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 120), st.booleans(), st.integers(0, 3), st.integers(0, 2**31))
def test_any_picture_has_measures(h, w, colour, kind, seed):
    "Also one pixel, one row, one gray: numbers or nan, and nothing else"
    rng = np.random.default_rng(seed)
    shape = (h * 10 if kind == 3 else h, w) + (3,) * colour
    p = (np.full(shape, seed % 256) if kind == 0 else rng.integers(256, size=shape)).astype(np.uint8)
    m = measure_picture(p)
    assert all(type(v) is float for v in m.values()) and not any(np.isinf(v) for v in m.values())
    assert all(0 <= m[f"file_{k}"] <= 1 for k in ("border", "exposure", "contrast", "clipped", "colour"))
    assert np.isnan(m["file_text"]) == (min(shape[:2]) < 96)


# --- letters -----------------------------------------------------------------------------------

@pytest.mark.parametrize("level", [0, 220])
@pytest.mark.parametrize("text, size", [("R", 14), ("L", 14), ("AP", 18), ("KV70", 12), ("12:30", 12)])
def test_letters_are_found_where_they_are(text, size, level):
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = film(seed)
        p = (p + np.uint8(60)) if level == 0 else p
        x, y = rng.integers(3, 20), rng.choice([rng.integers(3, 30), rng.integers(185, 200)])
        marks = text_marks(write(p, text, (x, y), level, size))
        ys, xs = np.nonzero(marks)
        assert not len(ys) or (ys.min() >= y - 1 and ys.max() <= y + 1.5 * size and xs.min() >= x - 1 and xs.max() <= x + 4 * size)
        found += bool(len(ys))
    assert found >= 18


def test_no_letters():
    assert not any(text_marks(film(seed)).any() for seed in range(20))
    assert not text_marks(np.full((200, 200), 9, np.uint8)).any()
    middle = write(film(), "R", (95, 100), 255, 18)
    assert not text_marks(middle).any(), "in the middle it is not looked for"


@pytest.mark.parametrize("times", [2, 4])
def test_letters_of_large_pictures(times):
    p = write(film(), "R", (10, 12), 220, 18)
    large = np.asarray(Image.fromarray(p).resize((200 * times, 224 * times), Image.Resampling.BICUBIC))
    assert measure_picture(large)["file_text"] == pytest.approx(measure_picture(p)["file_text"], rel=.4)


# --- files -------------------------------------------------------------------------------------

def test_files_and_records(tmp_path):
    paths = [tmp_path / f"{i} ü.png" for i in range(4)]
    for i, path in enumerate(paths[:3]): Image.fromarray(film(i)).save(path)
    paths[3].write_bytes(paths[0].read_bytes()[:3000])
    records = pd.DataFrame({"bits": pd.array([8, 16, 8, None], dtype="Int64"), "format": ["PNG"] * 3 + [None], "reason": ""}, index=list("abcd"))
    found = measure_files(paths, Rules(), records)
    assert found["file_megabytes"][0] == paths[0].stat().st_size / 2**20 and found.index.tolist() == [0, 1, 2, 3]
    assert found.iloc[3].isna().all() and measure_file(paths[3], Rules()) == {} == measure_file(tmp_path / "gone.png", Rules())
    assert found["file_bits"][:3].tolist() == [8, 16, 8] and found["file_format"][:3].tolist() == ["PNG"] * 3
    for name, value in measure_picture(film(1)).items(): assert found[name][1] == value
    pd.testing.assert_frame_equal(measure_files(paths, Rules(), n_jobs=2), found.drop(columns=["file_bits", "file_format"]))


def test_misfits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 paths, but 2 records"): measure_files([tmp_path / "a.png"], Rules(), pd.DataFrame({"bits": [8, 8]}))


def test_nothing_to_measure():
    assert measure_files([], Rules()).shape == (0, 12)


# --- which one leads ---------------------------------------------------------------------------

def table(names, **columns):
    rows = {k: pd.Series(v, index=names) for k, v in columns.items()}
    return pd.DataFrame({"predicts_by_chance": .25, "p_corrected": .001, **rows}, index=names)


@pytest.mark.parametrize("artefacts, columns, expected", [
    ((["file_noise", "file_text"], [.5, .6]), (["view"], [.4]), "file_text"),
    ((["file_noise", "file_text"], [.5, .6]), (["view"], [.7]), None),            # something known tells more
    ((["file_text"], [.6]), (["view"], [.6]), "file_text"),                       # as much: said
    ((["file_text"], [.34]), (["view"], [.3]), None),                             # too little to matter
    ((["file_text"], [.6]), (["patient", "view"], [.9, .3]), "file_text"),        # a patient's number explains nothing
    ((["file_text", "file_width"], [.6, np.nan]), ([], []), "file_text"),
    ((["file_width"], [np.nan]), (["view"], [.3]), None),
])
def test_which_leads(artefacts, columns, expected):
    a, c = table(artefacts[0], predicts=artefacts[1]), table(columns[0], predicts=columns[1])
    found = leading_artefact(a, c)
    assert (found and found.name) == expected
    if len(c): assert leading_artefact(a.assign(p_corrected=.06), c) is None


def test_without_other_columns():
    found = leading_artefact(table(["file_contrast"], predicts=[.5]))
    assert found == LeadingArtefact("file_contrast", .5, .25, .001, None, None)
    assert "--condition file_contrast" in str(found) and "50%" in str(found) and "25%" in str(found)
    assert "disease itself" in str(found) and "best other" not in str(found)
    assert "disease itself" not in str(leading_artefact(table(["file_width"], predicts=[.5])))


def test_two_wards_are_found():
    "Files of two wards, one of which burns a letter in: clusters of the letter are led by it, clusters of the disease are not"
    rng = np.random.default_rng(0)
    ward, ill = rng.integers(2, size=(2, 120))
    pictures = [film(i, (112, 112)) for i in range(120)]
    pictures = [write(p, "R", (5, 5), 220, 13) if w else p for p, w in zip(pictures, ward, strict=True)]
    measures, known = pd.DataFrame([measure_picture(p) for p in pictures]), pd.DataFrame({"ill": ill.astype(str)})
    of = lambda clusters: (associations(clusters, measures, n_permutations=199), associations(clusters, known, n_permutations=199))
    found = leading_artefact(*of(ward))
    assert found.name in ("file_text", "file_sharpness") and found.predicts > .95 and found.rival == "ill" and found.rival_predicts < .6
    assert leading_artefact(*of(ill)) is None
