"From columns of a table to what a decoder is told: kinds, codes, tables, rows for images that are made."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import images
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from medstrat.data.images import ImageSet
from medstrat.vae.covariates import (
    Covariates,
    column_kind,
    condition_table,
    encode_covariate,
    learn_covariate,
    rows_for,
)


def table(n=60, seed=0):
    "Five columns of the kinds that one meets"
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(color=np.array(["red", "green", "blue"])[rng.integers(0, 3, n)], age=rng.normal(50, 9, n), flag=rng.random(n) < 0.4,
                             site=rng.integers(1, 4, n), stage=pd.Categorical(np.array(["II", "I", "III"])[np.arange(n) % 3], ["I", "II", "III", "IV"], ordered=True)))


@pytest.mark.parametrize("values, kind", [
    ([1.0, 2.0], "number"), (np.float16([1, 2]), "number"), (pd.array([1.0, 2.0], "Float64"), "number"), ([1, 2], "category"), (np.int8([1, 2]), "category"),
    (pd.array([1, 2], "Int64"), "category"), (["a", "b"], "category"), (pd.array(["a", "b"], "string"), "category"), ([True, False], "category"),
    (pd.array([True, False], "boolean"), "category"), (pd.Categorical([0.5, 1.5]), "category"), (pd.Categorical(["a", "b"]), "category")], ids=str)
def test_kinds_of_columns(values, kind): assert column_kind(values) == kind


@pytest.mark.parametrize("values", [pd.date_range("2020", periods=4), pd.date_range("2020", periods=4, tz="UTC"), pd.to_timedelta([1, 2, 3, 4], "D"), [1 + 2j, 2, 3, 4]], ids=["dates", "zone", "time", "complex"])
def test_columns_that_are_neither(values):
    with pytest.raises(ValueError, match="the column 'when' holds .*give numbers .float. or categories"): column_kind(pd.Series(values, name="when"))
    with pytest.raises(ValueError, match="the column 'when' holds"): learn_covariate(values, "when")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "", "ä b"]), min_size=8, max_size=30).filter(lambda v: len(set(v)) > 1 and len(set(v)) <= len(v) // 2))
def test_categories_are_one_hot(values):
    c = learn_covariate(values, "x")
    expected = OneHotEncoder(sparse_output=False).fit_transform(np.array(values, dtype=object)[:, None])
    coded = encode_covariate(c, values)
    assert coded.dtype == np.float32 and coded.shape == (len(values), c.width) and (coded == expected).all()
    assert c.categories == tuple(sorted(set(values))) and values.count(c.typical) == max(map(values.count, values))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=2, max_size=30).filter(lambda v: max(v) - min(v) > 1e-3))
def test_numbers_are_standardised(values):
    c = learn_covariate(values, "x")
    assert c.width == 1 and c.typical == c.mean
    np.testing.assert_allclose(encode_covariate(c, values), StandardScaler().fit_transform(np.array(values)[:, None]), atol=1e-4, rtol=1e-4)
    new = [c.mean, c.mean + 3 * c.std]
    np.testing.assert_allclose(encode_covariate(c, new)[:, 0], [0, 3], atol=1e-4)      # by the training images' mean, not by its own


@pytest.mark.parametrize("dtype", ["category", "string", "boolean", "bool", "Int64", "Float64", "int8", "uint64", "float16", "float32", "object", "str"])
def test_types_of_columns(dtype):
    "Coded, written as JSON, read, and coded to the same again"
    v = np.arange(12) % 3
    values = pd.Series(v % 2 == 0 if dtype in ("boolean", "bool") else v.astype(str) if dtype in ("object", "string", "str") else v).astype(dtype)
    c = Covariates.learn(pd.DataFrame(dict(x=values)))
    again = Covariates.from_list(json.loads(json.dumps(c.to_list())))
    assert again == c and (again.encode(pd.DataFrame(dict(x=values))) == c.encode(pd.DataFrame(dict(x=values)))).all()
    assert c.columns[0].categories is None or all(type(k) in (str, bool, int, float) for k in (*c.columns[0].categories, c.columns[0].typical))
    plain = pd.DataFrame(dict(x=list(values)))      # what pandas calls the type does not matter
    assert (c.encode(plain) == c.encode(pd.DataFrame(dict(x=values)))).all()


def test_unused_and_ordered_categories(): assert learn_covariate(table().stage, "stage").categories == ("I", "II", "III")


def test_rows_are_counted_not_indexed():
    "A table that was shuffled or cut keeps its old row numbers: they mean nothing here"
    t = table().iloc[::-1][:30]
    c = Covariates.learn(t)
    assert (c.encode(t) == c.encode(t.reset_index(drop=True))).all() and c == Covariates.learn(t.reset_index(drop=True))
    assert (c.encode(t[::-1]) == c.encode(t)[::-1]).all()


