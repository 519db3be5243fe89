"One model for one set of pictures, whether they come as bytes or as floats, from the array to the embedding."
import numpy as np
import pytest

from medstrat.methods.vaesim import VAESim

rng = np.random.RandomState(0)


@pytest.mark.parametrize("size", [None, 4, 23])
def test_bytes_and_bytes_over_255_give_the_same_values(size):
    x = np.concatenate([rng.randint(0, 256, (39, 12, 12), np.uint8), np.arange(144, dtype=np.uint8).reshape(1, 12, 12) + 112])
    fit = lambda v: VAESim(epochs=1, verbose=False, random_state=0, network="mlp", hidden=(8,), latent_dim=2, n_clusters=2, image_size=size).fit(v).transform(v)
    want = fit(x)
    for f in (x / np.float32(255), x / 255, (x / 255).astype(np.float16)): assert np.array_equal(fit(f), want)
