"What every method promises that learns from features: of a backbone in front, or computed elsewhere."
import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ALL, BEHIND, Lazy, backbone_file, cohort, history, interrupt, known, ready, same_weights
from sklearn.base import clone, is_classifier

from medstrat.data.images import ImageSet
from medstrat.parts.backbones import compute_features, load_backbone
from medstrat.training.method import Network
from medstrat.training.parameters import parameters
from medstrat.training.registry import get_method
from medstrat.training.saving import load_model, read_header

pytestmark = pytest.mark.filterwarnings("ignore:.*clusters are empty:UserWarning", "ignore::sklearn.exceptions.ConvergenceWarning")
ABLE = [m for m in ALL if m != "contrastive AE"]
SCALED = [m for m in ABLE if m not in ("transfer", "features + k-means")]     # those take features as they are
DEEP = [m for m in SCALED if m not in ("pixels + k-means", "PCA + k-means")]
ON = dict(network="mlp", likelihood="gaussian", augment="none", tol=0.0, update_interval=2)
ALONE = dict(backbone=None, weights=None, input_size=None)
each, scaled, deep = (pytest.mark.parametrize("method", methods) for methods in (ABLE, SCALED, DEEP))
ways = pytest.mark.parametrize("way", ["vectors", "backbone"])


def features(images): return compute_features(load_backbone(BEHIND["backbone"], backbone_file(), BEHIND["input_size"]), images)


def with_vectors(n=60, seed=0):
    "A cohort that carries what the tiny backbone says of its images"
    S = cohort(n, seed=seed)
    return S.but(vectors=features(S.images))


def on(method, way, **changes):
    front = BEHIND | dict(weights=backbone_file()) if way == "backbone" else ALONE
    return ready(method, **known(method, ON | front) | changes)


def given(way, n=60, seed=0): return with_vectors(n, seed) if way == "vectors" else cohort(n, seed=seed)


@pytest.fixture(scope="module")
def fitted():
    "One fitted estimator of each (method, way); tests must not change them"
    return Lazy(lambda key: on(*key).fit(given(key[1])))


# ---- what is set by nobody suits them

@pytest.mark.parametrize("method", [m for m in ABLE if m != "DVC"])   # which is DVC-1, of convolutions
@pytest.mark.parametrize("d", [1, 5])
def test_the_rules_suit_vectors(method, d):
    S, cls = with_vectors(), get_method(method)
    given = dict(n_clusters=3, epochs=1, pretrain_epochs=1, random_state=0, accelerator="cpu", verbose=False)
    told = dict(condition=S.table[["tone"]]) if method == "CDVaDE" else {}
    a = cls(**{k: v for k, v in given.items() if k in parameters(cls)})
    a.fit(S.vectors[:, :d], S.labels if is_classifier(a) else None, **told)
    assert a.settings_.kind == "vectors" and a.module_.input_shape == (d,)


# ---- what it gives

@ways
@each
def test_it_fits_saves_loads_and_predicts_the_same(method, way, fitted, tmp_path):
    a, new, path = fitted[method, way], given(way, 20, seed=5), tmp_path / "model.safetensors"
    Z, p = a.transform(new), a.predict_proba(new)
    assert Z.shape == (20, a.module_.dim) and np.isfinite(Z).all() and p.shape == (20, a.n_clusters_)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert a.image_shape_ == ((16, 16, 1) if way == "backbone" else (features(new.images[:2]).shape[1],)) and a.module_.input_shape != (16, 16, 1)
    a.save(path)
    for b in (type(a).load(path), load_model(path)):
        assert same_weights(a, b) and (b.transform(new) == Z).all() and (b.predict_proba(new) == p).all() and (b.predict(new) == a.predict(new)).all()
        b.save(tmp_path / "again")
        assert read_header(tmp_path / "again") == read_header(path)
    assert same_weights(clone(b).set_params(accelerator="cpu", verbose=False, weights=backbone_file()).fit(given(way)), a)      # what was loaded says how to fit it again
    if not is_classifier(a): assert (a.labels_ == a.predict(given(way))).all()


