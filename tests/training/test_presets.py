"Presets: every value in the tables is possible and has a source; chains, data sets, what is given."
import json
from dataclasses import dataclass
from typing import get_type_hints

import pytest
from conftest import ALL, METHODS

from medstrat.data.images import ImageSet
from medstrat.training.fitting import Fit
from medstrat.training.parameters import Positive, check_value, param
from medstrat.parts.kinds import Facts
from medstrat.training.presets import CHAINS, Rule, Value, find_value, resolve
from medstrat.training.registry import get_method, list_methods


def _all_values():
    for cls in dict.fromkeys(c for m in list_methods() for c in m.__mro__ if "presets" in vars(c)):   # in an order that is the same in all processes
        for preset, sets in vars(cls)["presets"].items():
            for dataset, table in sets.items():
                for name, value in table.items(): yield pytest.param(cls, preset, dataset, name, value, id=f"{cls.__name__}-{preset}-{dataset}-{name}")


@pytest.mark.parametrize("cls, preset, dataset, name, value", list(_all_values()))
def test_every_preset_value_is_possible_and_has_a_source(cls, preset, dataset, name, value):
    assert preset in ("paper", "released", "best", "ours") and isinstance(value.source, str) and value.source.strip()
    users = [m for m in list_methods() if issubclass(m, cls)]
    assert all(name in m.__dataclass_fields__ for m in users), f"{name} is no parameter"
    if isinstance(value, Rule): return   # what it says is tried below
    for m in users:
        if value.value is not None: assert check_value(name, value.value, get_type_hints(m, include_extras=True)[name]) == value.value


SOME = [Facts(30, (8, 8, 1), "ink"), Facts(500, (64, 64, 1), "ink"), Facts(60_000, (28, 28, 1), "ink"), Facts(200, (128, 128, 3), "photo"),
        Facts(10**6, (28, 28, 1), "film"), Facts(2, (224, 160, 1), "film"), Facts(300, (1280,), "vectors")]


@pytest.mark.parametrize("facts", SOME, ids=lambda f: f"{f.n}-{f.kind}-{f.side}")
@pytest.mark.parametrize("method", ALL)
def test_rules_give_possible_values_for_all_images(method, facts):
    "And `resolve` has checked each of them; only networks with fully connected layers look at features"
    cls = get_method(method)
    s, origin = resolve(cls(), facts=facts)
    ruled = [k for k, source in origin.items() if "by rule" in source]
    assert all(isinstance(find_value(cls, k, "best")[0], Rule) for k in ruled)
    if getattr(s, "backbone", "none") != "none" and hasattr(s, "network"): assert s.network == "mlp" and s.likelihood != "bernoulli" and getattr(s, "augment", "none") == "none"


def test_best_knows_no_set_by_its_name():
    for cls in list_methods():
        for owner in cls.__mro__: assert set(vars(owner).get("presets", {}).get("best", {})) <= {"*"}, owner


@pytest.mark.parametrize("preset", ["paper", "released", "best"])
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dataset", ["*", "pneumoniamnist", "mnist", "digits", "brats", "fundus_glaucoma_128", "unheard of"])
def test_a_preset_settles_every_parameter(method, preset, dataset):
    "To values that go together, with a source, and of a kind that a file can hold"
    cls = get_method(method)
    s, origin = resolve(cls(preset=preset), dataset)
    if method in METHODS: cls.method.check(s)   # the others need a condition, or a file of weights
    assert json.loads(json.dumps(vars(s)))
    may_be_none = {"image_size", "patience", "random_state", "checkpoint_dir", "trainer_options", "encoder", "decoder", "sigma", "condition", "encoder_activation", "pretrained", "cache_dir", "feature_dim", "tracker"}
    assert {k for k, v in vars(s).items() if v is None} <= may_be_none
    assert set(origin) == set(vars(s)) and all(origin.values()) and not [k for k, source in origin.items() if source == "not set" and vars(s)[k] is not None]


def test_the_chain_of_presets():
    def lookup(name, preset, dataset="*"):
        found, table = find_value(get_method("vaesim"), name, preset, dataset)
        return (None, "") if found is None else (found.value, table)
    assert lookup("n_clusters", "paper") == (40, "released")                    # not printed: from the code
    assert lookup("latent_dim", "released")[1] == "paper"                       # not in the code's table: from the paper
    assert lookup("kmeans_at", "paper")[1] == "ours" and lookup("hidden", "paper")[1] == "ours"
    assert lookup("similarity", "paper")[0] == "cosine" and lookup("similarity", "released")[0] == "dot"
    assert lookup("epochs", "released", "pneumoniamnist")[0] == 60 and lookup("epochs", "released", "mnist")[0] == 20
    assert lookup("channels", "paper", "pneumoniamnist")[0] == (128, 256, 384)
    assert lookup("no such", "best") == (None, "")
    with pytest.raises(ValueError, match="paper"): lookup("lr", "papr")
    assert CHAINS["best"][0] == "best" and all(c[-1] == "ours" for c in CHAINS.values())


def test_what_is_given_beats_the_preset():
    s, origin = resolve(get_method("vaesim")(lr=0.5, latent_dim=7), "*")
    assert (s.lr, s.latent_dim) == (0.5, 7) and origin["lr"] == origin["latent_dim"] == "given" and origin["beta"] != "given"


def test_the_preset_follows_the_name_of_the_set(X, monkeypatch):
    cls = get_method("vaesim")
    monkeypatch.setattr(Fit, "follow", lambda *a: None); monkeypatch.setattr(cls, "_finish", lambda *a: None)
    a = cls(preset="released", image_size=16, verbose=False)
    assert a.fit(ImageSet(X, name="pneumoniamnist/train")).settings_.epochs == 60 and a.fit(ImageSet(X, name="mnist/train")).settings_.epochs == 20
    assert a.fit(X).settings_.epochs == 20


@dataclass(kw_only=True)
class Own:
    preset: str = param("where values left at None come from", "origin", "best")
    lr: Positive | None = param("learning rate", "training")
    verbose: bool = param("show a progress bar", "machine", True)
    presets = dict(ours={"*": dict(lr=Value(-1, "a misprint"))})


def test_values_of_a_table_are_checked_too():
    with pytest.raises(ValueError, match="lr=-1"): resolve(Own())
    with pytest.raises(ValueError, match="unknown preset 'bestt'.*best"): resolve(Own(preset="bestt"))


def test_where_values_come_from():
    assert resolve(Own(lr=1, verbose=False))[1] == dict(preset="default", lr="given", verbose="given")
    assert resolve(Own(lr=1, preset="paper", verbose=True))[1] == dict(preset="given", lr="given", verbose="default")


@dataclass(kw_only=True)
class Circular:
    preset: str = param("where values left at None come from", "origin", "best")
    lr: Positive | None = param("learning rate", "training")
    beta: Positive | None = param("weight", "training")
    presets = dict(best={"*": dict(lr=Rule(lambda at: at.value("beta"), "as beta"), beta=Rule(lambda at: at.value("lr") * 2, "twice lr"))})


def test_rules_see_what_the_user_gave_and_name_a_circle():
    assert resolve(Circular(lr=3))[0].beta == 6 and resolve(Circular(beta=3))[0].lr == 3
    with pytest.raises(RecursionError, match="lr → beta → lr"): resolve(Circular())
