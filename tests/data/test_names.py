"Names: what is the same name, what is near, what is refused."
import pytest

from medstrat.data.names import did_you_mean, match_name, plain


@pytest.mark.parametrize("name", ["Pneumonia-MNIST", "pneumonia mnist", "PNEUMONIA_MNIST", " pneumonia.mnist "])
def test_case_and_punctuation_do_not_matter(name): assert plain(name) == "pneumoniamnist"


def test_near_names():
    assert did_you_mean("pnuemonia", ["pneumonia", "view"]) == " Did you mean 'pneumonia'?" and did_you_mean("xyz", ["pneumonia", "view"]) == "" and did_you_mean("x", []) == ""
    assert did_you_mean("Age_1", ["age1", "age2", "age3", "age4"]).count("age") == 3
    assert did_you_mean(7, [70, "view"]) == " Did you mean '70'?"   # a column may be called by a number


def test_a_name_is_found_or_refused():
    assert match_name("VAE+KMeans", ["PCA + k-means", "VAE + k-means"], "model") == "VAE + k-means"
    with pytest.raises(ValueError, match="unknown preset 'papre'. Did you mean 'paper'. There are: paper, best."): match_name("papre", ["paper", "best", "paper"], "preset")