@each
def test_wherever_the_features_were_computed(method, fitted):
    "Behind a backbone, or on its features as vectors: the same training, to the bit"
    a, b, new = fitted[method, "backbone"], fitted[method, "vectors"], with_vectors(20, seed=5)
    if method == "transfer":       # its head's first weights come after those of the backbone
        np.testing.assert_array_equal(a.transform(new.but(vectors=None)), b.transform(new))
        return
    pd.testing.assert_frame_equal(history(a), history(b))
    for k, v in b.module_.state_dict().items(): assert v.equal(a.module_.state_dict()[k]), k
    for call in ("transform", "predict", "predict_proba"): np.testing.assert_array_equal(getattr(a, call)(new.but(vectors=None)), getattr(b, call)(new), err_msg=call)
    assert a.module_.state_dict().keys() - b.module_.state_dict().keys() == {k for k in a.module_.state_dict() if k.startswith("backbone.")}


@each
def test_vectors_in_any_form(method, fitted):
    "An image set that carries them, an array of any precision, a tensor, a table"
    a, new = fitted[method, "vectors"], with_vectors(20, seed=5)
    V, Z = new.vectors, a.transform(new)
    table = pd.DataFrame(V, columns=[f"f{i}" for i in range(V.shape[1])])
    for form in (V, V.astype(np.float64), torch.from_numpy(V), table, table.assign(f0=table.f0.astype(np.float64))): np.testing.assert_array_equal(a.transform(form), Z)
    np.testing.assert_allclose(a.transform(V[7:8]), Z[7:8], atol=1e-5)      # alone as among others
    y, told = (cohort().labels if is_classifier(a) else None), (dict(condition=cohort().table[["tone"]]) if method == "CDVaDE" else {})
    b = on(method, "vectors").fit(with_vectors().vectors, y, **told)
    assert same_weights(a, b)


@scaled
def test_the_networks_see_scaled_features_once(method, fitted):
    "Independent of the code: what stands before the first layer is the features, centred, with an average variance of 1"
    for way in ("vectors", "backbone"):
        a = fitted[method, way]
        f, x = with_vectors().vectors.astype(np.float64), a._inputs(given(way))
        np.testing.assert_allclose(x, (f - f.mean(0)) / f.std(0).__pow__(2).mean()**.5, atol=2e-4)
        if method in DEEP:
            with torch.no_grad(): expected = a.module_.embed(torch.from_numpy(x)).numpy()
            np.testing.assert_allclose(a.transform(given(way)), expected, atol=1e-4)


@pytest.mark.parametrize("scaling, dim, width", [("standard", None, None), ("standard", 7, 7), ("one", 5, 5), ("whiten", None, 59), ("whiten", 9, 9)])
def test_scalings(scaling, dim, width):
    a = on("VAE + k-means", "backbone", scaling=scaling, feature_dim=dim).fit(cohort())
    x = a._inputs(cohort())
    assert x.shape == (60, width or features(cohort().images).shape[1]) and a.settings_.feature_dim == width
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    if scaling == "whiten": np.testing.assert_allclose(np.cov(x.T, bias=True), np.eye(width), atol=1e-2)
    elif dim is None: assert set(x.std(0).round(2)) <= {0, np.float32(x.std(0).max().round(2))}
    else: assert abs(x.var(0).mean() - 1) < 1e-3 and (np.diff(x.var(0)) < 1e-3).all()


# ---- nothing to be decoded

@ways
@each
def test_there_are_no_pictures(method, way, fitted):
    a = fitted[method, way]
    assert not a.has_decoder
    if is_classifier(a): return
    asked = dict(reconstruct=[given(way)], inverse_transform=[a.transform(given(way))], prototypes=[], sample=[])
    for word, arguments in asked.items():
        if get_method(method).method.decode is Network.decode or word == "sample" and get_method(method).method.draw is Network.draw: continue
        with pytest.raises(AttributeError, match=r"cannot generate images: it learned from features.*Show real images that lie near"): getattr(a, word)(*arguments)


# ---- refusals

