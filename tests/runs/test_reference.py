"What the images of a fit were like: distances, errors, outliers, and whether another cohort's subgroups are as large."
import json

import numpy as np
import pandas as pd
import pytest
from conftest import cohort, images, tiny
from scipy.stats import chi2_contingency

from medstrat.data.images import ImageSet
from medstrat.runs.reference import Described, Reference, assigned, count_units, describe, shift_p


def seen(clusters, distance, k=2, error=None):
    return Described(np.zeros((len(clusters), 2), np.float32), np.eye(k, dtype=np.float32)[clusters], np.asarray(distance, float), error)


def test_against_the_estimator_s_own_words():
    x = images(60)
    a = tiny("VAE + k-means", epochs=2).fit(x)
    got, z = describe(a, ImageSet(x)), a.transform(x)
    assert np.allclose(got.embedding, z, atol=1e-6) and np.allclose(got.responsibilities, a.predict_proba(x)) and (got.clusters == a.labels_).all()
    assert np.allclose(got.distance, [np.linalg.norm(z[i] - a.cluster_centers_[c]) for i, c in enumerate(a.labels_)], atol=1e-5)
    again = a.reconstruct(x)
    from medstrat.training.inputs import sized
    assert np.allclose(got.error, ((again - sized(x, again.shape[1]) / 255)**2).mean((1, 2, 3)), atol=1e-6)


def test_typical_and_outliers_by_counting():
    rng = np.random.default_rng(0)
    clusters, distance = np.repeat([0, 1], [150, 40]), rng.random(190)
    s = seen(clusters, distance)
    usual = Reference.learn(s)
    counted = np.array([(distance[clusters == c] > d).mean() for c, d in zip(clusters, distance, strict=True)])
    assert np.abs(usual.typical(s) - counted).max() < .03
    assert usual.outliers(s).sum() == 1 and usual.outliers(s).argmax() == distance[:150].argmax(), "1 of 150; of 40 nobody"
    far = seen(np.array([0, 1, 1]), [.5, .999999, 1.5])
    assert usual.outliers(far).tolist() == [False, True, True] and usual.typical(far)[2] == 0
    assert json.loads(json.dumps(usual.to_dict())) == usual.to_dict() and Reference(**json.loads(json.dumps(usual.to_dict()))) == usual


def test_a_bad_reconstruction_is_an_outlier_and_so_is_who_comes_into_an_empty_subgroup():
    rng = np.random.default_rng(0)
    s = seen(np.zeros(1000, int), rng.random(1000), k=2, error=rng.random(1000))
    usual = Reference.learn(s)
    assert usual.sizes == [1000, 0] and usual.far[1] is None
    near, error = [.1, .1, .1], np.array([.5, 2, .5])
    assert usual.outliers(seen(np.array([0, 0, 1]), near, error=error)).tolist() == [False, True, True]
    both = (s.distance > np.sort(s.distance)[990]) | (s.error > np.sort(s.error)[995])
    assert 10 <= usual.outliers(s).sum() <= 15 and (usual.outliers(s) == both).sum() >= 998


@pytest.mark.parametrize("patients", [None, list("aabbcdd"), [1., 1, np.nan, np.nan, 2, 3, 3]])
def test_units(patients):
    clusters = np.array([0, 1, 0, 0, 1, 0, 0])
    units = count_units(clusters, 2, patients)
    assert sum(n * np.array(c) for c, n in units).tolist() == [5, 2]
    assert sum(n for _, n in units) == {None: 7, "a": 4, 1.: 5}[patients and patients[0]]
    if patients and patients[0] == "a": assert sorted(units) == [[[0, 1], 1], [[1, 1], 1], [[2, 0], 2]]


def test_shift_agrees_with_chi_square_where_each_patient_has_one_image():
    rng = np.random.default_rng(0)
    for shares in ([.5, .3, .2], [.44, .36, .2]):
        a, b = rng.choice(3, 800, p=[.5, .3, .2]), rng.choice(3, 300, p=shares)
        statistic, p = shift_p(count_units(a, 3), count_units(b, 3), 4999)
        told = chi2_contingency([np.bincount(a, minlength=3), np.bincount(b, minlength=3)], correction=False)
        assert statistic == pytest.approx(told.statistic) and p == pytest.approx(told.pvalue, abs=.02)


def test_shift_counts_patients_not_images():
    "Ten equal images a patient: the same p as one image each, not that of ten times as many"
    rng = np.random.default_rng(1)
    a, b = rng.choice(2, 60), rng.choice(2, 40, p=[.4, .6])
    ten = lambda c: count_units(np.repeat(c, 10), 2, np.repeat(np.arange(len(c)), 10))
    one = shift_p(count_units(a, 2), count_units(b, 2), 1999)
    many = shift_p(ten(a), ten(b), 1999)
    assert many[0] == pytest.approx(10 * one[0]) and many[1] == pytest.approx(one[1], abs=.03)
    assert shift_p(ten(a), ten(b), 99) == shift_p(ten(a), ten(b), 99), "the same seed, the same p"


def test_p_is_uniform_without_a_shift():
    rng, ps = np.random.default_rng(2), []
    for _ in range(100):
        patients, kind = np.repeat(np.arange(60), 3), rng.choice(3, 60)
        clusters = np.where(rng.random(180) < .8, np.repeat(kind, 3), rng.choice(3, 180))
        ps.append(shift_p(count_units(clusters[:90], 3, patients[:90]), count_units(clusters[90:], 3, patients[90:]), 199)[1])
    assert .01 <= np.mean(np.array(ps) <= .1) <= .2


def test_a_row_an_image():
    x = ImageSet(images(30), pd.DataFrame(dict(file=[f"{i // 2}.nii" for i in range(30)], slice=np.arange(30) % 2, age=1.)))
    a = tiny("pixels + k-means", n_clusters=2).fit(x)
    s = describe(a, x)
    got = assigned(x, s, Reference.learn(s))
    assert list(got) == ["file", "slice", "cluster", "probability", "distance", "typical", "error", "outlier"]
    assert (got.cluster == a.labels_).all() and got.typical.between(0, 1).all() and (got.file == x.table.file).all()
    assert list(assigned(ImageSet(x.images), s, Reference.learn(s)))[:2] == ["image", "cluster"]


def test_images_without_the_condition_are_refused_in_words():
    x = cohort(40)
    a = tiny("CDVaDE", condition="tone", epochs=1, pretrain_epochs=1).fit(x)
    assert describe(a, x).error.shape == (40,)
    with pytest.raises(ValueError, match="tone"): describe(a, ImageSet(x.images))
