"A condition through every method that has an encoder and a decoder. (The columns themselves: tests/vae/test_covariates.py.)"
import datetime
import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ALL, PRETRAINED, images, interrupt, same_weights, tiny
from sklearn.base import clone
from torch import nn

from medstrat.data.images import ImageSet
from medstrat.methods.autoencoders import Autoencoder
from medstrat.runs import records as runs
from medstrat.runs.tables import read_runs
from medstrat.training.method import Network
from medstrat.training.registry import get_method
from medstrat.training.saving import load_model
from medstrat.training.signs import DoubtfulFit

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DECODERS = [m for m in ALL if issubclass(get_method(m), Autoencoder)]
DRAWS = [m for m in DECODERS if get_method(m).method.draw is not Network.draw]
OTHER = images(20, seed=5)


def table(n=60, seed=0):
    "Five columns of the kinds that one meets"
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(color=np.array(["red", "green", "blue"])[rng.integers(0, 3, n)], age=rng.normal(50, 9, n), flag=rng.random(n) < 0.4,
                             site=rng.integers(1, 4, n), stage=pd.Categorical(np.array(["II", "I", "III"])[np.arange(n) % 3], ["I", "II", "III", "IV"], ordered=True)))


def known(n=60, seed=0, **columns): return ImageSet(images(n, seed=seed), table(n, seed).assign(**columns))


def quick(method="VaDE", **changes):
    "Fully connected, without distortions or early ends: a fraction of a second"
    fast = dict(network="mlp", n_init=2, tol=0.0, augment=dict(flip=0.5) if method == "contrastive AE" else "none", init="diag" if method in ("VaDE", "CDVaDE") else "k-means")
    fast = {k: v for k, v in fast.items() if k in get_method(method).__dataclass_fields__ and not (k == "init" and method == "VAESim")}
    return tiny(method, **(fast | changes))


@pytest.fixture(scope="module")
def told():
    "One fitted estimator of each method, told a category and a number; tests must not change them"
    return {m: quick(m).fit(known(), condition=["color", "age"]) for m in DECODERS}


@pytest.fixture
def S(): return known()


# ---- what can be told

@pytest.mark.parametrize("values", [pd.cut(pd.Series(np.linspace(20, 80, 60)), 3), pd.Series(pd.period_range("2020", periods=3, freq="Y").repeat(20)), pd.Series([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)] * 30),
                                    np.array([b"a", b"b"] * 30), pd.Series([("a", 1), ("b", 2)] * 30), pd.Categorical(pd.to_datetime(["2020-01-01", "2021-01-01"] * 30))], ids=["pd.cut", "period", "date", "bytes", "tuple", "categorical date"])
def test_what_can_be_fitted_can_be_saved(values, tmp_path):
    "Refused before the training, or written and read"
    X = images()
    try: a = quick("AE + k-means", epochs=1).fit(X, condition=values)
    except ValueError as e: assert "condition" in str(e) or "column" in str(e); return
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert b.covariates_ == a.covariates_ and (b.reconstruct(X, condition=values) == a.reconstruct(X, condition=values)).all()


# ---- tables

@pytest.mark.parametrize("condition, says", [
    ("colour", "no (such )?column.*Did you mean 'color'.*There are: color, age"), (["color", "agee"], "Did you mean 'age'"), (np.zeros(59), "59 rows for 60 images"), (table(61), "61 rows for 60 images"),
    (pd.Series(np.zeros(5)), "5 rows for 60"), (np.zeros((60, 2, 2)), r"condition.*shape|condition.*dimension"), (np.float64(3.0), "condition"), (3, "condition"), ([], "condition"), (np.zeros((60, 0)), "condition"), (table()[[]], "condition"),
    (dict(color="red"), "condition")], ids=["name", "names", "short", "long", "Series", "3-D", "0-D", "number", "empty", "no columns", "empty table", "dict"])
