"The look at a fit: sums against what the estimator says, remedies, fits made to fail, and fits that work."
import json
import warnings

import numpy as np
import pytest
from conftest import ALL, cohort, images, tiny

from medstrat.data.images import ImageSet
from medstrat.data.sources import load_dataset
from medstrat.training import survey
from medstrat.training.parameters import Settings, parameters
from medstrat.training.registry import get_method
from medstrat.training.saving import load_model, read_header, read_tensors, write_tensors
from medstrat.training.signs import DoubtfulFit, Sign
from medstrat.training.survey import REMEDIES, Survey, decoder_rested, remedy


@pytest.fixture(scope="module")
def digits(): return load_dataset("digits").train[:600]


def test_a_decoder_that_rests():
    assert decoder_rested([dict(reconstruction=1), dict(clustering=2)]) and not decoder_rested([dict(clustering=2)]) and not decoder_rested([])


# ---- remedies

@pytest.mark.parametrize("method", ALL)
def test_remedies_are_parameters_of_the_method(method):
    cls = get_method(method)
    now = Settings(**{p: 3 for p in parameters(cls)})
    for name, list_of in REMEDIES.items():
        said = remedy(name, cls, now)
        named = [p for _, p in list_of if f" {p} (now 3)" in said]
        assert named and set(named) <= set(parameters(cls)), name


def test_every_remedy_is_a_parameter_of_some_method():
    known = {p for m in ALL for p in parameters(get_method(m))}
    assert {p for list_of in REMEDIES.values() for _, p in list_of} <= known


def test_a_remedy_can_be_turned_further():
    cls = get_method("VaDE")
    s = Settings(**{p: 1.0 for p in parameters(cls)} | dict(beta=0.0, sigma=None, n_clusters="elbow", pretrain_epochs=0))
    said = remedy("few-clusters", cls, s)
    assert "more pretrain_epochs (now 0)" in said and not any(p in said for p in ("beta", "sigma", "n_clusters"))
    assert "epochs" not in remedy("empty-clusters", get_method("k-means"), Settings(epochs=40, n_clusters=9, random_state=0), learns=False)
    assert remedy("no-better-than-mean", get_method("k-means"), Settings(epochs=40), learns=False) == "No parameter is known to help: look at the images themselves."


# ---- fits

MLP = dict(random_state=0, accelerator="cpu", verbose=False, network="mlp", hidden=(128,), batch_size=32, latent_dim=8, n_clusters=10)
FEW = dict(network="mlp", hidden=(32,), latent_dim=4, image_size=16, batch_size=20, random_state=0, accelerator="cpu", verbose=False)
def fitted(method, X, **given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtfulFit)
        return get_method(method)(**{k: v for k, v in given.items() if k in parameters(get_method(method))}).fit(X)


@pytest.mark.parametrize("method, more", [
    ("k-means", {}), ("PCA + k-means", {}), ("AE + k-means", dict(epochs=12)), ("VAE + k-means", dict(epochs=20, beta=.1)),
    ("VaDE", dict(pretrain_epochs=15, epochs=6)), ("IDEC", dict(pretrain_epochs=15, epochs=6)), ("DEC", dict(pretrain_epochs=15, epochs=6))])
def test_fits_that_work_are_silent(method, more, digits): assert fitted(method, digits, **MLP | more).signs_ == []


@pytest.mark.parametrize("method, more, expected", [
    ("VAE + k-means", dict(epochs=12, beta=1000.0), {"collapsed-embedding", "no-better-than-mean"}),        # the prior wins
    ("AE + k-means", dict(epochs=5, lr=1e-9), {"no-better-than-mean"}),                                      # it does not learn
    ("AE + k-means", dict(epochs=1), {"no-better-than-mean"}),
    ("AE + k-means", dict(epochs=0), {"no-better-than-mean"}),
    ("AE + k-means", dict(epochs=4, lr=1e-4, lr_schedule="constant"), {"no-better-than-mean", "still-falling"}),
    ("DEC", dict(pretrain_epochs=0, epochs=5), {"uniform-responsibilities", "still-changing"}),
    ("IDEC", dict(pretrain_epochs=0, epochs=5), {"uniform-responsibilities", "few-clusters", "no-better-than-mean"}),
    ("GMVAE", dict(epochs=10, beta=1000.0, hidden=(64,), prior_hidden=32, w_dim=4), {"uniform-responsibilities", "few-clusters", "collapsed-embedding", "no-better-than-mean"}),
    ("VaDE", dict(pretrain_epochs=15, epochs=6, sigma=100.0, likelihood="gaussian", lr=1e-2), {"few-clusters"})])
def test_fits_made_to_fail(method, more, expected, digits):
    a = fitted(method, digits, **MLP | more)
    assert expected <= {s.name for s in a.signs_} and not any(s.name == "not-looked-at" for s in a.signs_)
    assert all(s.text.endswith(".") and s.remedy.endswith(".") for s in a.signs_)


def test_far_too_many_clusters():
    "Images of two kinds, and twenty prototypes on a temperature at which all of them win a share"
    a = fitted("VAESim", images(120), **FEW, n_clusters=20, epochs=2)
    assert {"few-clusters", "empty-clusters"} & {s.name for s in a.signs_}


def test_the_remedy_helps(digits):
    bad, good = (fitted("VAE + k-means", digits, **MLP, epochs=20, beta=beta) for beta in (1000.0, .1))
    assert "a smaller beta (now 1000.0)" in next(s.remedy for s in bad.signs_ if s.name == "collapsed-embedding") and good.signs_ == []





