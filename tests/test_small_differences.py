"K-means on pixels and on components tells images apart that differ by little, far from zero."
import numpy as np
import pytest
from conftest import tiny


@pytest.mark.parametrize("method", ["pixels + k-means", "PCA + k-means"])
@pytest.mark.parametrize("level", [0, 120, 245])
def test_images_that_differ_little(method, level):
    X = np.full((40, 48, 48, 3), level, np.uint8)
    X[20:, 5:8, 5:8] += 6
    X[::2, 30, 30] += 1      # something for further components
    model = tiny(method, n_clusters=2, image_size=None, **(dict(latent_dim=2) if method.startswith("PCA") else {})).fit(X)
    assert len(set(model.labels_[:20])) == 1 == len(set(model.labels_[20:])) and model.labels_[0] != model.labels_[-1]
    assert [model.predict(x[None])[0] for x in X] == model.labels_.tolist()