def test_conditions_that_do_not_fit(condition, says, S):
    for method in ("AE + k-means", "VaDE"):
        with pytest.raises(ValueError, match=says): quick(method).fit(S, condition=condition)


def test_a_dictionary_of_columns(S):
    "Refused, or a table as good as another: its names are kept"
    try: a = quick(epochs=1).fit(images(), condition=dict(color=list(S.table.color)))
    except ValueError as e: assert "condition" in str(e)
    else: assert a.covariates_.names == ["color"]


def test_names_need_a_table():
    for X in (images(), torch.from_numpy(images()), list(images())):
        with pytest.raises(ValueError, match="condition='color'.*the images come without a table.*ImageSet.*array, Series or DataFrame"): quick().fit(X, condition="color")
        with pytest.raises(ValueError, match="come without a table"): quick(condition="color").fit(X)


def test_a_list_of_texts_is_not_printed_in_full():
    with pytest.raises(ValueError) as e: quick().fit(images(), condition=list(table().color))
    assert len(str(e.value)) < 400


@pytest.mark.parametrize("twice", ["names", "table"])
def test_duplicate_columns(twice, S):
    "Refused with a word about it, or told once"
    condition = ["color", "color"] if twice == "names" else pd.concat([S.table[["color"]], S.table[["age"]].rename(columns=dict(age="color"))], axis=1)
    try: a = quick().fit(S, condition=condition)
    except ValueError as e: assert "color" in str(e) and ("twice" in str(e) or "two columns" in str(e)), e
    else: assert a.covariates_.names == ["color"] and twice == "names"


def test_columns_called_like_something_else():
    "The names that the code uses itself"
    t = table().rename(columns=dict(color="condition", age="images", flag="index", site="x", stage="condition_0"))
    S = ImageSet(images(), t)
    a = quick(epochs=1).fit(S, condition=list(t))
    assert a.covariates_.names == list(t) and a.reconstruct(S).shape == (60, 16, 16, 1) and a.sample(2, condition=dict(index=True)).shape == (2, 16, 16, 1)


def test_columns_whose_names_are_numbers():
    "A DataFrame made from an array has them"
    t = pd.DataFrame(table()[["color"]].to_numpy(), columns=[7])
    S = ImageSet(images(), t)
    a = quick(epochs=1).fit(images(), condition=t, validation=S)
    np.testing.assert_array_equal(a.reconstruct(images(), condition=t), a.reconstruct(S))


@pytest.mark.parametrize("make", [lambda t: t.color, lambda t: t.color.to_numpy(), lambda t: t, lambda t: t.age.to_numpy()], ids=["Series", "array", "DataFrame", "numbers"])
def test_values_in_the_place_of_the_parameter(make, S):
    "The parameter takes names; values belong into `fit`"
    for method in ("VaDE", "CDVaDE"):
        with pytest.raises(ValueError, match="condition"): quick(method, condition=make(S.table)).fit(S)


# ---- every method with a decoder

@pytest.mark.parametrize("method", DECODERS)
def test_prediction_knows_no_table(method, told):
    a, X = told[method], images()
    for same in (X, known(), ImageSet(X, dict(color=["pink"] * 60)), ImageSet(X)):
        assert (a.predict(same) == a.labels_).all() and (a.transform(same) == a.transform(X)).all() and (a.predict_proba(same) == a.predict_proba(X)).all() and (a.encode(same)[1] == a.labels_).all()
    assert a.transform(X).shape == (60, 4) and a.covariates_.names == ["color", "age"] and a.covariates_.width == 4 and a.settings_.condition == ("color", "age")
    assert not any(isinstance(v, np.ndarray) and len(v) == 60 for k, v in vars(a).items() if k != "labels_")


