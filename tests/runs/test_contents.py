"What a report shows: by rules that do not know what anybody hopes."
import numpy as np
import pandas as pd
import pytest
from conftest import images, tiny

from medstrat.data.images import ImageSet
from medstrat.runs.contents import image_names, map_of, path_between, rivals, show_subgroups
from medstrat.runs.reference import Described, describe


def test_rivals_by_probability():
    r = np.array([[.6, .3, .1], [.2, .3, .5]], np.float32)
    rival, margin, soft = rivals(Described(np.zeros((2, 2), np.float32), r, np.zeros(2), None), np.zeros((3, 2)))
    assert soft and rival.tolist() == [1, 1] and margin == pytest.approx([.3, .2], abs=1e-6)


def test_rivals_by_distance_where_probabilities_are_hard():
    z, centres = np.array([[0, 0], [4, 0]], np.float32), np.array([[0, 1], [3, 0], [5, 1]])
    rival, margin, soft = rivals(Described(z, np.eye(3, dtype=np.float32)[[0, 1]], np.zeros(2), None), centres)
    assert not soft and rival.tolist() == [1, 2] and margin == pytest.approx([2, 2**.5 - 1], abs=1e-5)


def test_names():
    x = images(3)
    assert image_names(ImageSet(x)) == ["image 0", "image 1", "image 2"]
    assert image_names(ImageSet(x, dict(file=["a.png", "b.nii", "b.nii"], slice=[np.nan, 4, 7]))) == ["a.png", "b.nii, slice 4", "b.nii, slice 7"]


@pytest.mark.parametrize("method", ["VAE + k-means", "pixels + k-means", "DEC"])
def test_subgroups_path_and_map(method):
    x = ImageSet(images(60), pd.DataFrame(dict(file=[f"{i}.png" for i in range(60)], view=["a", "b"] * 30)))
    a = tiny(method).fit(x)
    seen = describe(a, x)
    found = show_subgroups(x, a, seen, n=4)
    assert [s.number for s in found] == [0, 1, 2] and sum(s.size for s in found) == 60 and sum(s.share for s in found) == pytest.approx(1)
    for s in found:
        own = seen.distance[seen.clusters == s.number]
        assert np.allclose(np.sort(own)[:4], s.typical.distance) and np.allclose(np.sort(own)[::-1][:4], s.outlying.distance)
        numbers = [int(n.removesuffix(".png")) for n in s.typical.names]
        assert (x.images[numbers] == s.typical.images).all() and all(n.startswith("or subgroup") for n in s.borderline.notes)
        assert s.prototype is None or s.prototype.shape == a.image_shape_
    (i, j, steps), = path_between(a, seen, 5)
    sizes = np.bincount(seen.clusters, minlength=3)
    assert len(steps) == 5 and sizes[i] >= sizes[j] >= sorted(sizes)[1] and np.allclose(steps[0], a.prototypes()[i], atol=1e-5)
    e = map_of(x, seen, x.table[["view"]], most=50)
    assert e.xy.shape == (50, 2) and e.thumbnails.shape[0] == len(e.names) == 50 and (x.images[int(e.names[7].removesuffix(".png"))] == e.thumbnails[7]).all()
