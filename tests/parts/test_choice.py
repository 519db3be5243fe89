"The number of clusters by the elbow: what is refused, what is found, and that it is found again."
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from medstrat.parts.choice import Choice, choose_n_clusters, find_elbow


@pytest.mark.parametrize("embedding, candidates, words", [
    (np.zeros(5), range(2, 5), "(5,)"),
    (np.zeros((3, 2)), range(2, 9), "only 3 points"),
    (np.full((9, 2), np.nan), range(2, 5), "NaN"),
    (np.random.default_rng(0).normal(size=(9, 2)), [2, 3], "at least three"),
    (np.random.default_rng(0).normal(size=(9, 2)), [0, 2, 3], "≥ 1"),
])
def test_choice_refuses(embedding, candidates, words):
    with pytest.raises(ValueError) as e: choose_n_clusters(embedding, candidates)
    assert words in str(e.value)


def test_choice_without_an_elbow_explains():
    for curve in (np.zeros(5), 10. - np.arange(5)):
        with pytest.raises(ValueError, match="pass n_clusters"): find_elbow(np.arange(2, 7), curve)


def test_choice_finds_blobs_and_repeats():
    rng = np.random.default_rng(0)
    z = 20 * rng.normal(size=(6, 4))[rng.integers(6, size=500)] + rng.normal(size=(500, 4))
    choice = choose_n_clusters(z, range(2, 15), random_state=3)
    assert choice.n_clusters == 6 and choice.n_points == 500
    np.testing.assert_array_equal(choice.inertia, choose_n_clusters(z, range(2, 15), random_state=3).inertia)
    assert choice.plot().axes[0].get_xlabel() == "number of clusters K" and not plt.get_fignums()


def test_a_curve_of_a_part_of_the_points():
    z = np.random.default_rng(0).normal(size=(400, 3)) + 20 * np.eye(4, 3)[np.arange(400) % 4]
    choice = choose_n_clusters(z, [8, 2, 4, 4, 3, 6, 5], max_points=200)
    assert choice.n_points == 200 and choice.n_clusters == 4 and choice.candidates.tolist() == [2, 3, 4, 5, 6, 8]


def test_the_picture_marks_the_elbow():
    K = np.arange(2, 21)
    ax, = Choice(6, K, 1 / K, 100).plot().axes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["elbow: K = 6"] and (ax.lines[0].get_xdata() == K).all()