@each
def test_other_input_at_predict(method, fitted):
    width = with_vectors(2).vectors.shape[1]
    for call in ("predict", "transform", "encode", "predict_proba"):
        for wrong, says in [(cohort(5), rf"fitted on vectors .N,{width}., but got images \(5, 16, 16, 1\)"), (np.ones((4, 7)), rf"fitted on vectors .N,{width}., but got vectors \(4, 7\)")]:
            with pytest.raises(ValueError, match=says): getattr(fitted[method, "vectors"], call)(wrong)
        with pytest.raises(ValueError, match=r"fitted on images of shape .* = \(16, 16, 1\), but got vectors \(4, 7\)"): getattr(fitted[method, "backbone"], call)(np.ones((4, 7)))
        assert (fitted[method, "backbone"].transform(with_vectors(5, seed=5)) == fitted[method, "backbone"].transform(cohort(5, seed=5))).all()      # it needs their pixels
    with pytest.raises(ValueError, match=rf"fitted on vectors .N,{width}., but got images"): on(method, "vectors").fit(with_vectors(), validation=cohort())


@each
def test_vectors_that_cannot_be_used(method, untrained):
    V = with_vectors().vectors.copy()
    fit = lambda X, **more: on(method, "vectors", **more).fit(X, *([cohort().labels] if method == "transfer" else []), **(dict(condition=cohort().table[["tone"]]) if method == "CDVaDE" else {}))
    for value in (np.nan, np.inf, -np.inf, 1e39):
        X = V.astype(np.float64)
        X[33, 2] = value
        with pytest.raises(ValueError, match=r"Vector 33 holds NaN or an infinite value .column 2"): fit(X)
    with pytest.raises(ValueError, match="The column 'name' of the vectors holds (object|str)"): fit(pd.DataFrame(V).assign(name="a"))
    with pytest.raises(ValueError, match="2-D array"): fit((V * 10).astype(int))
    with pytest.raises(ValueError, match=r"Vectors of shape 0×"): fit(V[:0])
    with pytest.raises(ValueError, match=r"backbone='resnet18' computes features of images, but vectors were given"): fit(V, backbone="resnet18")
    with pytest.raises(ValueError, match=r"kind='film' does not go with"): fit(V, kind="film")


@deep
def test_what_needs_pixels(method, untrained):
    for way in ("vectors", "backbone"):
        what = "vectors" if way == "vectors" else f"the features of backbone='{BEHIND['backbone']}'"
        with pytest.raises(ValueError, match=re.escape(f"network='conv' needs pixels, which have neighbours; {what} have none. Give network='mlp'")): on(method, way, network="conv").fit(given(way))
        with pytest.raises(ValueError, match=re.escape(f"likelihood='bernoulli' is for numbers between 0 and 1; {what}")): on(method, way, likelihood="bernoulli").fit(given(way))
        if "augment" not in get_method(method).__dataclass_fields__: continue
        with pytest.raises(ValueError, match=re.escape(f"augment='affine' distorts pixels; {what}")): on(method, way, augment="affine").fit(given(way))


def test_methods_on_pixels_alone(untrained):
    with pytest.raises(ValueError, match=r"contrastive AE needs pixels, but vectors were given.*but\(vectors=None\)"): ready("contrastive AE").fit(with_vectors())
    with pytest.raises(ValueError, match="contrastive AE compares two distorted views"): ready("contrastive AE", backbone=BEHIND["backbone"]).fit(cohort())
    with pytest.raises(ValueError, match="tune='all' trains the backbone, and vectors have none"): on("transfer", "vectors", tune="all").fit(with_vectors())
    for method in ("features + k-means", "transfer"):
        with pytest.raises(ValueError, match="backbone='none' leaves no features"): ready(method, backbone="none").fit(cohort())
    with pytest.raises(ValueError, match="feature_dim=60 is more than the 59 principal components that 60 images have"): on("VaDE", "vectors", feature_dim=60).fit(with_vectors())


# ---- caches and checkpoints

def test_a_pretraining_depends_on_what_stands_in_front(tmp_path):
    S, made = with_vectors(), lambda: {p.name for p in tmp_path.glob("pretrained-*")}
    fit = lambda X=S.but(vectors=None), way="backbone", **more: on("DEC", way, cache_dir=tmp_path, **more).fit(X)
    first = fit()
    assert len(made()) == 1 and len(list(tmp_path.glob("features-*.npy"))) == 1
    again = fit()
    assert len(made()) == 1 and same_weights(first, again)
    for n, change in enumerate([dict(scaling="standard"), dict(feature_dim=6), dict(input_size=48), dict(way="vectors", X=S), dict(way="vectors", X=S.but(vectors=S.vectors**3))], 2):
        fit(**change)
        assert len(made()) == n, change
    fit(way="vectors", X=S.but(vectors=S.vectors * 2))
    assert len(made()) == n      # scaled by one number, they are the same