@pytest.mark.parametrize("values, where", [([1.0, np.nan, 2.0], 1), ([np.inf, 1.0, 2.0], 0), ([1.0, 2.0, -np.inf], 2), (["a", None, "b", "a"], 1), (["a", "b", np.nan, "a"], 2),
                                           (pd.array([1, None, 2, 1], "Int64"), 1), (pd.array([True, None, False], "boolean"), 1), (pd.Categorical(["a", None, "b", "a"]), 1), (pd.array([1.0, pd.NA, 2.0], "Float64"), 1)], ids=str)
def test_gaps(values, where):
    with pytest.raises(ValueError, match=rf"'x' is missing or infinite for 1 of {len(values)} images \(the first is image {where}\).*category of its own"): learn_covariate(values, "x")
    c = learn_covariate([v for v in list(values) * 2 if not pd.isna(v) and v not in (np.inf, -np.inf)], "x")
    with pytest.raises(ValueError, match=rf"missing or infinite for 1 of {len(values)}"): encode_covariate(c, values)


@pytest.mark.parametrize("values", [["a"] * 9, [2.5] * 9, [1] * 9, [False] * 9, pd.Categorical(["a"] * 9, ["a", "b"])], ids=str)
def test_constant_columns(values):
    with pytest.raises(ValueError, match=r"'x' is ('a'|2\.5|1|False) for all training images: there is nothing to condition on"): learn_covariate(values, "x")


@pytest.mark.parametrize("values", [np.arange(40), [f"patient {i}" for i in range(40)]], ids=["int", "text"])
def test_identifiers(values):
    with pytest.raises(ValueError, match=r"40 categories for 40 images, almost one for each.*astype\(float\).*identifier"): learn_covariate(values, "x")


def test_unseen_categories():
    c = learn_covariate(["a", "b"] * 3, "x")
    with pytest.raises(ValueError, match="'x' has categories that training has not seen: 'A', 'c'. Known are: 'a', 'b'."): encode_covariate(c, ["a", "c", "A"])
    with pytest.raises(ValueError, match="not seen: 1"): encode_covariate(learn_covariate(["1", "2"] * 3, "x"), [1])
    with pytest.raises(ValueError, match="not seen: '1'"): encode_covariate(learn_covariate([1, 2] * 3, "x"), ["1"])
    assert encode_covariate(learn_covariate([1, 2] * 3, "x"), [2.0]).tolist() == [[0, 1]]


def test_words_where_numbers_are_needed():
    c = learn_covariate([1.0, 2.0], "age")
    with pytest.raises(ValueError, match="'age' was a number in training; got 'old'"): encode_covariate(c, ["old"])
    assert encode_covariate(c, [2]).tolist() == [[1.0]]       # a whole number is a number


@pytest.mark.parametrize("values", [[1e308, 1e308, -1e308, 3.0], [0.0, 5e-324], [1e200, -1e200, 0.0]], ids=str)
def test_numbers_that_cannot_be_standardised(values):
    "Squares that overflow or vanish: coded, or refused by name – not passed on as NaN"
    try: coded = encode_covariate(learn_covariate(values, "x"), values)
    except ValueError as e: assert "'x'" in str(e)
    else: assert np.isfinite(coded).all()


def test_ways_to_give_the_same_condition():
    S = ImageSet(images(), table())
    t = S.table
    names = condition_table(["color", "age"], S, 60)
    for given_ in (("color", "age"), t[["color", "age"]], t[["color", "age"]].set_axis(np.arange(60)[::-1])):
        assert Covariates.learn(condition_table(given_, S, 60)) == Covariates.learn(names)
        assert (Covariates.learn(names).encode(condition_table(given_, S, 60)) == Covariates.learn(names).encode(names)).all()
    one = Covariates.learn(condition_table("color", S, 60))
    assert one == Covariates.learn(condition_table(["color"], S, 60)) == Covariates.learn(condition_table(t.color, None, 60)) and one.names == ["color"]
    assert Covariates.learn(condition_table(t.color.to_numpy(), None, 60)).names == ["condition"]
    assert Covariates.learn(condition_table(t[["age", "age"]].to_numpy(), None, 60)).names == ["condition_0", "condition_1"]
    assert Covariates.learn(condition_table(torch.randn(60), None, 60)).width == 1 and Covariates.learn(condition_table(list(t.age), None, 60)).columns[0].mean == pytest.approx(t.age.mean())


@pytest.mark.parametrize("how", ["array", "rows"])
def test_mixed_columns_in_an_array(how):
    "An array of both has the type `object`, and a list of rows becomes one: numbers stay numbers"
    t = table()[["color", "age"]]
    given_ = t.to_numpy() if how == "array" else list(t.itertuples(index=False, name=None))
    learned = Covariates.learn(condition_table(given_, None, 60))
    assert [c.categories is None for c in learned.columns] == [False, True] and learned.columns[1].mean == pytest.approx(t.age.mean())
    few = Covariates.learn(condition_table(np.array([["a", 0.5], ["b", 1.5]] * 30, dtype=object), None, 60))
    assert few.columns[1].categories is None


