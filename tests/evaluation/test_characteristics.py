"""The table of characteristics against counts by hand and against pandas, and what the methods paragraph says and does not say."""
import numpy as np
import pandas as pd
import pytest

from medstrat.data.images import ImageSet
from medstrat.evaluation.association import associations
from medstrat.evaluation.characteristics import characteristics, methods_paragraph


@pytest.fixture
def cohort():
    rng = np.random.default_rng(0)
    k = rng.integers(3, size=240)
    return k, pd.DataFrame({
        "patient": np.arange(240) // 2, "age": np.where(rng.random(240) < .1, np.nan, 50 + 5. * k + 10 * rng.normal(size=240)), "dose": rng.exponential(size=240),
        "sex": np.where(rng.random(240) < .2, None, rng.choice(["f", "m"], 240)), "site": rng.integers(30, size=240), "flag": rng.random(240) < .3,
        "grade": pd.Categorical(rng.choice(["low", "high"], 240), ["low", "middle", "high"], ordered=True), "file": [f"{i}.png" for i in range(240)],
        "day": pd.date_range("2020-01-01", periods=240), "empty": np.nan, "one": "X"}, index=range(1000, 1240))


# --- cells -------------------------------------------------------------------------------------

def test_a_small_table_by_hand():
    t = pd.DataFrame({"age": [40, 50, 60, 70, np.nan], "sex": ["f", "m", "f", None, "f"], "who": list("aabbc")})
    shown = characteristics([0, 0, 1, 1, 1], t, patient="who")
    expected = {
        ("images", "n (%)"): ["5 (100.0%)", "2 (40.0%)", "3 (60.0%)"],
        ("patients", "n (%)"): ["3 (100.0%)", "1 (33.3%)", "2 (66.7%)"],
        ("age", "mean (SD)"): ["55 (13)", "45 (7)", "65 (7)"],
        ("age", "(missing)"): ["1 (20.0%)", "0 (0.0%)", "1 (33.3%)"],
        ("sex", "f"): ["3 (75.0%)", "1 (50.0%)", "2 (100.0%)"],
        ("sex", "m"): ["1 (25.0%)", "1 (50.0%)", "0 (0.0%)"],
        ("sex", "(missing)"): ["1 (20.0%)", "0 (0.0%)", "1 (33.3%)"],
    }
    assert shown.columns.tolist() == ["All", "0", "1"] and shown.T.to_dict("list") == expected


def test_numbers_as_pandas_has_them(cohort):
    k, t = cohort
    shown = characteristics(k, t)
    by = t.assign(k=k).groupby("k")
    for c in range(3):
        assert shown.loc[("age", "mean (SD)"), str(c)] == f"{by.age.mean()[c]:.0f} ({by.age.std()[c]:.0f})"
        q = by.dose.quantile([.25, .5, .75]).loc[c]
        assert shown.loc[("dose", "median [Q1, Q3]"), str(c)] == f"{q[.5]:.1f} [{q[.25]:.1f}, {q[.75]:.1f}]"


def test_counts_as_pandas_has_them(cohort):
    k, t = cohort
    shown = characteristics(k, t)
    counts = pd.crosstab(t.sex, k)
    for c in range(3):
        for sex in "fm": assert shown.loc[("sex", sex), str(c)] == f"{counts[c][sex]} ({counts[c][sex] / counts[c].sum():.1%})"
    values = shown.index.get_level_values("value")[shown.index.get_level_values("column") == "grade"].tolist()
    assert values == ["low", "middle", "high"] and shown.loc[("grade", "middle"), "All"] == "0 (0.0%)"


def test_many_values_share_a_row(cohort):
    k, t = cohort
    for most in (3, 8):
        rows = characteristics(k, t, most=most).loc["site"]
        assert len(rows) == most and rows.index[-1] == f"({t.site.nunique() - most + 1} others)"
        assert sum(int(cell.split(" ")[0]) for cell in rows["All"]) == 240
    kept = [int(v) for v in rows.index[:-1]]
    assert kept == sorted(kept) and t.site.value_counts()[kept].min() >= t.site.value_counts().drop(kept).max()
    assert len(characteristics(k, t, most=30).loc["site"]) == 30


@pytest.mark.parametrize("values, heading, cell", [
    ([12345.6, 20000.1, 31000.9], "mean (SD)", "21,116 (9,378)"),
    ([1e-4, 2e-4, 3e-4], "mean (SD)", "0.00020 (0.00010)"),
    ([7., 7., 7.], "mean (SD)", "7 (0)"),
    ([0., 0, 0, 0, 0, 0, 0, 0, 0, 100], "median [Q1, Q3]", "0 [0, 0]"),
    ([1., np.inf, 3.], "mean (SD)", "2.0 (1.4)"),
])
def test_places(values, heading, cell):
    assert characteristics(np.zeros(len(values), int), {"x": values}).loc[("x", heading), "All"] == cell