@pytest.mark.parametrize("method", DECODERS)
def test_reconstruction(method, told):
    a, X, S = told[method], images(), known()
    own = a.reconstruct(S)
    assert own.shape == (60, 16, 16, 1) and own.dtype == np.float32 and 0 <= own.min() <= own.max() <= 1
    with pytest.raises(ValueError, match="come without a table"): a.reconstruct(X)
    with pytest.raises(ValueError, match="there is no .*column"): a.reconstruct(ImageSet(X, S.table[["age"]]))
    np.testing.assert_array_equal(a.reconstruct(X, condition=S.table), own)
    np.testing.assert_allclose(a.inverse_transform(a.transform(X), condition=S.table), own, atol=1e-6)
    red = a.reconstruct(S, condition=dict(color="red"))      # the age is then the typical one
    np.testing.assert_allclose(red, a.inverse_transform(a.transform(X), dict(color="red")), atol=1e-6)
    np.testing.assert_allclose(red, a.reconstruct(X, condition=S.table.assign(color="red", age=S.table.age.mean())), atol=1e-5)


@pytest.mark.parametrize("method", DECODERS)
def test_the_decoder_listens(method, told):
    "To the category and to the number, for each image; and the typical condition is what is meant without one"
    a, X = told[method], images()
    Z = a.transform(X)
    made = [a.inverse_transform(Z, c) for c in (dict(color="red"), dict(color="blue"), dict(color="red", age=90.0))]
    for one, two in [(0, 1), (0, 2), (1, 2)]: assert np.abs(made[one] - made[two]).max((1, 2, 3)).min() > 1e-5
    np.testing.assert_array_equal(a.inverse_transform(Z), a.inverse_transform(Z, a.covariates_.typical))
    rows = pd.DataFrame(dict(color=["red", "blue"] * 30, age=a.covariates_.typical["age"]))
    mixed = a.inverse_transform(Z, rows)
    np.testing.assert_allclose(mixed[::2], made[0][::2], atol=1e-5); np.testing.assert_allclose(mixed[1::2], made[1][1::2], atol=1e-5)


@pytest.mark.parametrize("method", DECODERS)
def test_prototypes_and_samples(method, told):
    a = told[method]
    assert a.prototypes().shape == (3, 16, 16, 1) and not np.allclose(a.prototypes(dict(color="red")), a.prototypes(dict(color="blue")), atol=1e-6)
    np.testing.assert_array_equal(a.prototypes(dict(color="red")), a.inverse_transform(a.cluster_centers_, dict(color="red")))
    np.testing.assert_array_equal(a.prototypes(pd.DataFrame(dict(color="red", age=[40.0] * 3)))[0], a.prototypes(dict(color="red", age=40))[0])
    with pytest.raises(ValueError, match="rows for 3 images"): a.prototypes(known().table[:2])
    if method not in DRAWS: return
    one, two = (a.sample(5, condition=dict(color=c)) for c in ("red", "blue"))
    assert one.shape == (5, 16, 16, 1) and not np.allclose(one, two, atol=1e-6) and (a.sample(5, condition=dict(color="red")) == one).all()
    np.testing.assert_array_equal(a.sample(5), a.sample(5, condition=a.covariates_.typical))
    assert a.sample(4, condition=known().table[:4]).shape == (4, 16, 16, 1)
    with pytest.raises(ValueError, match="rows for 4 images"): a.sample(4, condition=known().table[:3])
    with pytest.raises(ValueError, match="Did you mean 'color'"): a.sample(2, condition=dict(colour="red"))
    if method != "VAE + k-means" and method != "VAESim": assert not np.allclose(a.sample(4, cluster=1, condition=dict(color="red")), a.sample(4, cluster=1, condition=dict(color="blue")), atol=1e-6)


@pytest.mark.parametrize("method", DECODERS)
def test_files(method, told, tmp_path):
    a, S = told[method], known()
    a.save(tmp_path / "m")
    for b in (load_model(tmp_path / "m"), type(a).load(tmp_path / "m"), pickle.loads(pickle.dumps(a))):
        assert b.covariates_ == a.covariates_ and same_weights(a, b) and b.settings_.condition == ("color", "age")
        assert (b.predict(OTHER) == a.predict(OTHER)).all() and (b.reconstruct(S) == a.reconstruct(S)).all() and (b.prototypes() == a.prototypes()).all()
        assert (b.inverse_transform(a.cluster_centers_, dict(color="red")) == a.inverse_transform(a.cluster_centers_, dict(color="red"))).all()
        with pytest.raises(ValueError, match="not seen: 'pink'"): b.prototypes(dict(color="pink"))
    assert same_weights(clone(load_model(tmp_path / "m")).fit(S), a)      # what was loaded says how to fit it again


