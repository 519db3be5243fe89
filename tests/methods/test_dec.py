"DEC and IDEC: which term moves what."

import numpy as np
import pytest
from conftest import (
    FAMILY,
    Spy,
    changed_parts,
    images,
    mlp,
    phase,
    spied,
)

from medstrat.training.presets import find_value
from medstrat.training.registry import get_method

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_the_decoder_rests_in_dec_only(X):
    for method, parts in dict(zip(FAMILY, [{"encoder", "bank"}] + [{"encoder", "decoder", "bank"}] * 3)).items():
        assert changed_parts(mlp(method, epochs=0).fit(X), mlp(method, epochs=2, lr=1e-2, update_interval=2).fit(X)) == parts, method


def test_no_gradient_reaches_the_decoder_of_dec(X):
    seen = []
    def look(module, n): seen.append(([p.grad is None or not p.grad.any() for p in module.net.decoder.parameters()], [p.requires_grad for p in module.net.decoder.parameters()],
                                      [p.grad.abs().sum().item() > 0 for p in module.net.bank.parameters()]))
    a = mlp(lr=1e-2, **spied(Spy("refine", look))).fit(X)
    assert len(seen) == 6 and all(all(untouched) and not any(learns) and all(moved) for untouched, learns, moved in seen)
    assert all(p.requires_grad for p in a.module_.parameters())      # afterwards, all is as it was


@pytest.mark.parametrize("method, more, a, b", [("DEC", {}, 1, 0), ("IDEC", dict(gamma=0.3), 0.3, 1), ("IDEC", dict(gamma=0.0), 0, 1)])
def test_weights_of_the_two_terms(method, more, a, b, X):
    "γ weighs the clustering term; the reconstruction counts per pixel"
    h = phase(mlp(method, update_interval=2, lr=1e-2, epochs=3, **more).fit(X))
    assert ("reconstruction" in h) == (b > 0) and "changed" in h and (h.clustering >= -1e-6).all()
    np.testing.assert_allclose(h.loss, a * h.clustering + (b * h.reconstruction / 256 if b else 0), rtol=1e-4)


def test_colour_counts_every_channel():
    h = phase(mlp("IDEC", gamma=0.1, epochs=1).fit(images(40, channels=3)))
    np.testing.assert_allclose(h.loss, 0.1 * h.clustering + h.reconstruction / 768, rtol=1e-4)


@pytest.mark.parametrize("name, iterations", [("layer_epochs", 50_000), ("pretrain_epochs", 100_000)])
def test_iterations_become_epochs(name, iterations):
    "Printed are iterations of 256 images, on the 60,000 of MNIST"
    assert find_value(get_method("DEC"), name, "paper")[0].value == round(iterations * 256 / 60_000)