def test_a_group_without_values_says_so():
    with np.errstate(all="raise"):
        shown = characteristics([0, 0, 1, 2], {"x": [1., 2., np.nan, 5.], "c": ["a", "b", None, "a"]})
    assert shown.loc[("x", "mean (SD)"), "1"] == "–" and shown.loc[("c", "a"), "1"] == "–" and shown.loc[("x", "mean (SD)"), "2"] == "5.0"


# --- the table ---------------------------------------------------------------------------------

def test_left_out_with_reasons(cohort):
    k, t = cohort
    shown = characteristics(k, t, patient="patient")
    described = list(dict.fromkeys(shown.index.get_level_values("column")))
    assert described == ["images", "patients", "age", "dose", "sex", "site", "flag", "grade", "one"]
    reasons = shown.attrs["left_out"]
    assert reasons.keys() == {"file", "day", "empty"} and "identifier" in reasons["file"] and "datetime" in reasons["day"] and reasons["empty"] == "no values"


def test_effects_and_corrected_p(cohort):
    k, t = cohort
    found = associations(k, t, patient="patient", n_permutations=999)
    shown = characteristics(k, t, found, patient="patient")
    assert shown.columns.tolist() == ["All", "0", "1", "2", "effect", "p"]
    assert shown.loc[("age", "mean (SD)"), "effect"] == f"η = {found.correlation_ratio['age']:.2f}" and shown.loc[("age", "mean (SD)"), "p"] == f"{found.p_corrected['age']:.3f}"
    assert shown.loc[("sex", "f"), "effect"] == f"V = {found.cramers_v['sex']:.2f}" and shown.loc[("sex", "m"), ["effect", "p"]].tolist() == ["", ""]
    assert shown.loc[("one", "X"), "p"] == "" and shown.map(lambda v: isinstance(v, str)).all(axis=None)
    assert characteristics(k, t, found.assign(p_corrected=.0001)).loc[("sex", "f"), "p"] == "<0.001"


def test_images_sets_and_names_of_clusters(cohort):
    k, t = cohort
    names = np.array(["calm", "loud", "odd"])[k]
    s = ImageSet(np.zeros((240, 2, 2), np.uint8), t)
    pd.testing.assert_frame_equal(characteristics(names, s), characteristics(names, t))
    assert characteristics(names, t).columns.tolist() == ["All", "calm", "loud", "odd"]


@pytest.mark.parametrize("error, k, kwargs, words", [
    (ValueError, np.zeros(3, int), {}, "3 clusters, but the table has 240 rows"),
    (KeyError, np.zeros(240, int), {"patient": "Patients"}, "Did you mean 'patient'?"),
])
def test_refused(cohort, error, k, kwargs, words):
    with pytest.raises(error) as e: characteristics(k, cohort[1], **kwargs)
    assert words in str(e.value)


# --- the paragraph -----------------------------------------------------------------------------

LEAST = dict(method="VaDE", clusters=3, images=5216, seed=7)


def test_only_what_is_known_is_said():
    text = methods_paragraph(**LEAST)
    assert text == "5,216 images were analysed. They were grouped into 3 subgroups by VaDE without use of labels (random seed 7)."


@pytest.mark.parametrize("known, words", [
    (dict(patients=2700), "5,216 images of 2,700 patients"),
    (dict(excluded={"damaged": 1, "refused": 0}), "; 1 file was excluded (damaged: 1)."),
    (dict(excluded={"damaged": 1200, "no image": 3, "refused": 2}), "1,205 files were excluded (damaged: 1,200, no image: 3 and refused: 2)"),
    (dict(reading="Slices were axial. "), "analysed. Slices were axial. They"),
    (dict(size=64), "64×64 pixels"),
    (dict(citation="Jiang et al., 2017", epochs=1000), "VaDE (Jiang et al., 2017), trained for 1,000 epochs"),
    (dict(chosen="by the elbow of the loss"), "3 subgroups (by the elbow of the loss)"),
    (dict(condition=("view", "scanner")), "conditioned on view and scanner"),
    (dict(permutations=999), "999 permutations, exchanging images,"),
    (dict(permutations=999, patients=9), "exchanging the images of a patient as a whole"),
    (dict(versions={"torch": "2.9", "numpy": "2.3"}), "Software: torch 2.9 and numpy 2.3."),
])
def test_each_fact_has_its_words(known, words):
    assert words in methods_paragraph(**LEAST, **known) and words not in methods_paragraph(**LEAST)
