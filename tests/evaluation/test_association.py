"""Association: the permutation test against lists of all orders, its promise where nothing is associated, and the table of untidy columns."""
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.metrics import adjusted_mutual_info_score, balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import CategoricalNB

from medstrat.data.images import ImageSet
from medstrat.evaluation.association import NotComparable, associations, guessed, permutation_p
from medstrat.evaluation.measures import correlation_ratio, cramers_v


# --- permutations ------------------------------------------------------------------------------

@pytest.mark.parametrize("call, words", [
    (lambda: permutation_p(cramers_v, [0, 1], [0, 0]), "one value only"),
    (lambda: permutation_p(cramers_v, [0, 1], [0, 1], n_permutations=0), "at least one"),
    (lambda: permutation_p(cramers_v, [0, 1, 1], [0, 1, 1], patients=[0, 1]), "3 images, but 2"),
    (lambda: permutation_p(cramers_v, [0, 1, 1], [0, 1, 1], patients=[5, 5, 5]), "none of the 1 patients"),
    (lambda: permutation_p(lambda k, c: np.nan if c[0] else 1., [0, 1, 1], [0, 1, 1], n_permutations=50), "nan for"),
    (lambda: permutation_p(cramers_v, [0, 0], [0, 1]), "one value only"),
    (lambda: permutation_p(cramers_v, [0, 1], [0, 1], patients=[1, None]), "1 have a patient"),
])
def test_refused(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value)


def test_a_statistic_is_a_function():
    with pytest.raises(TypeError, match="correlation_ratio"): permutation_p("V", [0, 1], [0, 1])


def test_as_scipy_when_all_orders_are_listed():
    k, x = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([1., 2, 2.5, 4, 3, 2, 6])
    exact = scipy.stats.permutation_test((x,), lambda x: correlation_ratio(k, x), permutation_type="pairings", alternative="greater", n_resamples=np.inf).pvalue
    assert abs(permutation_p(correlation_ratio, k, x, n_permutations=4999) - exact) < .02


@pytest.mark.parametrize("patients", [None, [0, 0, 1, 1, 2, 2, 3, 4, 5, 5]])
@pytest.mark.parametrize("fast", [cramers_v, correlation_ratio])
def test_fast_and_slow_agree(fast, patients):
    k, c = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0]), np.array([1, 2, 1, 1, 2, 2, 1, 1, 2, 1])
    slow = (lambda k, c: cramers_v(k, c, corrected=False)) if fast is cramers_v else lambda k, c: correlation_ratio(k, c)
    assert permutation_p(fast, k, c, patients, 99) == permutation_p(slow, k, c, patients, 99)
    assert permutation_p(fast, k, c, patients, 99) == permutation_p(fast, k, c, patients, 99, random_state=0)


def test_one_image_a_patient_is_the_test_of_images():
    rng = np.random.default_rng(0)
    k, c = rng.integers(3, size=50), rng.integers(3, size=50)
    assert permutation_p(cramers_v, k, c, np.arange(50), 199) == permutation_p(cramers_v, k, c, None, 199)


def test_whole_patients_of_equal_size_change_places():
    "A column that varies within patients: exactly the orders in which patients of two images swap, listed by hand"
    k, c, patient = np.array([0, 0, 1, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 0, 2]), np.array([0, 0, 1, 1, 2, 2, 3])
    phi = lambda c: cramers_v(k, c, corrected=False)
    values = [phi(np.concatenate([*(c[2 * i:2 * i + 2] for i in order), c[6:]])) for order in permutations(range(3))]
    assert abs(permutation_p(cramers_v, k, c, patient, 2999) - np.mean(np.array(values) >= values[0] - 1e-9)) < .03


def test_order_of_rows_does_not_matter_for_the_patients_found():
    rng = np.random.default_rng(3)
    patient = rng.integers(20, size=100)
    k, c = rng.integers(3, size=20)[patient], rng.integers(2, size=20)[patient]
    shuffled = rng.permutation(100)
    a, b = permutation_p(cramers_v, k, c, patient), permutation_p(cramers_v, k[shuffled], c[shuffled], patient[shuffled].astype(str))
    assert abs(a - b) < .06


@pytest.mark.parametrize("few_large", [False, True])
def test_false_positives(few_large):
    "No association: patients exchanged keep the 5 % level, also where the value goes with the number of images; images exchanged do not"
    rng, p = np.random.default_rng(1), []
    for seed in range(100):
        size = np.r_[np.full(6, 40), np.ones(54, int)] if few_large else rng.integers(1, 9, 60)
        value = np.where(rng.random(60) < .2, rng.integers(2, size=60), size > np.median(size))
        u = np.repeat(np.arange(60), size)
        k = np.where(rng.random(len(u)) < .2, rng.integers(4, size=len(u)), rng.integers(4, size=60)[u])
        p.append([permutation_p(cramers_v, k, value[u], unit, 99, seed) for unit in (None, u)])
    images, patients = (np.array(p) <= .05).mean(0)
    assert patients <= .09 < .3 < images


