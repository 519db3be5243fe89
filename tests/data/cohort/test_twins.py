"Twins are found, also in blocks of a large set, and similar pictures are none."
import io
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medstrat.data.cohort.twins import compared, details, find_twins, plot_twins, reduced, unit


def films(n, size=48, alike=.9, seed=0, channels=1):
    "Pictures that share their coarse shape, as chest films do, and differ in the details"
    rng = np.random.default_rng(seed)
    common = gaussian_filter(rng.normal(size=(size, size)), size / 8)
    own = np.stack([gaussian_filter(rng.normal(size=(size, size)), 1) for _ in range(n)])
    x = alike**.5 * common / common.std() + (1 - alike)**.5 * own / own.std()
    return np.repeat((128 + 35 * x).clip(0, 255).astype(np.uint8)[..., None], channels, 3)


def pairs(twins): return {(p.a, p.b): p.kind for p in twins.pairs.itertuples()}


def test_reduction_is_the_mean_of_blocks():
    rng = np.random.default_rng(0)
    for side, g in ((64, 32), (50, 32), (28, 28), (8, 8), (33, 32)):
        x = rng.integers(0, 256, (3, side, side, 2)).astype(np.uint8)
        edges = [*(np.arange(g) * side // g), side]
        expected = [[x[:, edges[i]:edges[i + 1], edges[j]:edges[j + 1]].mean((1, 2)) for j in range(g)] for i in range(g)]
        np.testing.assert_allclose(reduced(x), np.array(expected).transpose(2, 0, 1, 3), atol=1e-3)


def test_correlation_and_that_of_the_details():
    x = films(6, 64)
    a, b = np.array([0, 1, 2]), np.array([3, 4, 5])
    r, r_details = compared(x, a, b, block=2)
    small = x[..., 0].reshape(6, 32, 2, 32, 2).mean((2, 4))
    np.testing.assert_allclose(r, [np.corrcoef(small[i].ravel(), small[j].ravel())[0, 1] for i, j in zip(a, b)], atol=1e-5)
    padded = np.pad(small, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rest = small - sum(padded[:, i:i + 32, j:j + 32] for i in range(3) for j in range(3)) / 9
    np.testing.assert_allclose(r_details, [np.corrcoef(rest[i].ravel(), rest[j].ravel())[0, 1] for i, j in zip(a, b)], atol=1e-4)
    assert np.allclose(np.linalg.norm(unit(details(reduced(x))), axis=1), 1, atol=1e-4) and not unit(np.full((1, 4), 7.)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_found_and_similar_pictures_are_not(channels):
    x = films(60, channels=channels)
    def jpeg(v):
        f = io.BytesIO()
        Image.fromarray(v.squeeze()).save(f, "JPEG", quality=85)
        return np.asarray(Image.open(f)).reshape(v.shape)
    rng = np.random.default_rng(1)
    copies = [x[0], x[1] // 2 + 40, jpeg(x[2]), (x[3] + rng.normal(0, 2, x[3].shape)).clip(0, 255).astype(np.uint8), (255 * (x[4] / 255)**1.1).astype(np.uint8)]
    many = np.concatenate([x, copies])
    r, _ = compared(many, np.arange(59), np.arange(1, 60))
    assert np.median(r) > .9    # much alike, and no twins
    assert pairs(find_twins(many)) == {(0, 60): "pixels"} | {(i, 60 + i): "near" for i in range(1, 5)}
    assert pairs(find_twins(many, near=1)) == {(0, 60): "pixels"}


def test_alike_as_wholes_but_not_in_the_details():
    x = films(20, alike=.9975)
    r, r_details = compared(x, np.zeros(19, int), np.arange(1, 20))
    assert (r > .995).all() and (r_details < .9).all() and find_twins(x).pairs.empty


def test_files_pixels_and_groups():
    x = films(4)[[0, 1, 1, 0, 2, 1, 3]]
    t = find_twins(x, ["f0", "f1", "g1", "f0", "f2", "f1", "f3"])
    assert pairs(t) == {(0, 3): "file", (1, 2): "pixels", (1, 5): "file"} and t.group.tolist() == [0, 1, 1, 0, -1, 1, -1] and (t.pairs["similarity"] == 1).all()
    assert pairs(find_twins(x)) == {(0, 3): "pixels", (1, 2): "pixels", (1, 5): "pixels"}


def test_empty_pictures_are_near_nothing():
    rng = np.random.default_rng(0)
    blank = (30 + rng.integers(0, 3, (50, 48, 48, 1))).astype(np.uint8)
    black = np.zeros((3, 48, 48, 1), np.uint8)
    t = find_twins(np.concatenate([films(5), blank, black]))
    assert t.flat == 53 and pairs(t) == {(55, 56): "pixels", (55, 57): "pixels"}
    assert find_twins(blank[:1]).pairs.empty and find_twins(black[:0].reshape(0, 48, 48, 1)).pairs.empty


def test_the_search_misses_no_pair_that_comparing_all_finds():
    rng = np.random.default_rng(0)
    x = films(300, 24, alike=.97)
    x = np.concatenate([x, (x[:100] + rng.normal(0, 1, x[:100].shape) * rng.uniform(0, 8, (100, 1, 1, 1))).clip(0, 255).astype(np.uint8)])
    u, d = unit(reduced(x)), unit(details(reduced(x)))
    a, b = np.triu_indices(len(x), 1)
    for near in (.98, .99, .995):
        close = ((u @ u.T)[a, b] >= near) & ((d @ d.T)[a, b] >= 1 - 10 * (1 - near))
        assert set(pairs(find_twins(x, near=near))) == set(zip(a[close].tolist(), b[close].tolist())) and close.sum() > 5


def test_across_patients_and_splits():
    x = films(4)[[0, 1, 0, 1, 0, 2, 1, 3]]
    t = find_twins(x, list("abcdefgh"))
    found = t.across(["p1", "p2", "p1", "p2", "p3", "p4", None, "p4"])
    assert found[["a", "b", "value_a", "value_b"]].values.tolist() == [[0, 4, "p1", "p3"]] and found["kind"].tolist() == ["pixels"] and np.allclose(found["similarity"], 1)
    assert t.across([None, "p2", "p1", "p3", "p3", "p4", None, "p4"])[["a", "b"]].values.tolist() == [[1, 3], [2, 4]]   # the group's first is unknown
    assert t.across(["p"] * 8).empty and t.across([None] * 8).empty and list(t.across(["p"] * 8)) == ["a", "b", "kind", "similarity", "value_a", "value_b"]
    assert t.across(pd.Series([1, 2, 1, 2, 3, 4, np.nan, 4]))[["value_a", "value_b"]].values.tolist() == [[1, 3]]


def test_a_chain_is_one_group_and_its_ends_are_asked_about():
    x = films(1).astype(float)
    d = films(1, seed=5).astype(float) - 128
    chain = np.stack([x[0] + k * .06 * d[0] for k in range(4)]).clip(0, 255).astype(np.uint8)
    t = find_twins(chain)
    assert set(t.group) == {0} and (0, 3) not in pairs(t)
    found = t.across(["p1", None, None, "p2"])
    assert found[["a", "b"]].values.tolist() == [[0, 3]] and found["similarity"][0] < t.near


def test_too_many_near_pairs_are_said_and_not_listed():
    x = (films(1) + np.random.default_rng(0).integers(0, 3, (40, 48, 48, 1))).astype(np.uint8)
    assert len(find_twins(x).pairs) > 100
    t = find_twins(np.concatenate([x, x[:1]]), most=100)
    assert pairs(t) == {(0, 40): "pixels"} and "More than 100 pairs" in t.remarks[0] and not find_twins(x).remarks


def test_a_memory_map_in_blocks_gives_the_same(tmp_path):
    x = films(30)
    x = np.concatenate([x, x[:5] // 2 + 30])
    np.save(tmp_path / "x.npy", x)
    pd.testing.assert_frame_equal(find_twins(np.load(tmp_path / "x.npy", mmap_mode="r")).pairs, find_twins(x).pairs)


def test_a_limit_that_makes_no_sense():
    for near in (.5, 1.1, float("nan")):
        with pytest.raises(ValueError, match="a correlation from 0.9 to 1 is needed"): find_twins(films(2), near=near)


def test_the_figure_shows_the_pairs_nearest_the_limit():
    x = films(10)
    rng = np.random.default_rng(0)
    t = find_twins(np.concatenate([x, *((x[i:i + 1] + rng.normal(0, i, x[:1].shape)).clip(0, 255).astype(np.uint8) for i in range(1, 6))]))
    titles = [ax.get_title() for ax in plot_twins(t, 3).axes if ax.get_title()]
    assert titles == [f"{v:.4f}" for v in t.pairs["similarity"].nsmallest(3)] and plot_twins(find_twins(x)) is None


def test_known_copies_in_a_public_set():
    path = os.path.join(os.environ.get("MEDSTRAT_DATA", ""), "pneumoniamnist.npz")
    if not os.path.isfile(path): pytest.skip("pneumoniamnist.npz is not in the folder named by MEDSTRAT_DATA")
    with np.load(path) as z: x, part = np.concatenate([z["train_images"], z["val_images"], z["test_images"]])[..., None], ["train"] * 4708 + ["val"] * 524 + ["test"] * 624
    t = find_twins(x)
    assert (t.pairs["kind"] == "pixels").all() and len(t.across(part)) == 8
    assert ((t.pairs["a"] < 4708) & (t.pairs["b"] < 4708)).sum() == 18   # 4,690 different images among 4,708, as its description says