def test_rows_for_what_is_made():
    t = table()[["color", "age", "flag"]]
    c = Covariates.learn(t)
    usual = dict(color=t.color.mode()[0], age=t.age.mean(), flag=bool(t.flag.mode()[0]))
    assert c.typical["color"] == usual["color"] and c.typical["age"] == pytest.approx(usual["age"]) and c.typical["flag"] == usual["flag"]
    typical = c.encode(pd.DataFrame([usual] * 4))
    for nothing in (None, {}): np.testing.assert_array_equal(rows_for(c, nothing, 4), typical)
    np.testing.assert_allclose(rows_for(c, dict(age=30), 2), c.encode(pd.DataFrame([dict(usual, age=30.0)] * 2)))
    np.testing.assert_array_equal(rows_for(c, t[:5], 5), c.encode(t[:5]))
    np.testing.assert_array_equal(rows_for(c, table()[:5], 5), c.encode(t[:5]))            # further columns do no harm
    np.testing.assert_array_equal(rows_for(c, t[["flag", "age", "color"]][:5], 5), c.encode(t[:5]))   # by name, in any order
    np.testing.assert_array_equal(rows_for(Covariates.learn(t[["color"]]), t.color.to_numpy()[:3], 3), c.encode(t[:3])[:, :3])
    for wrong, says in [(dict(colr="red"), "no column 'colr'. Did you mean 'color'"), (dict(color="pink"), "not seen: 'pink'"), (dict(color=None), "missing"), (dict(age="old"), "was a number"),
                        (dict(age=np.nan), "missing"), (t[:3], "3 rows for 4"), (t[["color"]][:4], "'age', 'flag' is missing|'age', 'flag'"), (np.zeros((4, 2)), "needs"), ("red", "condition='red'")]:
        with pytest.raises(ValueError, match=says): rows_for(c, wrong, 4)


def test_mixed_rows_by_an_array():
    t = table()[["color", "age"]]
    c = Covariates.learn(t)
    np.testing.assert_array_equal(rows_for(c, t.to_numpy(), 60), c.encode(t))
    np.testing.assert_array_equal(rows_for(c, t.astype(object), 60), c.encode(t))


@pytest.mark.parametrize("values", [["red", "blue"], np.array(["red", "blue"]), ("red",)], ids=str)
def test_a_dictionary_holds_one_value_a_column(values):
    c = Covariates.learn(table()[["color"]])
    with pytest.raises(ValueError, match="color"): rows_for(c, dict(color=values), 2)


def test_a_value_beyond_all_bounds_makes_no_nan():
    c = Covariates.learn(table()[["age"]])
    with pytest.raises(ValueError, match="'age'"): rows_for(c, dict(age=1e300), 2)


def test_categories_that_no_file_can_hold():
    for values in (pd.cut(pd.Series(np.linspace(20, 80, 60)), 3), pd.Series([("a", 1), ("b", 2)] * 30)):
        with pytest.raises(ValueError, match="'age' has categories such as .*cannot be saved with a model.*astype.str"): learn_covariate(values, "age")


@pytest.mark.parametrize("condition, says", [
    ("colour", "no column 'colour'. Did you mean 'color'.*There are: color, age"), (["color", "agee"], "Did you mean 'age'"), (["age", "age"], "names a column twice: age"), (np.zeros(59), "59 rows for 60 images"),
    (table(61), "61 rows for 60 images"), (np.zeros((60, 2, 2)), "cannot be read from this ndarray"), (3, "cannot be read from this int"), ([], "no columns"), (np.zeros((60, 0)), "no columns"),
    (pd.concat([table()[["age"]], table()[["age"]]], axis=1), "two columns 'age'")], ids=["name", "names", "twice", "short", "long", "3-D", "number", "empty", "no columns", "two columns"])
def test_conditions_that_are_no_table(condition, says):
    with pytest.raises(ValueError, match=says): condition_table(condition, ImageSet(images(), table()), 60)


def test_names_without_a_table():
    with pytest.raises(ValueError, match="condition='color'.*the images come without a table"): condition_table("color", images(), 60)
    with pytest.raises(ValueError) as e: condition_table(list(table().color), images(), 60)
    assert len(str(e.value)) < 400


def test_what_is_told_of_images_that_are_there():
    S = ImageSet(images(), table())
    c = Covariates.learn(S.table[["color", "age"]])
    y = c.encode(S.table)
    assert c.width == 4 and c.names == ["color", "age"]
    for own in (None, ["color", "age"], S.table): np.testing.assert_array_equal(rows_for(c, own, 60, S), y)
    blue = rows_for(c, dict(color="blue"), 60, S)     # the same for all, whatever their table says
    assert (blue == blue[0]).all() and blue[0, :3].tolist() == [1, 0, 0] and abs(blue[0, 3]) < 1e-6
