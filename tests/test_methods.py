"The methods: presets and names."
import json
from typing import get_type_hints

import pytest
from conftest import ALL, METHODS
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.data.images import ImageSet
from medstrat.training.fitting import Fit
from medstrat.training.parameters import check_value
from medstrat.training.presets import CHAINS, lookup, resolve
from medstrat.training.registry import get_method, list_methods, register

# ---- presets and names

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
    for m in users:
        if value.value is not None: assert check_value(name, value.value, get_type_hints(m, include_extras=True)[name]) == value.value


@pytest.mark.parametrize("preset", ["paper", "released", "best"])
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dataset", ["*", "pneumoniamnist", "mnist", "digits", "brats", "fundus_glaucoma_128", "unheard of"])
def test_a_preset_settles_every_parameter(method, preset, dataset):
    "To values that go together, with a source, and of a kind that a file can hold"
    cls = get_method(method)
    s, origin = resolve(cls(preset=preset), dataset)
    if method in METHODS: cls.method.check(s)   # the others need a condition, or a file of weights
    assert json.loads(json.dumps(vars(s)))
    may_be_none = {"image_size", "patience", "random_state", "checkpoint_dir", "trainer_options", "encoder", "decoder", "sigma", "condition", "encoder_activation", "pretrained", "cache_dir"}
    assert {k for k, v in vars(s).items() if v is None} <= may_be_none
    assert set(origin) == set(vars(s)) and all(origin.values()) and not [k for k, source in origin.items() if source == "not set" and vars(s)[k] is not None]


def test_the_chain_of_presets():
    cls = get_method("vaesim")
    assert lookup(cls, "n_clusters", "paper", "*") == (40, "released: K")                    # not printed: from the code
    assert lookup(cls, "latent_dim", "released", "*")[1].startswith("paper")                 # not in the code's table: from the paper
    assert lookup(cls, "kmeans_at", "paper", "*")[1].startswith("ours") and lookup(cls, "hidden", "paper", "*")[1].startswith("ours")
    assert lookup(cls, "similarity", "paper", "*")[0] == "cosine" and lookup(cls, "similarity", "released", "*")[0] == "dot"
    assert lookup(cls, "epochs", "released", "pneumoniamnist")[0] == 60 and lookup(cls, "epochs", "released", "mnist")[0] == 20
    assert lookup(cls, "channels", "paper", "pneumoniamnist")[0] == (128, 256, 384)
    assert lookup(cls, "no such", "best", "*") == (None, "not set")
    with pytest.raises(ValueError, match="paper"): lookup(cls, "lr", "papr", "*")
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


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ALL), st.randoms())
def test_names_without_case_and_punctuation(name, random):
    letters = [c.upper() if random.random() < 0.5 else c.lower() for c in name if c.isalnum()]
    spelled = "".join(c + random.choice(["", "", "_", "-", " ", "+", "."]) for c in letters)
    assert get_method(spelled).name == name


def test_all_methods_are_listed_once():
    assert len(set(ALL)) == len(ALL) >= 5
    assert get_method("VAE+KMeans") is get_method("vae_kmeans") and get_method("k-means").name == "pixels + k-means" and get_method("autoencoder+kmeans").name == "AE + k-means"
    assert {get_method(n).name for n in ("contrastive", "Contrastive Autoencoder", "contrastive_ae", "ContrastiveAE")} == {"contrastive AE"}
    plain = [a for m in list_methods() for a in {"".join(filter(str.isalnum, n.lower())) for n in (m.name, *getattr(m, "aliases", ()))}]
    assert len(plain) == len(set(plain)), "two methods share a name"


def test_an_unknown_method_lists_near_matches():
    with pytest.raises(ValueError, match="unknown model 'vaesin'.*Did you mean 'VAESim'"): get_method("vaesin")
    with pytest.raises(ValueError, match="There are: .*VAESim"): get_method("")


def test_a_new_method_can_be_registered(X, monkeypatch):
    import medstrat.training.registry as module
    monkeypatch.setattr(module, "_methods", dict(module._methods))
    base = get_method("AE + k-means")
    @register
    class Mine(base):
        "A method of the user."
        name, aliases = "my method", ("mine",)
    assert get_method("MyMethod") is get_method("mine") is Mine and Mine in list_methods()
    a = Mine(n_clusters=2, image_size=16, epochs=1, channels=(2,), latent_dim=2, verbose=False, random_state=0, accelerator="cpu").fit(X)
    assert set(a.labels_) <= {0, 1}