@pytest.mark.parametrize("method", DECODERS)
def test_as_a_parameter(method, told, S):
    "By name, when the estimator is made: the same bits as in `fit`"
    a = quick(method, condition=("color", "age"))
    assert clone(a).get_params() == a.get_params() and clone(a).condition == ("color", "age") and "condition=" in repr(a)
    assert same_weights(a.fit(S), told[method]) and a.condition == ("color", "age")
    assert quick(method, condition=["color", "age"], epochs=0).fit(S).covariates_ == a.covariates_


def test_fit_goes_before_the_parameter(S):
    a = quick(condition="color").fit(S, condition="age")
    assert a.covariates_.names == ["age"] and a.condition == "color" and a.settings_.condition == ("age",)
    a.fit(S)
    assert a.covariates_.names == ["color"]
    b = quick().fit(S, condition="age").fit(S)      # the second fit knows nothing of the first
    assert b.covariates_ is None and same_weights(b, quick().fit(images())) and b.reconstruct(images()).shape == (60, 16, 16, 1)


@pytest.mark.parametrize("method", [m for m in DECODERS if m != "CDVaDE"])
def test_without_a_condition_nothing_is_told(method, S):
    a = quick(method, epochs=0).fit(S)
    assert a.covariates_ is None
    for call in (lambda c: a.reconstruct(S, condition=c), lambda c: a.inverse_transform(a.cluster_centers_, c), lambda c: a.prototypes(c)):
        with pytest.raises(ValueError, match="learned without a condition. Leave out"): call(dict(color="red"))
    if method in DRAWS:
        with pytest.raises(ValueError, match="learned without a condition"): a.sample(2, condition=dict(color="red"))


def test_methods_without_a_decoder(S):
    for method in ("pixels + k-means", "PCA + k-means"):
        with pytest.raises(ValueError, match="no decoder that a condition could be told"): tiny(method).fit(S, condition="color")
        with pytest.raises((TypeError, ValueError), match="condition"): tiny(method, condition="color")
        with pytest.raises(ValueError, match="learned without a condition"): tiny(method).fit(S).reconstruct(S, condition="color")


def test_wrong_values_at_reconstruction(told):
    a, X, t = told["VaDE"], images(), table()
    for wrong, says in [(t.assign(color="pink"), "not seen: 'pink'. Known are: 'blue', 'green', 'red'"), (t.assign(age=np.r_[np.nan, t.age[1:]]), "'age' is missing or infinite for 1 of 60"),
                        (t.assign(age=np.inf), "for 60 of 60"), (t.assign(age="old"), "'age' was a number"), (t[["color"]], "'age'"), (t[:59], "59 rows for 60"), (t.assign(color=None), "'color' is missing")]:
        with pytest.raises(ValueError, match=says): a.reconstruct(X, condition=wrong)
        if len(wrong) == 60:
            with pytest.raises(ValueError): a.reconstruct(ImageSet(X, wrong))


@pytest.mark.parametrize("how", ["array", "Series", "unnamed", "list"])
def test_reconstruct_takes_what_inverse_transform_takes(how, S):
    a, t = quick(epochs=1).fit(S, condition="age"), S.table
    values = dict(array=t.age.to_numpy(), Series=t.age, unnamed=pd.Series(list(t.age)), list=list(t.age))[how]
    own = a.reconstruct(S)
    np.testing.assert_allclose(a.inverse_transform(a.transform(S), values), own, atol=1e-6)
    np.testing.assert_allclose(a.reconstruct(images(), condition=values), own, atol=1e-6)