def test_pictures_of_a_decoder_that_rested_are_not_to_be_trusted(digits):
    a = fitted("DEC", digits, **MLP | dict(pretrain_epochs=0, epochs=5))
    b = fitted("DEC", digits, **MLP | dict(pretrain_epochs=1, epochs=3))
    of = lambda m: next(s.remedy for s in m.signs_ if s.name == "no-better-than-mean")
    assert of(a).startswith("What usually helps: more pretrain_epochs (now 0)") and of(b) == survey.RESTED


# ---- the look

def test_a_survey_agrees_with_the_estimator(digits):
    a = fitted("VaDE", digits, **MLP | dict(pretrain_epochs=3, epochs=2))
    fit = type("Fit", (), dict(net=a.module_, engine=a._engine(), data=type("Data", (), dict(beside={}))))
    seen, r, z, x = Survey(fit, a._checked(digits)), a.predict_proba(digits), a.transform(digits), digits.images / 255
    assert seen.n == 600 and np.allclose(seen.shares, r.sum(0), rtol=1e-4) and seen.own == pytest.approx(-(r * np.log(r.clip(1e-30))).sum(), rel=1e-3)
    assert np.allclose(seen.variance, z.var(0), rtol=1e-3)
    error = np.square(a.reconstruct(digits) - x).sum() / np.square(x - x.mean(0)).sum()
    assert seen.rebuilt.ratio() == pytest.approx(error, rel=1e-4)


def test_a_sample_of_many_images(monkeypatch):
    seen = []
    monkeypatch.setattr(survey, "SAMPLE", 25)
    add = Survey.add
    monkeypatch.setattr(Survey, "add", lambda self, x, *more: (seen.append(len(x)), add(self, x, *more)))
    fitted("DEC", images(80), **FEW, n_clusters=2, pretrain_epochs=1, epochs=1)
    assert sum(seen) == 25


def test_the_condition_is_told_and_taken_away():
    "A decoder that learns nothing but the two tones it is told, on images that are nothing but their tone and noise"
    rng = np.random.default_rng(0)
    tone = np.arange(80) % 2
    x = (60 + 120 * tone[:, None, None, None] + rng.integers(0, 60, (80, 16, 16, 1))).astype(np.uint8)
    s = ImageSet(x, dict(tone=np.where(tone, "bright", "dark")))
    a = fitted("VAE + k-means", s, **FEW | dict(epochs=60, lr=1e-2, beta=1000.0, n_clusters=2, condition="tone"))
    error = np.square(a.reconstruct(s) - x / 255).sum() / np.square(x / 255 - (x / 255).mean(0)).sum()
    assert error < .9 and "no-better-than-mean" in [s.name for s in a.signs_]


def test_a_network_with_one_cluster_has_no_clusters_to_be_judged():
    from medstrat.methods.autoencoders import VAE
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        a = VAE(**FEW, epochs=1).fit(images())
    assert {s.name for s in a.signs_} <= {"collapsed-embedding", "no-better-than-mean"} and len([w for w in said if w.category is DoubtfulFit]) == len(a.signs_)


@pytest.mark.parametrize("method", ["VaDE", "DEC", "contrastive AE", "k-means"])
def test_a_failing_look_costs_nothing_but_itself(method, monkeypatch):
    def broken(self, *more): raise RuntimeError("out of memory")
    whole = fitted(method, images(), **FEW, n_clusters=2, pretrain_epochs=1, epochs=1, decoder_epochs=1)
    monkeypatch.setattr(Survey, "add", broken)
    a = fitted(method, images(), **FEW, n_clusters=2, pretrain_epochs=1, epochs=1, decoder_epochs=1)
    assert [s.name for s in a.signs_] == ["not-looked-at"] and "RuntimeError: out of memory" in a.signs_[0].text and (a.labels_ == whole.labels_).all()


def test_an_interrupted_training_is_not_told_that_it_was_short(digits):
    from conftest import interrupt
    given = MLP | dict(epochs=10, lr=1e-4, lr_schedule="constant", trainer_options=dict(callbacks=[interrupt(19 * 5)]))
    with pytest.warns(UserWarning, match="interrupted"): a = fitted("AE + k-means", digits, **given)
    assert a.interrupted_ and "still-falling" not in [s.name for s in a.signs_]


def test_one_warning_a_sign_whether_or_not_it_is_verbose():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        a = tiny("IDEC", pretrain_epochs=0).fit(images())
    assert a.signs_ and [str(w.message) for w in said if w.category is DoubtfulFit] == [str(s) for s in a.signs_]


# ---- what is kept of them

def test_signs_are_saved(tmp_path):
    a = fitted("VAE + k-means", images(), **FEW, n_clusters=2, epochs=1)
    a.save(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert a.signs_ and again.signs_ == a.signs_ and isinstance(again.signs_[0], Sign)
    header, tensors = read_tensors(tmp_path / "m.safetensors")
    assert header["signs"][0].keys() == {"name", "text", "remedy"} and read_header(tmp_path / "m.safetensors")["signs"] == header["signs"]
    del header["signs"]
    write_tensors(tmp_path / "old.safetensors", tensors, header)
    assert load_model(tmp_path / "old.safetensors").signs_ is None      # nobody looked
    a.signs_ = []
    a.save(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").signs_ == []          # nothing was found


def test_a_classifier_has_none(tmp_path):
    a = tiny("transfer").fit(cohort())
    a.save(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").signs_ is None


def test_the_record_of_a_run_lists_them(tmp_path):
    from medstrat.runs.records import finish, start_run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = start_run("ae+kmeans", "digits", out=tmp_path, epochs=1, network="mlp", hidden=(16,), verbose=False)
    record = json.loads((finish(run) / "run.json").read_text())
    assert record["signs"] and [Sign(**s) for s in record["signs"]] == run.model.signs_