# --- the table ---------------------------------------------------------------------------------

@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    k = rng.integers(3, size=120)
    return k, pd.DataFrame({"scanner": np.array(["A", "B", "C"])[k], "age": np.where(rng.random(120) < .1, np.nan, 50 + 5. * k + rng.normal(size=120)), "site": "X", "file": [f"{i}.png" for i in range(120)],
                            "flag": rng.random(120) < .5, "grade": pd.Categorical(rng.choice(["low", "high"], 120), ["low", "high"]), "patient": np.arange(120) // 2, "empty": None,
                            "day": pd.date_range("2020-01-01", periods=120), "two": rng.integers(2, size=120) * 1.}, index=range(1000, 1120))


def test_table_of_everything(table):
    k, t = table
    found = associations(k, t, patient="patient", n_permutations=99)
    assert found.index.tolist() == t.columns.tolist()
    assert found["kind"].dropna().to_dict() == {"scanner": "category", "age": "number", "flag": "category", "grade": "category", "patient": "category", "two": "number"}
    for name, reason in {"site": "one value only", "file": "every image", "empty": "no values", "day": "datetime"}.items(): assert reason in found.loc[name, "remark"] and np.isnan(found.loc[name, "p"])
    assert found.loc["scanner", "cramers_v"] == pytest.approx(1) and found.loc["scanner", "p"] == .01
    assert found.loc["age", "n"] == t["age"].notna().sum() and "without a value" in found.loc["age", "remark"]
    use = t["age"].notna().to_numpy()
    assert found.loc["age", "correlation_ratio"] == pytest.approx(correlation_ratio(k[use], t["age"][use])) and found.loc["age", "p"] == .01
    assert found.loc["flag", "ami"] == pytest.approx(adjusted_mutual_info_score(k, t["flag"]))
    assert found.loc["flag", "remark"] == "60 of 60 patients, by number of images" and found.loc["patient", "remark"] == "120 images"
    pd.testing.assert_frame_equal(found, associations(k, t, patient="patient", n_permutations=99))
    beside = associations(k, t.drop(columns="patient"), patient=t["patient"].to_numpy(), n_permutations=99)   # exchanged, not tested
    pd.testing.assert_frame_equal(beside.drop(columns="p_corrected"), found.drop(index="patient").drop(columns="p_corrected"))
    np.testing.assert_allclose(beside["p_corrected"].dropna(), scipy.stats.false_discovery_control(beside["p"].dropna()))
    with pytest.raises(ValueError, match="119"): associations(k, t, patient=np.arange(119))


def test_chance_is_what_permutations_give(table):
    k, t = table
    found = associations(k, t, ["flag", "age"], n_permutations=199)
    assert found.loc["flag", "by_chance"] < .12 and abs(found.loc["age", "by_chance"] - np.sqrt(2 / 107)) < .03


def test_images_sets_dictionaries_and_sets_without_columns(table):
    k, t = table
    s = ImageSet(np.zeros((120, 2, 2), np.uint8), t)
    pd.testing.assert_frame_equal(associations(k, s, "scanner", n_permutations=9), associations(k, {"scanner": t["scanner"].to_numpy()}, n_permutations=9))
    assert len(associations(k, ImageSet(np.zeros((120, 2, 2), np.uint8)))) == 0


@pytest.mark.parametrize("error, change, words", [
    (KeyError, {"columns": ["scaner"]}, "Did you mean 'scanner'?"),
    (KeyError, {"patient": "Patients"}, "Did you mean 'patient'?"),
    (NotComparable, {"columns": ["site"]}, "column 'site': one value only"),
    (NotComparable, {"columns": "file"}, "column 'file': a different value"),
    (NotComparable, {"columns": ["day"]}, "datetime"),
    (ValueError, {"patient": "age"}, "have a patient"),
    (ValueError, {"n_permutations": 0}, "at least one"),
])
def test_table_refused(table, error, change, words):
    with pytest.raises(error) as e: associations(*table, **{"n_permutations": 9} | change)
    assert words in str(e.value)


def test_lengths_and_one_cluster(table):
    k, t = table
    with pytest.raises(ValueError, match="119 clusters, but the table has 120 rows"): associations(k[1:], t)
    assert (associations(np.zeros(120, int), t[["scanner", "age"]])["remark"] == "left out: one cluster only").all()