def test_fitted_with_an_array(S):
    colors = S.table.color.to_numpy()
    a = quick().fit(images(), condition=colors)
    assert same_weights(a, quick().fit(S, condition="color")) and a.covariates_.names == ["condition"]
    np.testing.assert_array_equal(a.reconstruct(images(), condition=colors), quick().fit(S, condition="color").reconstruct(S))
    assert a.reconstruct(ImageSet(images(), dict(condition=colors))).shape == (60, 16, 16, 1) and a.prototypes(dict(condition="red")).shape == (3, 16, 16, 1)


def test_a_refused_fit_leaves_the_estimator_as_it_was(S):
    a = quick(epochs=1).fit(S, condition="color")
    before = a.reconstruct(S)
    for wrong in (lambda: a.fit(S, condition="colr"), lambda: a.set_params(n_clusters=99).fit(S, condition=["age", "color"])):
        with pytest.raises(ValueError): wrong()
        np.testing.assert_array_equal(a.reconstruct(S), before)


# ---- the right row for the right image

def brightness(n=60):
    "Plain images, and how bright they are"
    value = np.random.default_rng(3).uniform(0.1, 0.9, n)
    return np.broadcast_to((255 * value).astype(np.uint8)[:, None, None, None], (n, 16, 16, 1)).copy(), value


class Blind(nn.Module):
    "An encoder that sees nothing: all that the decoder knows is the condition"
    def forward(self, x): return x.flatten(1)[:, :3] * 0


@pytest.mark.parametrize("more", [dict(), dict(num_workers=1), dict(precision="bf16-mixed")], ids=str)
def test_rows_travel_with_their_images(more):
    x, value = brightness()
    a = tiny("AE + k-means", n_clusters=1, encoder=Blind(), network="mlp", epochs=10 if "num_workers" in more else 60, lr=1e-2, batch_size=7, **more).fit(x, condition=value)
    made = a.reconstruct(x, condition=value).mean((1, 2, 3))
    assert np.corrcoef(made, value)[0, 1] > 0.95 and a.history_.reconstruction.iloc[-1] < 0.5 * a.history_.reconstruction[0]
    assert made.std() > 0.05 and np.ptp(a.reconstruct(x, condition=np.full(60, 0.5))) < np.ptp(made)


def test_blocks_of_inference(told):
    "More images than one block: each with its own row"
    a, n = told["VaDE"], 1100
    S = known(n, seed=2)
    whole = a.reconstruct(S)
    for i in (0, 1, 1023, 1024, 1099): np.testing.assert_allclose(whole[i], a.reconstruct(S[i])[0], atol=1e-5)
    np.testing.assert_array_equal(a.inverse_transform(a.transform(S), S.table)[-1], whole[-1])


