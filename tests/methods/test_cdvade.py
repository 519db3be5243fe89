"CDVaDE: clusters beyond what the decoder is told."

import numpy as np
import pytest
from conftest import mixed
from sklearn.metrics import adjusted_rand_score

from medstrat.data.images import ImageSet


def test_cdvade_looks_beyond_what_it_is_told():
    "Loud: bright or dark. Quiet: where the bar is. Told about the brightness, the clusters are the bars"
    rng = np.random.default_rng(0)
    n = 160
    loud, quiet = rng.integers(0, 2, n), rng.integers(0, 2, n)
    x = rng.integers(0, 25, (n, 16, 16)) + 130 * loud[:, None, None]
    for i in range(n): x[i, :, 3:6] += 70 * (quiet[i] == 0); x[i, :, 10:13] += 70 * (quiet[i] == 1)
    S = ImageSet(x.clip(0, 255).astype(np.uint8), dict(light=np.array(["dark", "bright"])[loud]))
    more = dict(n_clusters=2, hidden=(64,), latent_dim=2, pretrain_epochs=40, pretrain_lr=3e-3, epochs=10, lr=3e-3, likelihood="gaussian", sigma=0.2, pretrain_kl=1.0, n_init=5)
    plain, told = mixed("VaDE", **more).fit(S), mixed("CDVaDE", **more).fit(S, condition="light")
    agree = lambda a, y: adjusted_rand_score(y, a.labels_)
    assert agree(plain, loud) > 0.9 and agree(told, quiet) > 0.9 and agree(told, loud) < 0.05
    light, dark = (told.prototypes(dict(light=v)) for v in ("bright", "dark"))
    assert (light.mean((1, 2, 3)) > dark.mean((1, 2, 3)) + 0.3).all()


def test_without_a_condition_it_says_what_is_missing(X):
    with pytest.raises(ValueError, match="CDVaDE needs a condition.*Without one it is VaDE"): mixed("CDVaDE").fit(X)