def test_patients_who_cannot_be_exchanged_are_a_remark():
    found = associations([0, 1, 0, 1, 1, 0], {"view": [0, 1, 0, 1, 1, 0], "patient": [0, 0, 0, 1, 1, 2]}, patient="patient")
    assert found.loc["view", "remark"].startswith("left out: none of the 3 patients")


# --- corrected p -------------------------------------------------------------------------------

def test_corrected_p_is_what_benjamini_and_hochberg_say(table):
    "Written out: the least of p·m/rank over all at least as large; rows that were not tested do not count"
    k, t = table
    found = associations(k, t, n_permutations=99)
    p = found["p"].dropna().sort_values()
    steps = p.to_numpy() * len(p) / np.arange(1, len(p) + 1)
    by_hand = pd.Series([min(1, steps[i:].min()) for i in range(len(p))], p.index)
    assert 4 <= len(p) < len(found)
    np.testing.assert_allclose(found["p_corrected"].reindex(p.index), by_hand)
    assert found["p_corrected"].isna().equals(found["p"].isna())


def test_the_correction_keeps_its_promise():
    "Ten columns of nothing, twenty times: hardly a table in which one is called; uncorrected, four in ten have one"
    k, rng, least = np.arange(90) % 3, np.random.default_rng(0), []
    for seed in range(20):
        found = associations(k, pd.DataFrame(rng.random((90, 10))).add_prefix("x"), n_permutations=299, random_state=seed)
        least.append(found[["p", "p_corrected"]].min().to_numpy())
    plain, corrected = (np.array(least) <= .05).mean(0)
    assert corrected <= .1 < .25 < plain


# --- guessing ----------------------------------------------------------------------------------

def test_guess_agrees_with_a_naive_bayes_of_equal_priors():
    "The same rule by another hand; without smoothing, and with parts in which every category occurs"
    rng = np.random.default_rng(0)
    k = rng.choice(3, 3000, p=[.7, .2, .1])
    c = np.where(rng.random(3000) < .4, k, rng.integers(5, size=3000))
    bayes = CategoricalNB(alpha=1e-9, fit_prior=False)
    theirs = balanced_accuracy_score(k, cross_val_predict(bayes, c[:, None], k, cv=5))
    assert theirs > .5 and guessed(k, c) == pytest.approx(theirs, abs=.02)


@pytest.mark.parametrize("weights", [[1, 1, 1], [20, 4, 1]])
@pytest.mark.parametrize("draw", [lambda rng, n: rng.integers(4, size=n), lambda rng, n: rng.normal(size=n), lambda rng, n: np.where(rng.random(n) < .9, 0., 1.)])
def test_chance_is_one_in_k(weights, draw):
    scores = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores.append(guessed(rng.choice(3, 300, p=np.array(weights) / sum(weights)), draw(rng, 300)))
    assert abs(np.mean(scores) - 1 / 3) < 4 * np.std(scores) / np.sqrt(30) + .01


def test_what_determines_the_cluster_guesses_it():
    k = np.repeat([0, 1, 2], [200, 40, 10])
    assert guessed(k, k) == guessed(k, k.astype(str)) == 1 and guessed(k, k * 1.) > .9
    assert guessed(k, np.where(k == 2, 1., 0)) == pytest.approx(2 / 3)  # the rare cluster told from the rest


def test_a_patient_seen_helps_no_guess():
    "The column says who it is, the patient decides the cluster: guessed by images, not by patients"
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(100), 5)
    k = rng.integers(4, size=100)[patient]
    number = patient + rng.normal(size=500) * .01  # all different, near its patient's
    assert guessed(k, patient) == 1 and guessed(k, patient, patient) == pytest.approx(.25)
    assert guessed(k, number) > .4 > .33 > guessed(k, number, patient)
    assert np.isnan(guessed(k, k, np.zeros(500, int)))


def test_guess_in_the_table(table):
    k, t = table
    found = associations(k, t, patient="patient", n_permutations=9)
    assert found.loc["scanner", "predicts"] == 1 and found.loc["age", "predicts"] > .8 and found.loc["flag", "predicts"] < .5
    assert (found["predicts_by_chance"].dropna() == 1 / 3).all() and found["predicts"].isna().equals(found["p"].isna())
    only = t["age"].where(k < 2)
    assert associations(k, {"age": only}, n_permutations=9).loc["age", "predicts_by_chance"] == .5  # of the clusters that have values


@pytest.mark.parametrize("column, words", [([1., np.nan, 2.], "no value for 1 of 3"), ([1, 2], "one value an image")])
def test_guess_refused(column, words):
    with pytest.raises(ValueError, match=words): guessed([0, 1, 1], column)