def test_counterfactual_images():
    "Bright and dark stripes: told the opposite, the same stripes come back in the other brightness"
    x, rng = images(80), np.random.default_rng(0)
    dark = rng.random(80) < 0.5
    x = np.where(dark[:, None, None, None], x // 3, x).astype(np.uint8)
    S = ImageSet(x, dict(light=np.where(dark, "off", "on")))
    a = quick("VAE + k-means", n_clusters=2, epochs=60, lr=5e-3, beta=5.0).fit(S, condition="light")
    on, off = (a.reconstruct(S, condition=dict(light=v)) for v in ("on", "off"))
    assert ((on - off).mean((1, 2, 3)) > 0.05).all()
    own = np.where(dark[:, None, None, None], off, on)
    np.testing.assert_allclose(own, a.reconstruct(S), atol=1e-5)


@pytest.mark.parametrize("method", ["AE + k-means", "VAE + k-means", "VAESim", "IDEC", "DVC", "VaDE", "GMVAE"])
@pytest.mark.parametrize("network", ["conv", "resize"])
def test_other_networks(method, network):
    S = ImageSet(images(30, channels=3), table(30))
    a = quick(method, network=network, epochs=1).fit(S, condition=["color", "age"])
    assert a.reconstruct(S).shape == (30, 16, 16, 3) and not np.allclose(a.prototypes(dict(color="red")), a.prototypes(dict(color="blue")), atol=1e-7)


def test_own_decoder(S):
    own = lambda d: nn.Sequential(nn.Linear(d, 256), nn.Unflatten(1, (1, 16, 16)))
    a = quick(decoder=own(4 + 3)).fit(S, condition="color")
    assert a.reconstruct(S).shape == (60, 16, 16, 1)
    with pytest.raises(ValueError, match=r"vectors of 7 numbers \(embedding and condition\)"): quick(decoder=own(4)).fit(S, condition="color")
    assert quick("VAESim", decoder=own(4 + 3 + 3)).fit(S, condition="color").reconstruct(S).shape == (60, 16, 16, 1)


# ---- checkpoints, caches, earlier weights

@pytest.mark.parametrize("stop", [4, 8])      # in the pre-training's second epoch (or the second of the only phase), and in the phase after it (the third)
@pytest.mark.parametrize("method", ["VAESim", "IDEC"])
def test_resume(method, stop, S, tmp_path):
    more = dict(epochs=4)
    whole = quick(method, **more).fit(S, condition=["color", "age"])
    with pytest.warns(UserWarning, match="interrupted"): quick(method, **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(stop)])).fit(S, condition=["color", "age"])
    a = quick(method, **more).fit(S, condition=["color", "age"], resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all() and a.interrupted_ is False
    pd.testing.assert_frame_equal(a.history_.drop(columns="seconds"), whole.history_.drop(columns="seconds"))


def test_resume_with_another_condition(S, tmp_path):
    quick(checkpoint_dir=tmp_path, epochs=1).fit(S, condition="color")
    for other in (None, "age", "stage", ["color", "age"], S.table.color.to_numpy()[::-1]):
        with pytest.raises(ValueError, match="belongs to another training: condition"): quick(epochs=1).fit(S, condition=other, resume=tmp_path / "last.ckpt")
    assert quick(epochs=1).fit(S, condition="color", resume=tmp_path / "last.ckpt").covariates_.names == ["color"]


def test_checkpoints_and_files_from_before_there_were_conditions(S, tmp_path):
    "Read as they were, or refused in words"
    whole = quick("VAE + k-means", checkpoint_dir=tmp_path).fit(S)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del state["medstrat"]["condition"]
    torch.save(state, tmp_path / "old.ckpt")
    try: a = quick("VAE + k-means").fit(S, resume=tmp_path / "old.ckpt")
    except ValueError as e: assert "another training" in str(e) or "not a checkpoint" in str(e)
    else: assert same_weights(a, whole)


@pytest.mark.parametrize("method", [*PRETRAINED, "CDVaDE"])
def test_layer_wise_pretraining(method, S, untrained):
    with pytest.raises(ValueError, match="pretrain='layer-wise' needs network='mlp'.*no condition. Use pretrain='end-to-end'"): quick(method, pretrain="layer-wise").fit(S, condition="color")


@pytest.mark.parametrize("method", ["IDEC", "VaDE"])
def test_cache_knows_the_condition(method, S, tmp_path):
    def fit(condition, images_=S): return quick(method, cache_dir=tmp_path, epochs=1).fit(images_, condition=condition), len(list(tmp_path.iterdir()))
    plain = quick(method, epochs=1).fit(S, condition="color")
    a, n = fit("color"); assert n == 1 and same_weights(a, plain)
    a, n = fit("color"); assert n == 1 and same_weights(a, plain)
    for i, other in enumerate([None, "age", "stage", S.table.color.to_numpy()[::-1]], 2):      # the same images, told something else
        a, n = fit(other)
        assert n == i and same_weights(a, quick(method, epochs=1).fit(S, condition=other))


def test_pretrained_of_another_width(S, tmp_path):
    quick("DEC", epochs=0).fit(S, condition="color").save(tmp_path / "color")
    quick("DEC", epochs=0).fit(S).save(tmp_path / "nothing")
    for path, condition in [("color", None), ("nothing", "color"), ("color", ["color", "age"]), ("color", "flag")]:
        with pytest.raises(ValueError, match="does not fit: decoder.* there and .* here"): quick(pretrained=tmp_path / path, likelihood="squared").fit(S, condition=condition)
    a = quick(pretrained=tmp_path / "color", epochs=0, likelihood="squared").fit(S, condition="color")
    assert (a.transform(S) == load_model(tmp_path / "color").transform(S)).all() and (a.reconstruct(S) == load_model(tmp_path / "color").reconstruct(S)).all()


# ---- validation images

@pytest.mark.parametrize("method", DECODERS)
def test_validation_images(method, told):
    a = quick(method).fit(known(), condition=["color", "age"], validation=known(20, seed=1))
    assert a.history_.val_loss.notna().all() and np.isfinite(a.history_.val_loss).all() and same_weights(a, told[method])


def test_validation_images_are_told_their_own(S):
    "Told the truth they are rebuilt better than told something else"
    x, value = brightness(80)
    a = lambda v: tiny("AE + k-means", n_clusters=1, encoder=Blind(), network="mlp", epochs=60, lr=1e-2).fit(ImageSet(x[:60], dict(light=value[:60])), condition="light", validation=ImageSet(x[60:], dict(light=v)))
    right, wrong = a(value[60:]), a(value[60:][::-1].copy())
    assert right.history_.val_loss.iloc[-1] < 0.5 * wrong.history_.val_loss.iloc[-1] and same_weights(right, wrong)


@pytest.mark.parametrize("validation, says", [
    (lambda: OTHER, "come without a table"), (lambda: ImageSet(OTHER, table(20)[["age"]]), "there is no .*column.*'color'|'color': there is no"),
    (lambda: known(20, color="pink"), "not seen: 'pink'"), (lambda: known(20, color=None), "missing or infinite for 20 of 20")])
def test_validation_images_without_their_columns(validation, says, S, untrained):
    with pytest.raises(ValueError, match=says): quick().fit(S, condition="color", validation=validation())


@pytest.mark.parametrize("method", ["VAE + k-means", "VaDE", "GMVAE"])
def test_patience(method, S):
    noise = ImageSet(np.random.default_rng(1).integers(0, 256, (30, 16, 16), dtype=np.uint8), table(30))
    a = quick(method, lr=0.02, lr_schedule="constant", epochs=40, patience=2).fit(S, condition="color", validation=noise)
    h = a.history_[a.history_.phase == "train"]
    assert len(h) < 40 and len(h) == int(h.val_loss.argmin()) + 3 and a.interrupted_ is False


# ---- interruption

@pytest.mark.parametrize("method, after, phase", [("CDVaDE", 1, "pretrain"), ("VaDE", 8, "train"), ("IDEC", 8, "refine"), ("GMVAE", 4, "train")])
def test_ctrl_c(method, after, phase, S, tmp_path):
    a = quick(method, epochs=50, **({} if method == "GMVAE" else dict(cache_dir=tmp_path / "cache")), trainer_options=dict(callbacks=[interrupt(after)]))
    with pytest.warns(UserWarning, match=f"interrupted in phase '{phase}'"): a.fit(S, condition=["color", "age"])
    assert a.interrupted_ is True and (a.predict(images()) == a.labels_).all()
    assert np.isfinite(a.reconstruct(S)).all() and np.isfinite(a.prototypes(dict(color="red"))).all() and np.isfinite(a.sample(3, cluster=0, condition=dict(age=30))).all()
    assert phase != "pretrain" or not list((tmp_path / "cache").iterdir())      # half a pre-training is not kept
    a.save(tmp_path / "m")
    assert (load_model(tmp_path / "m").reconstruct(S) == a.reconstruct(S)).all()


# ---- CDVaDE

def test_cdvade_needs_a_condition(S, untrained):
    for X in (S, images()):
        with pytest.raises(ValueError, match="CDVaDE needs a condition.*condition='color'.*-p condition=color.*fit.X, condition=values.*VaDE"): quick("CDVaDE").fit(X)


def test_cdvade_is_vade_with_a_condition(S, told):
    assert same_weights(told["CDVaDE"], quick("VaDE", **{k: v for k, v in vars(told["CDVaDE"].settings_).items() if k not in ("preset", "encoder", "decoder", "condition")}).fit(S, condition=["color", "age"]))


@pytest.mark.parametrize("preset", ["paper", "released", "best"])
def test_cdvade_presets_train(preset, S):
    a = tiny("CDVaDE", preset=preset, n_init=1).fit(S, condition="color")
    assert np.isfinite(a.history_.loss).all() and a.settings_.likelihood == "gaussian" and a.settings_.network == "conv"
    assert a.module_.log_sigma.requires_grad == (a.settings_.sigma is None)


def test_no_warnings(S):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DoubtfulFit)   # two epochs are few
        a = quick("GMVAE").fit(S, condition=["color", "age", "flag", "site", "stage"], validation=known(20, seed=1))
        a.reconstruct(S); a.sample(2, condition=dict(flag=True, site=2, stage="I")); a.prototypes()


