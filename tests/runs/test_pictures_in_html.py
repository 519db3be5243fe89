"""Pictures inside a page: within their budget, and colours for any column."""
import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medstrat.runs.pictures_in_html import (
    Embedding,
    as_jpeg,
    colouring,
    compact,
    json_script,
    map_parts,
    sample_embedding,
)

rng = np.random.default_rng(0)


def pixels(uri): return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_a_picture_is_reduced_in_proportion_and_never_enlarged():
    assert pixels(as_jpeg(np.zeros((300, 150), np.uint8))).shape == (128, 64)
    assert pixels(as_jpeg(np.zeros((300, 150, 3), np.uint8), 100)).shape == (100, 50, 3)
    assert pixels(as_jpeg(np.zeros((8, 8, 1)))).shape == (8, 8)


def test_floats_and_bytes_give_the_same_picture():
    x = rng.integers(0, 256, (16, 16, 1), dtype=np.uint8)
    assert as_jpeg(x) == as_jpeg(x / 255) == as_jpeg(x[..., 0])
    with pytest.raises(ValueError, match="floats in"): as_jpeg(x.astype(float))


@pytest.mark.parametrize("budget, side", [(1e9, 64), (200 * 2000, 48), (10, 32)])
def test_pictures_get_coarser_until_they_fit(budget, side):
    noise = rng.integers(0, 256, (200, 64, 64, 1), dtype=np.uint8)
    found = compact(noise, budget)
    assert len(found) == 200 and pixels(found[0]).shape == (side, side)
    if side > 32: assert sum(map(len, found)) <= budget * 1.01
    assert compact(noise[:0]) == []


@pytest.mark.parametrize("values, labels, codes", [
    ([True, False, None], ["False", "True", "no value"], [1, 0, 2]),
    (pd.array([10, 2, None], "Int64"), ["2", "10", "no value"], [1, 0, 2]),
    ([1.5, np.nan, np.inf], ["1.5", "no value"], [0, 1, 1]),
    (["b", "a", 3], ["3", "a", "b"], [2, 1, 0]),
    ([[1], [2], [1]], ["[1]", "[2]"], [0, 1, 0]),
    ([None, None, None], ["no value"], [0, 0, 0]),
    (pd.Categorical(["x", "y", "x"]), ["x", "y"], [0, 1, 0]),
    (pd.to_datetime(["2020-01-02", None, "2020-01-02"]), ["2020-01-02 00:00:00", "no value"], [0, 1, 0]),
])
def test_any_column_has_colours(values, labels, codes):
    found = colouring("c", pd.Series(values))
    assert (found["labels"], found["codes"]) == (labels, codes) and len(found["colours"]) == len(labels)


def test_rare_values_are_one():
    values = pd.Series([f"v{i:02d}" for i in range(20) for _ in range(30 - i)])
    found = colouring("c", values)
    assert found["labels"] == [*(f"v{i:02d}" for i in range(11)), "other"] and len(set(found["colours"])) == 12
    assert [found["labels"][k] for k in found["codes"]] == [v if v < "v11" else "other" for v in values]


def test_numbers_are_cut_into_fifths_and_ties_into_fewer():
    found = colouring("c", pd.Series(np.arange(100)))
    assert found["codes"] == [i // 20 for i in range(100)]
    tied = colouring("c", pd.Series([0.] * 90 + list(range(1, 20)) + [np.nan]))
    assert tied["codes"][-1] == len(tied["labels"]) - 1 and set(tied["codes"]) == set(range(len(tied["labels"])))


def test_lengths_and_numbers_are_checked():
    good = dict(xy=np.zeros((3, 2)), clusters=[0, 1, 0], names=list("abc"))
    for wrong in (dict(clusters=[0]), dict(names=["a"]), dict(probability=np.ones(2)), dict(columns=pd.DataFrame(dict(a=[1]))),
                  dict(thumbnails=np.zeros((4, 2, 2, 1), np.uint8)), dict(clusters=[0, -1, 0])):
        with pytest.raises(ValueError, match="needed"): Embedding(**good | wrong)


def test_a_sample_keeps_what_belongs_together():
    n = 50
    e = Embedding(np.stack([np.arange(n)] * 2, 1), np.arange(n), [str(i) for i in range(n)], np.arange(n, dtype=np.uint8).reshape(-1, 1, 1, 1),
                  np.arange(n) / n, pd.DataFrame(dict(i=np.arange(n)), index=np.arange(n)[::-1]))
    s = sample_embedding(e, 10)
    rows = s.clusters
    assert len(rows) == 10 and (np.diff(rows) > 0).all() and s.names == [str(i) for i in rows]
    for part in (s.xy[:, 0], s.thumbnails[:, 0, 0, 0], s.probability * n, s.columns.i): assert np.allclose(part, rows)


@pytest.mark.parametrize("n", [1, 2])
def test_a_map_of_next_to_nothing(n):
    parts = map_parts(Embedding(np.zeros((n, 2)), np.zeros(n, int), ["a"] * n))
    assert set(parts) == {"data", "script", "library"}


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>", "\u2028\u2029", "é\udcff\x00", '"\\'])
def test_data_come_back_and_end_nothing(text):
    script = json_script({"k": [text]}, "i")
    inside = script.removeprefix('<script type="application/json" id="i">').removesuffix("</script>")
    assert json.loads(inside) == {"k": [text]} and inside.isascii() and not set("<>&") & set(inside)
