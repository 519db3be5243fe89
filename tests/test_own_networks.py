"A user's own encoder and decoder: fitted, saved, loaded; the user's modules are left as they were."

import pytest
from conftest import same_weights, tiny
from sklearn.base import clone
from torch import nn

from medstrat.training.saving import load_model


class OwnEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, stride=4), nn.BatchNorm2d(3), nn.ReLU())
    def forward(self, x): return self.layers(x)


def own_decoder(d, side=16): return nn.Sequential(nn.Linear(d, side * side), nn.Unflatten(1, (1, side, side)))


@pytest.mark.parametrize("method, d", [("VAESim", 4 + 3), ("VAE + k-means", 4), ("AE + k-means", 4), ("DEC", 4), ("DVC", 4)])
def test_own_networks(method, d, X, tmp_path):
    encoder, decoder = OwnEncoder(), own_decoder(d)
    before = [p.clone() for m in (encoder, decoder) for p in m.parameters()]
    a = tiny(method, encoder=encoder, decoder=decoder).fit(X)
    assert all(p.equal(q) for p, q in zip([p for m in (encoder, decoder) for p in m.parameters()], before, strict=True)), "the user's own modules were trained in place"
    assert a.reconstruct(X).shape == (60, 16, 16, 1)
    assert same_weights(clone(a).fit(X), a)
    a.save(tmp_path / "m")
    with pytest.raises(ValueError, match="networks of your own: give decoder=…, encoder=…"): load_model(tmp_path / "m")
    b = load_model(tmp_path / "m", encoder=OwnEncoder(), decoder=own_decoder(d))
    assert (b.transform(X) == a.transform(X)).all() and (b.reconstruct(X) == a.reconstruct(X)).all()
    with pytest.raises(ValueError, match="do not fit"): load_model(tmp_path / "m", encoder=nn.Flatten(), decoder=own_decoder(d))


def test_what_a_user_froze_stays_frozen(X):
    "A backbone trained elsewhere is often given with requires_grad_(False)"
    encoder = OwnEncoder().requires_grad_(False)
    a = tiny("AE + k-means", encoder=encoder, lr=0.1).fit(X)
    assert a.module_.encoder.body.layers[0].weight.equal(encoder.layers[0].weight)


def test_only_one_own_network(X):
    assert tiny("AE + k-means", encoder=OwnEncoder()).fit(X).reconstruct(X).shape == (60, 16, 16, 1)
    assert tiny("AE + k-means", decoder=own_decoder(4)).fit(X).reconstruct(X).shape == (60, 16, 16, 1)


def test_own_decoder_of_another_shape_is_refused(X):
    with pytest.raises(ValueError, match=r"decoder returns images of shape .*\(1, 8, 8\), needed is \(1, 16, 16\)"): tiny("AE + k-means", decoder=own_decoder(4, 8)).fit(X)
    with pytest.raises(ValueError, match="decoder.*7|7.*decoder"): tiny("VAESim", decoder=own_decoder(4)).fit(X)     # takes z alone, but is given z and c


def test_own_network_that_is_none(X):
    with pytest.raises((TypeError, ValueError), match="encoder"): tiny(encoder="resnet").fit(X)