# ---- runs

TINY = dict(n_clusters=5, image_size=16, epochs=1, pretrain_epochs=1, batch_size=100, channels=[4, 8], latent_dim=4, n_init=1, verbose=False, accelerator="cpu")


@pytest.mark.parametrize("model, condition", [("cdvade", "color"), ("vade", ["color", "background"]), ("gmvae", "color")])
def test_runs(model, condition, tmp_path):
    own = {k: v for k, v in TINY.items() if k in get_method(model).__dataclass_fields__} | (dict(w_dim=2, prior_hidden=8) if model == "gmvae" else {})
    run = runs.start_run(model, dataset="colored-digits", condition=condition, out=tmp_path, **own)
    folder = runs.finish(run)
    assert "condition" in folder.name
    table_ = read_runs(tmp_path, settings=["condition"])
    assert len(table_) == 1 and table_.model[0] == run.model.name and table_.dataset[0] == "colored-digits" and "condition=" in table_.parameters[0] and list(np.atleast_1d(table_.condition[0])) == list(np.atleast_1d(condition))
    a, test = load_model(folder / "model.safetensors"), run.splits.test
    assert (a.predict(test) == run.encoded["test"].clusters).all() and a.reconstruct(test).shape == (len(test), 16, 16, 3) and a.covariates_.names == list(np.atleast_1d(condition))
    assert a.prototypes(dict(color="red")).shape == (5, 16, 16, 3)
    assert json.loads((folder / "run.json").read_text())["model"] == run.model.name


def test_requests_fail_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "load_dataset", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="CDVaDE needs a condition.*condition='color'"): runs.start_run("cdvade", "colored-digits", out=tmp_path)
    with pytest.raises(ValueError, match="CDVaDE needs a condition"): runs.Request("cdvade", "colored-digits").estimator()
    with pytest.raises(ValueError, match="unknown parameter of PCA.*condition"): runs.Request("pca_kmeans", "colored-digits", parameters=dict(condition="color")).estimator()
    for nothing in ("", []):
        with pytest.raises(ValueError, match="condition"): runs.Request("cdvade", "colored-digits", parameters=dict(condition=nothing)).estimator()
    with pytest.raises(ValueError, match="condition=3"): runs.Request("cdvade", "colored-digits", parameters=dict(condition=3)).estimator()
    assert runs.Request("cdvade", "colored-digits", parameters=dict(condition="color")).estimator().condition == "color"
    assert not list(tmp_path.iterdir())


def test_a_run_with_a_column_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no (such )?column.*Did you mean 'color'.*There are: label, digit, color, background"):
        runs.start_run("cdvade", "colored-digits", condition="colour", out=tmp_path, **TINY)
    assert not list(tmp_path.iterdir())
