"What is known of images without labels: against closed forms, and on the sets that there are."
import numpy as np
import pytest

from medstrat.data.sources import load_dataset
from medstrat.parts.kinds import Facts, kind_of, two_tone


@pytest.mark.parametrize("levels, share", [((0, 255), .1), ((0, 255), .5), ((0, 127, 255), .5)])
def test_two_tone_is_the_share_of_a_bernoulli_variance(levels, share):
    rng = np.random.default_rng(0)
    frame = [(0, 255) * 10, (255, 0) * 10]            # no row and no column of one value
    x = rng.choice(levels, (40, 20, 20), p=[1 - share, *np.full(len(levels) - 1, share / (len(levels) - 1))]).astype(np.uint8)
    x[:, :2], x[:, :, :2] = frame, np.transpose(frame)
    v, m = x.astype(float).var() / 255**2, x.mean() / 255
    assert two_tone(x) == pytest.approx(v / (m * (1 - m)), rel=1e-4)
    assert two_tone(x) <= 1 + 1e-6 and (two_tone(x) == pytest.approx(1)) == (len(levels) == 2)


def test_inverted_ink_is_ink_and_shades_are_film():
    digits = load_dataset("digits").train.images
    assert kind_of(digits) == kind_of(digits.max() - digits) == "ink"
    assert kind_of(np.random.default_rng(0).random((9, 16, 16))) == "film"
    three = np.repeat(digits, 3, axis=-1)
    assert kind_of(three) == "ink"                    # three equal channels are gray
    three = three.copy(); three[0, 0, 0] = 255, 0, 0
    assert kind_of(three) == "photo"


@pytest.mark.parametrize("name, kind", [("mnist", "ink"), ("pneumoniamnist", "film")])
def test_kinds_of_known_sets(name, kind):
    try: images = load_dataset(name).train.images
    except OSError as e: pytest.skip(f"{name} is not here: {e}")
    assert kind_of(images) == kind


def test_a_few_images_decide_for_many():
    many = np.zeros((10_000, 8, 8), np.uint8)
    many[1::2] = 255
    assert Facts.of(many[..., None]).kind == "ink" and Facts.of(many[..., None]).n == 10_000


@pytest.mark.parametrize("array, kind", [((5, 8, 8, 1), "vectors"), ((5, 9), "film")])
def test_a_kind_that_cannot_be_is_refused(array, kind):
    with pytest.raises(ValueError, match=f"kind='{kind}'"): Facts.of(np.zeros(array), kind)


@pytest.mark.parametrize("bars", [((0, 0), (18, 18)), ((20, 20), (20, 20)), ((0, 40), (0, 0))])
@pytest.mark.parametrize("gray", [0, 255])
def test_a_frame_around_films_does_not_make_them_ink(bars, gray):
    rng = np.random.default_rng(0)
    films = (255 * (.6 + .1 * rng.standard_normal((30, 28, 28)))).clip(0, 255).astype(np.uint8)
    framed = np.pad(films, ((0, 0), *bars), constant_values=gray)
    assert two_tone(framed) == pytest.approx(two_tone(films)) and kind_of(framed) == "film"
    rough = framed + rng.integers(0, 4, framed.shape, dtype=np.uint8) * (framed == 0)   # as JPEG leaves it
    assert kind_of(rough) == "film"


def test_a_frame_around_digits_leaves_them_ink():
    digits = load_dataset("digits").train.images
    assert kind_of(np.pad(digits, ((0, 0), (8, 8), (0, 20), (0, 0)))) == "ink"


def test_no_kind_is_to_be_looked_up():
    assert Facts.of(np.zeros((5, 8, 8, 1)), None) == Facts.of(np.zeros((5, 8, 8, 1)))