@ways
@pytest.mark.parametrize("method", ["VaDE", "IDEC", "GMVAE"])
def test_interrupted_and_resumed(method, way, fitted, tmp_path):
    a = on(method, way, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(4)]))
    with pytest.warns(UserWarning, match="interrupted"): a.fit(given(way))
    assert a.interrupted_ and same_weights(on(method, way).fit(given(way), resume=tmp_path / "last.ckpt"), fitted[method, way])
    with pytest.raises(ValueError, match=r"belongs to another training: .*scaling .saved: 'one', given: 'standard'"): on(method, way, scaling="standard").fit(given(way), resume=tmp_path / "last.ckpt")


@pytest.mark.parametrize("method", ["AE + k-means", "DEC"])
def test_an_autoencoder_brings_its_scaling(method, tmp_path):
    "Taken over for other images: what it learned with stays"
    a = on(method, "backbone").fit(cohort())
    a.save(tmp_path / "a.safetensors")
    b = on(method, "backbone", pretrained=tmp_path / "a.safetensors", **known(method, dict(epochs=0))).fit(cohort(40, seed=3))
    for name in ("mean", "weight"): assert getattr(a.module_.scaling, name).equal(getattr(b.module_.scaling, name))
    plain = ready(method, **known(method, ON)).fit(cohort())
    plain.save(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="did not learn from such features"): on(method, "backbone", pretrained=tmp_path / "plain.safetensors").fit(cohort())


@deep
def test_validation_images_stand_behind_it_too(method):
    for way in ("vectors", "backbone"):
        a = on(method, way).fit(given(way), validation=given(way, 20, seed=3))
        assert a.history_.val_loss.notna().all()


def test_the_backbone_rests(fitted):
    "No weight of it moves, and it is never in a state of training afterwards"
    net = fitted["VaDE", "backbone"].module_
    for name, v in load_backbone(BEHIND["backbone"], backbone_file(), 32).state_dict().items(): assert v.equal(net.backbone.state_dict()[name]), name
    assert not any(p.requires_grad for p in net.backbone.parameters()) and not net.backbone.training


def test_nothing_is_changed_by_asking(fitted):
    a, S = fitted["IDEC", "vectors"], with_vectors()
    before, V = copy.deepcopy(a.module_.state_dict()), S.vectors.copy()
    a.predict(S), a.transform(S), a.encode(S), a.predict_proba(S)
    assert all(v.equal(before[k]) for k, v in a.module_.state_dict().items()) and (S.vectors == V).all() and isinstance(S, ImageSet)


@ways
@pytest.mark.parametrize("method", ["IDEC", "VaDE", "GMVAE"])
def test_each_of_several_starts_looks_at_the_same_features(method, way):
    "What a later start has learned goes with the scaling that the fit has learned; signs and criteria see features scaled once"
    X = given(way)
    for seed in range(2):      # one of the two chooses a later start, or the first: both must do
        m = on(method, way, n_starts=3, random_state=seed).fit(X)
        assert (m.predict(X) == m.labels_).all() and m.module_.scaling.mean.abs().max() > 0
        assert "not-looked-at" not in [sign.name for sign in m.signs_] and len(m.starts_) == 3
    alone = on(method, way, n_starts=1, random_state=0).fit(X)
    several = on(method, way, n_starts=3, random_state=0).fit(X)
    if several.starts_.chosen[0]: assert same_weights(alone.module_, several.module_)
    net, x = alone.module_.eval(), torch.from_numpy(np.array(alone._inputs(X)))
    with torch.no_grad(): value = -net.reconstruction(net.logits(net.embed(x)), x).item()
    assert several.starts_.reconstruction[0] == pytest.approx(value, rel=1e-2)   # of the first start, which is the single one
