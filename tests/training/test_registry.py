"The registry: names without case or punctuation, near matches, methods of a user's own, docstrings made of declarations."
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from conftest import ALL
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.training import registry
from medstrat.training.parameters import Columns, Count, Counts, param
from medstrat.training.presets import Value
from medstrat.training.registry import describe, get_method, list_methods, register, type_text


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
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    base = get_method("AE + k-means")
    @register
    class Mine(base):
        "A method of the user."
        name, aliases = "my method", ("mine",)
    assert get_method("MyMethod") is get_method("mine") is Mine and Mine in list_methods()
    a = Mine(n_clusters=2, image_size=16, epochs=1, channels=(2,), latent_dim=2, verbose=False, random_state=0, accelerator="cpu").fit(X)
    assert set(a.labels_) <= {0, 1}


SCRIPT = '''
from dataclasses import dataclass
from medstrat.training.registry import get_method, list_methods, register
@register
@dataclass(kw_only=True, repr=False, eq=False)
class Mine(get_method("VAESim")):
    "A method in somebody's script."
    name = "my own sim"
print(get_method("MyOwnSim") is Mine, Mine in list_methods(), Mine.__module__)
'''


def test_a_method_in_a_users_script(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "mine.py"], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "__main__"], done.stderr


@pytest.mark.parametrize("hint, text", [(Count | Literal["elbow"] | None, "int | 'elbow'"), (Counts | None, "tuple of int"), (Any, "any"), (bool, "bool"), (dict | None, "dict"),
                                        (Columns | None, "str | tuple of str"), (Literal["a", "b"], "'a' | 'b'")])
def test_hints_as_text(hint, text): assert type_text(hint) == text


def test_a_docstring():
    @dataclass(kw_only=True)
    class Base:
        preset: str = param("where values come from", "origin", "best")
        beta: float | None = param("weight of the KL term", "training")
        presets = dict(ours={"*": dict(beta=Value(1.0, "Kingma & Welling"))})
    @dataclass(kw_only=True)
    class Own(Base):
        "Own words.\n\nMore of them."
        tau: float | None = param("temperature " * 12, "clustering")
    once = describe(Own).__doc__
    assert once.splitlines() == ["Own words.", "", "More of them.", "", "Parameters", "----------", "tau : float", "    " + "temperature " * 12,
                                 "preset : str, default 'best'; where values come from", "beta : float, default 1.0; weight of the KL term [ours: Kingma & Welling]"]
    assert describe(Own).__doc__ == once      # described twice, it says the same
