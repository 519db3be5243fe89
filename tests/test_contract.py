"What every method promises, whatever it is: one suite over the registry. `conftest.py` says how each is made small."
import copy
import json
import pickle
import random
import re
import signal
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ALL, BEHIND, DEEP, Lazy, apart, backbone_file, cohort, history, images, interrupt, known, ready, same_weights
from sklearn.base import clone, is_classifier, is_clusterer
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from medstrat.methods import pretraining
from medstrat.data.images import ImageSet
from medstrat.training import fitting
from medstrat.training.fitting import Fit
from medstrat.training.inference import Engine
from medstrat.training.inputs import take_condition
from medstrat.training.settling import settle
from medstrat.training.phases import NonFiniteLoss
from medstrat.training.method import Network, build
from medstrat.training.batches import ImageBatches
from medstrat.training.phases import Block
from medstrat.training.parameters import ROLES, Settings, check_value, parameters
from medstrat.training.presets import resolve
from medstrat.training.registry import get_method
from medstrat.training.saving import FORMAT, load_model, read_header, read_tensors

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
each = pytest.mark.parametrize("method", ALL)
CLUSTERERS = [m for m in ALL if is_clusterer(get_method(m)())]
PRETRAINED = [m for m in ALL if issubclass(get_method(m), pretraining.PretrainingParameters)]
STARTED = ["DEC", "IDEC", "DVC", "DVC-2", "VaDE", "CDVaDE", "GMVAE"]     # where starts decide
LAYERS = dict(pretrain="layer-wise", network="mlp", layer_epochs=2)
WAYS = [*((m, "") for m in ALL), *((m, "layer-wise") for m in PRETRAINED if ready(m).condition is None)]   # of training


def small(method, way="", **changes):
    "An estimator whose training goes on to its end, with targets that outlast an epoch"
    return ready(method, **known(method, dict(tol=0.0, update_interval=2)) | (LAYERS if way else {}) | changes)


def state(a): return pickle.dumps({k: v for k, v in vars(a).items() if k not in ("module_", "history_")})
def with_table(a): return None if a.covariates_ is None else cohort().table    # what its decoder is told of the images it was fitted to
def decodes(method): return get_method(method).method.decode is not Network.decode
def draws(method): return get_method(method).method.draw is not Network.draw
def same_training(a, b): return same_weights(a, b) and history(a).equals(history(b)) and (a.predict(cohort()) == b.predict(cohort())).all()


@pytest.fixture(scope="module")
def S(): return cohort()


@pytest.fixture(scope="module")
def fitted():
    "One fitted estimator of each method, or (method, way); tests must not change them"
    return Lazy(lambda key: small(*([key] if isinstance(key, str) else key)).fit(cohort()))


# ---- what it gives

@each
def test_embeddings_and_labels(method, S, fitted):
    a, (Z, c) = fitted[method], fitted[method].encode(S)
    p, labels = a.predict_proba(S), a.predict(S)
    assert Z.shape == (60, a.module_.dim) and Z.dtype == np.float32 and np.isfinite(Z).all() and (Z == a.transform(S)).all() and a.image_shape_ == (16, 16, 1)
    assert p.shape == (60, a.n_clusters_) and p.dtype == np.float32 and c.dtype.kind == "i" and (p.argmax(1) == c).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert is_clusterer(a) != is_classifier(a)
    if is_classifier(a):
        assert a.classes_.tolist() == [0, 1] and (labels == a.classes_[c]).all() and a.score(S, S.labels) == np.mean(labels == S.labels)
        assert not hasattr(a, "labels_") and "n_clusters" not in a.get_params()
    else:
        assert labels.dtype.kind == "i" and a.n_clusters_ == 3 and (labels == c).all() and (labels == a.labels_).all()
        assert a.cluster_centers_.shape == (3, Z.shape[1]) and a.cluster_centers_.dtype == np.float32 and np.isfinite(a.cluster_centers_).all()


@each
def test_images_from_embeddings(method, S, fitted):
    a = fitted[method]
    Z, told = a.transform(S), with_table(a)
    if not decodes(method):
        for words in ("reconstruct", "inverse_transform", "prototypes", "sample"):
            with pytest.raises(AttributeError, match=f"{words}|cannot (generate|draw) images"): getattr(a, words)(*dict(reconstruct=[S], inverse_transform=[Z]).get(words, []))
        assert not getattr(a, "has_decoder", False)
        return
    made, prototypes = a.reconstruct(S), a.prototypes()
    assert a.has_decoder and made.shape == (60, 16, 16, 1) and prototypes.shape == (3, 16, 16, 1)
    assert all(x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1 for x in (made, prototypes))
    np.testing.assert_allclose(a.inverse_transform(Z, told), made, atol=1e-6)
    np.testing.assert_allclose(a.inverse_transform(a.cluster_centers_), prototypes, atol=1e-6)
    for wrong in (np.zeros((3, Z.shape[1] + 1)), Z[0], Z[:0]):
        with pytest.raises(ValueError, match=f"embeddings of shape .N, {Z.shape[1]}. are needed"): a.inverse_transform(wrong)


@pytest.mark.parametrize("method", CLUSTERERS)
def test_samples(method, fitted):
    a = fitted[method]
    if not draws(method):
        with pytest.raises(AttributeError, match="cannot draw images"): a.sample(2)
        return
    x = a.sample(5)
    assert x.shape == (5, 16, 16, 1) and x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1
    assert (a.sample(5) == x).all() and (a.sample(5, random_state=0) == x).all() and not (a.sample(5, random_state=1) == x).all()
    found = 0
    for k in range(3):
        try: found += len(a.sample(2, cluster=np.int64(k))) == 2
        except ValueError as e: assert "draws from the prior" in str(e)     # where a prior has no clusters, one may lie where it has nothing
    assert found
    for wrong in (-1, 3, 1.0, "0", True):
        with pytest.raises(ValueError, match="does not exist; there are clusters 0…2"): a.sample(2, cluster=wrong)
    with pytest.raises(ValueError, match="n=0"): a.sample(0)


@each
def test_each_image_is_judged_alone(method, S, fitted):
    a, order = fitted[method], np.random.default_rng(0).permutation(60)
    Z, p = a.transform(S), a.predict_proba(S)
    for part in (order, [0], list(range(7)), np.tile(order, 9)):      # the last is more than one portion
        np.testing.assert_allclose(a.transform(S[part]), Z[part], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(a.predict_proba(S[part]), p[part], atol=1e-4)


@each
def test_asking_changes_nothing(method, S, fitted):
    a, told = fitted[method], with_table(fitted[method])
    before, weights, x = state(a), copy.deepcopy(a.module_.state_dict()), S.images.copy()
    a.predict(S), a.predict_proba(S), a.transform(S), a.encode(S)
    if decodes(method): a.reconstruct(S), a.prototypes(), a.inverse_transform(a.transform(S), told)
    if draws(method): a.sample(3)
    assert state(a) == before and not a.module_.training and all(v.equal(weights[k]) for k, v in a.module_.state_dict().items()) and (S.images == x).all()


# ---- what a fit depends on, and what it leaves alone

@each
def test_the_same_seed_gives_the_same_bits(method, S, fitted):
    "Whatever random numbers the caller draws elsewhere; watching a validation loss changes nothing; and a later fit knows nothing of an earlier one"
    torch.manual_seed(123), np.random.seed(123), random.seed(123)
    streams = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate())
    a, given, x, now = small(method, random_state=1), {}, S.images.copy(), streams()
    given |= a.get_params()
    assert a.fit(S, validation=cohort(20, seed=1)) is a
    trained, again = len(a.history_), clone(a).set_params(random_state=0)
    assert not trained or not same_weights(a, fitted[method]) and a.history_.val_loss.notna().all()
    assert streams() == now and (S.images == x).all() and all(given[k] is v for k, v in a.get_params().items())
    assert not [k for k in vars(again) if k.endswith("_")]
    again.fit(S, validation=cohort(20, seed=1))
    assert same_weights(again, fitted[method]) and streams() == now and again.random_state_ == 0
    shared = [k for k in history(again) if k in history(fitted[method])]
    pd.testing.assert_frame_equal(history(again)[shared], history(fitted[method]))
    assert same_training(a.set_params(random_state=0).fit(S), fitted[method])


@each
def test_results_end_with_an_underscore(method, fitted):
    "What begins with one is the estimator's own, and small: no targets or images are carried along"
    new = set(vars(fitted[method])) - set(vars(ready(method)))
    assert all(k.endswith("_") for k in new), new
    assert not [k for k in new for v in np.atleast_1d(vars(fitted[method])[k]) if isinstance(v, (ImageSet, Fit))]
    assert len(state(fitted[method])) < 20_000 and "_trainer" not in vars(fitted[method].module_)


@each
def test_settings_cannot_be_changed(method, fitted):
    s = fitted[method].settings_
    for change in (lambda: setattr(s, "epochs", 9), lambda: setattr(s, "colour", 1), lambda: delattr(s, "epochs")):
        with pytest.raises(AttributeError, match="settings of a fit do not change. Give the parameter to the estimator"): change()
    assert s.but(epochs=9).epochs == 9 and s.epochs == 2 and set(vars(s)) == set(parameters(get_method(method))) == set(fitted[method].provenance_)


@each
@pytest.mark.parametrize("n, batch_size, k", [(2, 1, 2), (3, 2, 3), (7, 128, 1), (21, 20, 3)])
def test_small_numbers(method, n, batch_size, k):
    "N = 2, batches of one image, N < batch, a last batch of one image, K = N, K = 1"
    if batch_size == 1:
        try: ready(method).method.check(resolve(small(method, batch_size=1))[0])
        except ValueError as e: assert "batch_size=1" in str(e); return       # it compares the images of a batch
    X = cohort(n)
    a = small(method, batch_size=batch_size, **known(method, dict(n_clusters=k, latent_dim=2))).fit(X)
    assert a.predict(X).shape == (n,) and np.isfinite(a.transform(X)).all() and a.predict_proba(X).shape == (n, a.n_clusters_)
    if k == n and "k-means" in method: assert len(set(a.labels_)) == n


@each
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_images_that_are_alike(method):
    "Copies share a label; where all are copies, there is one – and centres that learn by gradient would stay on one point for ever"
    X = cohort(8)[np.repeat(range(8), 5)]
    labels = small(method, **known(method, dict(n_clusters=4))).fit(X).predict(X).reshape(8, 5)
    assert (labels == labels[:, :1]).all()
    for value in (0, 255):
        X = ImageSet(np.full((12, 16, 16), value, np.uint8), cohort(12).table, target="kind")
        if method in PRETRAINED:
            with pytest.raises(ValueError, match="n_clusters=3, but only 1 of the 12 images are distinct"): small(method).fit(X)
        a = small(method, **known(method, dict(n_clusters=1 if method in PRETRAINED else 3))).fit(X)
        assert np.isfinite(a.transform(X)).all() and len(set(a.predict(X))) == 1 and (not decodes(method) or np.isfinite(a.prototypes()).all())


@each
def test_without_an_epoch(method, S):
    a = small(method, **dict.fromkeys((k for k in parameters(get_method(method)) if k.endswith("epochs")), 0)).fit(S)
    assert a.n_iter_ == 0 and len(a.history_) == 0 and a.predict(S).shape == (60,)


# ---- refusals

def test_what_is_refused_before_anything_is_trained_is_known():
    "Every parameter of a method with choices or numbers refuses one that it cannot have"
    for m in ALL:
        for name, hint in get_type_hints(get_method(m), include_extras=True).items():
            if name in parameters(get_method(m)) and (get_origin(hint) is Literal or hint in (int, float, bool)):
                with pytest.raises(ValueError, match=name): check_value(name, "no such value", hint)


@each
@pytest.mark.parametrize("bad, says", [
    (dict(epochs=-1), "epochs=-1"), (dict(epochs=1.5), "epochs=1.5"), (dict(batch_size=0), "batch_size=0"), (dict(lr=0.0), "lr=0.0"), (dict(lr="fast"), "lr='fast'"), (dict(lr=np.nan), "lr=nan"),
    (dict(lr_schedule="cosin"), "Did you mean 'cosine'"), (dict(preset="bset"), "Did you mean 'best'"), (dict(precision="half"), "precision"), (dict(verbose=3), "verbose"),
    (dict(random_state=-1), "random_state=-1"), (dict(patience=2), "patience=2 needs validation images")], ids=str)
def test_values_that_are_refused(method, bad, says, S, untrained):
    with pytest.raises(ValueError, match=says): ready(method, **bad).fit(S)


@each
def test_images_that_are_refused(method, S, untrained):
    for wrong, kind, says in [("stripes.png", TypeError, "Images are needed, but a str"), (dict(image=S.images), TypeError, "a dict"), (3, TypeError, "an? int"),
                              (S.images[0, ..., 0], ValueError, "2-D"), (S.images[:0], ValueError, "Zero images"), (S.images.astype(int), TypeError, "type int64"),
                              (S.images / 1.0, ValueError, r"floats must lie in \[0, 1\]"), (np.where(S.images > 200, np.nan, 0.5), ValueError, "NaN or infinite")]:
        with pytest.raises(kind, match=says): ready(method).fit(wrong)
    with pytest.raises(ValueError, match="at least 2|at least two|for all training images"): ready(method).fit(S[:1])
    if method in CLUSTERERS:
        with pytest.raises(ValueError, match="n_clusters=9 is more than the 8 images"): ready(method, n_clusters=9).fit(S[:8])


@each
def test_a_condition_where_nobody_could_be_told(method, S, untrained):
    if get_method(method).method.conditional: return
    with pytest.raises(ValueError, match="has no decoder that a condition could be told"): ready(method).fit(S, condition="tone")


@each
def test_other_images_at_predict_and_validation(method, S, fitted):
    color = cohort(5, channels=3)
    for call in ("predict", "transform", "encode", "predict_proba", *(["reconstruct"] if decodes(method) else [])):
        with pytest.raises(ValueError, match=r"fitted on images of shape .* \(16, 16, 1\), but got \(16, 16, 3\)"): getattr(fitted[method], call)(color)
        with pytest.raises(TypeError, match="Images are needed"): getattr(fitted[method], call)("stripes.png")
    with pytest.raises(ValueError, match=r"\(16, 16, 1\), but got \(16, 16, 3\)"): ready(method).fit(S, validation=color)


@each
def test_an_unfitted_estimator(method, tmp_path):
    a = ready(method)
    with pytest.raises(NotFittedError): check_is_fitted(a)
    for call in ("predict", "predict_proba", "transform", "encode", "save", *(["reconstruct", "inverse_transform", "prototypes", "sample"] if method in CLUSTERERS else [])):
        with pytest.raises(NotFittedError): getattr(a, call)(*dict(prototypes=[], sample=[], save=[tmp_path / "x"], inverse_transform=[np.zeros((2, 4))]).get(call, [images()]))
    assert not list(tmp_path.iterdir()) and not hasattr(a, "cluster_centers_")


@each
def test_a_refused_fit_leaves_the_estimator_as_it_was(method, S, fitted):
    a = copy.deepcopy(fitted[method])
    before = state(a)
    with pytest.raises(ValueError, match="Zero images"): a.fit(S.images[:0])
    with pytest.raises(ValueError, match="lr"): a.set_params(lr=-1).fit(S)
    assert state(a.set_params(lr=None)) == before and same_weights(a, fitted[method])


# ---- scikit-learn's checks: those that need no table of features are run, for the others it is said why not, and what stands in

TABLE = "gives a table of features (2-D); images are needed. "
EXEMPT = dict(
    check_fit_score_takes_y=TABLE + "Here: test_fit_and_ask_at_once",
    check_estimators_overwrite_params=TABLE + "Here: test_the_same_seed_gives_the_same_bits",
    check_dont_overwrite_parameters=TABLE + "Here: test_results_end_with_an_underscore",
    check_estimators_fit_returns_self=TABLE + "Here: test_the_same_seed_gives_the_same_bits",
    check_readonly_memmap_input=TABLE + "Here: tests/test_training.py (test_layouts_in_memory)",
    check_n_features_in_after_fitting="images have a shape (image_shape_), not a number of features",
    check_positive_only_tag_during_fit=TABLE,
    check_estimators_dtypes=TABLE + "Here: tests/test_data.py",
    check_complex_data=TABLE + "Here: tests/test_data.py (types other than uint8 and floats are refused)",
    check_dtype_object=TABLE + "Here: tests/test_data.py",
    check_estimators_empty_data_messages=TABLE + "Here: test_images_that_are_refused",
    check_pipeline_consistency=TABLE + "Here: tests/test_training.py (test_pipeline)",
    check_estimators_nan_inf=TABLE + "Here: test_images_that_are_refused",
    check_estimator_sparse_tag="there are no sparse images",
    check_estimator_sparse_array="there are no sparse images",
    check_estimator_sparse_matrix="there are no sparse images",
    check_estimators_pickle=TABLE + "Here: test_pickle_and_deepcopy",
    check_array_api_input=TABLE + "Here: tests/test_training.py (test_kinds_of_input)",
    check_f_contiguous_array_estimator=TABLE + "Here: tests/test_training.py (test_layouts_in_memory)",
    check_transformer_data_not_an_array=TABLE + "Here: tests/test_training.py (test_kinds_of_input)",
    check_transformer_general=TABLE + "Here: test_fit_and_ask_at_once",
    check_clusterer_compute_labels_predict=TABLE + "Here: test_embeddings_and_labels",
    check_clustering=TABLE + "Here: test_fit_and_ask_at_once",
    check_methods_sample_order_invariance=TABLE + "Here: test_each_image_is_judged_alone",
    check_methods_subset_invariance=TABLE + "Here: test_each_image_is_judged_alone",
    check_fit2d_1sample=TABLE + "Here: test_images_that_are_refused",
    check_fit2d_1feature=TABLE,
    check_dict_unchanged=TABLE + "Here: test_asking_changes_nothing",
    check_fit_idempotent=TABLE + "Here: test_the_same_seed_gives_the_same_bits",
    check_fit_check_is_fitted=TABLE + "Here: test_an_unfitted_estimator",
    check_transformers_unfitted=TABLE + "Here: test_an_unfitted_estimator",
    check_estimators_unfitted=TABLE + "Here: test_an_unfitted_estimator",
    check_n_features_in="images have a shape (image_shape_), not a number of features",
    check_fit1d=TABLE + "Here: tests/test_data.py",
    check_fit2d_predict1d=TABLE + "Here: test_other_images_at_predict_and_validation",
    check_transformer_n_iter=TABLE + "Here: tests/test_training.py (test_history)")
EXEMPT |= dict.fromkeys(["check_classifiers_train", "check_classifiers_classes", "check_classifier_data_not_an_array", "check_transformer_preserve_dtypes"], TABLE + "Here: test_embeddings_and_labels")
EXEMPT |= dict.fromkeys(["check_classifiers_one_label", "check_classifiers_one_label_sample_weights", "check_classifiers_regression_target", "check_supervised_y_no_nan", "check_supervised_y_2d",
                         "check_requires_y_none"], TABLE + "Here: tests/methods/test_transfer.py (labels that cannot be used)")
RUN = ["check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types", "check_estimator_repr", "check_no_attributes_set_in_init",
       "check_do_not_raise_errors_in_init_or_set_params", "check_mixin_order", "check_estimators_partial_fit_n_features",
       "check_parameters_default_constructible", "check_get_params_invariance", "check_set_params"]
OTHERS = ["check_non_transformer_estimators_n_iter", "check_decision_proba_consistency"]   # for a classifier


def test_every_check_of_sklearn_is_run_or_excused():
    asked = {m: {c.func.__name__ for _, c in estimator_checks.estimator_checks_generator(get_method(m)(), mark=None)} for m in ALL}
    assert set.union(*asked.values()) - {*RUN, *OTHERS} == set(EXEMPT) and all(set(RUN) <= names for names in asked.values())
    assert all(not (here := re.search(r"Here: (test_\w+)", why)) or here[1] in globals() for why in EXEMPT.values())


@each
def test_sklearn(method):
    for check in RUN + OTHERS * is_classifier(get_method(method)()): getattr(estimator_checks, check)(method, get_method(method)())


@each
def test_clone_set_params_repr(method):
    a = ready(method, lr_schedule="cosine")
    b = clone(a)
    assert b is not a and b.get_params() == a.get_params() and type(b) is type(a)
    assert b.set_params(epochs=7) is b and b.epochs == 7 and a.epochs == 2
    assert "epochs=7" in repr(b) and type(b).__name__ in repr(b) and "trainer_options" not in repr(b)
    with pytest.raises(ValueError, match="epoch"): b.set_params(epoch=3)
    with pytest.raises(TypeError): type(a)(3)     # by keyword only, as a parameter's place may change


@each
def test_pickle_and_deepcopy(method, S, fitted):
    a = fitted[method]
    for b in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)): assert same_training(a, b) and vars(b.settings_) == vars(a.settings_)


@each
def test_set_output(method, S, fitted):
    a = copy.deepcopy(fitted[method]).set_output(transform="pandas")
    table = a.transform(S)
    assert list(table) == [f"{type(a).__name__.lower()}{i}" for i in range(a.module_.dim)] == list(a.get_feature_names_out()) and (table.to_numpy() == fitted[method].transform(S)).all()
    assert isinstance(a.predict(S), np.ndarray) and isinstance(a.set_output(transform="default").transform(S), np.ndarray)


@each
def test_fit_and_ask_at_once(method, S, fitted):
    assert (small(method).fit_transform(S) == fitted[method].transform(S)).all()
    if method in CLUSTERERS: assert (small(method).fit_predict(S, np.arange(60)) == fitted[method].labels_).all()      # y is ignored


# ---- an interrupted training, and how it goes on

def stops(rows):
    "(phase, batch at which Ctrl-C is pressed, epochs that are in the history then): in each phase's second epoch, and at the first batch of the later ones"
    for phase in dict.fromkeys(rows.phase if len(rows) else ()):
        first, n = int((rows.phase == phase).argmax()), int((rows.phase == phase).sum())
        if n > 1: yield phase, 3 * first + 4, first + 2
        if first: yield phase, 3 * first + 1, first + 1


@pytest.mark.parametrize("method, way", WAYS)
def test_ctrl_c_and_resume(method, way, S, fitted, tmp_path):
    "In every phase: a warning, what was learned is kept, and from the checkpoint the training ends with the bits of the uninterrupted one"
    whole, handler, path = fitted[method, way], signal.getsignal(signal.SIGINT), tmp_path / "last.ckpt"
    for phase, batch, rows in stops(whole.history_):
        path.unlink(missing_ok=True)
        a = small(method, way, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(batch)]))
        with pytest.warns(UserWarning, match=re.escape(f"interrupted in phase {phase!r}, epoch ") + r"\d; what has been learned so far is kept. Go on with fit.…, resume='.*last.ckpt'"): a.fit(S)
        assert a.interrupted_ is True and a.n_iter_ == len(a.history_) == rows and a.checkpoint_ == str(path) and signal.getsignal(signal.SIGINT) is handler
        pd.testing.assert_frame_equal(history(a)[:rows - 1].dropna(axis=1, how="all"), history(whole)[:rows - 1].dropna(axis=1, how="all"))
        assert np.isfinite(a.transform(S)).all() and (method not in CLUSTERERS or (a.predict(S) == a.labels_).all() and a.n_clusters_ == 3)
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        b = small(method, way).fit(S, resume=path)
        assert same_training(b, whole) and b.interrupted_ is False, phase


@each
def test_checkpoints_belong_to_one_training(method, S, fitted, tmp_path):
    path = tmp_path / "last.ckpt"
    if not fitted[method].n_iter_: return
    assert same_training(small(method, checkpoint_dir=tmp_path).fit(S), fitted[method])
    for b in (small(method).fit(S, resume=str(path)), small(method, accelerator="auto", num_workers=0).fit(S, resume=path)): assert same_training(b, fitted[method])      # it had ended
    for change in (dict(random_state=1), dict(epochs=7), dict(lr=0.5), dict(batch_size=30), known(method, dict(n_clusters=4, latent_dim=5))):
        for k, v in change.items():
            with pytest.raises(ValueError, match=rf"last.ckpt' belongs to another training: {k} .saved: {getattr(fitted[method].settings_, k)}, given: {v}\)\. Resume with the same"):
                small(method, **{k: v}).fit(S, resume=path)
    for other, says in [(cohort(seed=9), "images .their check sum"), (cohort(61), "number of images .saved: 60, given: 61"), (cohort(channels=3), "size of an image")]:
        with pytest.raises(ValueError, match=f"belongs to another training: .*{says}"): small(method).fit(other, resume=path)
    another = "VAESim" if method != "VAESim" else "GMVAE"
    with pytest.raises(ValueError, match=f"belongs to another training: method .saved: '{re.escape(method)}', given: '{another}'"): small(another).fit(S, resume=path)


# ---- several starts

def test_who_has_several_starts():
    assert sorted(STARTED) == sorted(m for m in ALL if "n_starts" in parameters(get_method(m)))
    assert {get_method(m).__dataclass_fields__["n_starts"].metadata["role"] for m in STARTED} == {"training"} and "training" not in pretraining.KEYED


@each
def test_one_start_is_as_it_was(method, fitted):
    a = fitted[method]
    assert a.starts_ is None and "start" not in a.history_ and a.n_iter_ == len(a.history_)
    assert method not in STARTED or a.settings_.n_starts == 1


@pytest.mark.parametrize("method", STARTED)
def test_the_best_of_three_starts(method, S, fitted, tmp_path):
    "The first is the single one, the best is what its own seed gives alone; stopped in the second and resumed, it is the same model; it is saved with its table"
    a, h = small(method, n_starts=3).fit(S), lambda m, i: history(m)[m.history_.start == i].drop(columns="start").reset_index(drop=True)
    t, batches = a.starts_, 3 * fitted[method].n_iter_
    assert t.start.tolist() == [1, 2, 3] and t.seed[0] == 0 == a.random_state_ == a.settings_.random_state and t.seed.nunique() == 3
    assert t.chosen.sum() == 1 and (t.trouble == "").all() and t.drop(columns="trouble").notna().all().all() and ("bound" in t) == (method in ("VaDE", "CDVaDE", "GMVAE"))
    assert t["bound" if "bound" in t else "agreement"].idxmax() == t.chosen.idxmax() and a.n_iter_ == fitted[method].n_iter_ == len(a.history_) / 3
    assert h(a, 1).equals(history(fitted[method]))
    alone = small(method, random_state=int(t.seed[t.chosen].iloc[0])).fit(S)
    assert same_weights(a, alone) and (a.labels_ == alone.labels_).all() and (a.predict(S) == a.labels_).all() and same_weights(small(method, n_starts=3).fit(S), a)
    assert a.module_.s is a.settings_
    with pytest.warns(UserWarning, match=r"of start 2/3; the best of the finished starts is kept. Go on with"):
        b = small(method, n_starts=3, checkpoint_dir=tmp_path / "c", trainer_options=dict(callbacks=[interrupt(batches + 2)])).fit(S)
    assert same_weights(b, fitted[method]) and b.interrupted_ and b.starts_.chosen.tolist() == [True, False]
    c = small(method, n_starts=3).fit(S, resume=b.checkpoint_)
    assert same_training(c, a) and c.starts_.drop(columns="seconds").equals(t.drop(columns="seconds"))
    a.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    same_model(a, loaded, cohort(20, seed=5))
    pd.testing.assert_frame_equal(loaded.starts_, t)
    assert loaded.n_starts == 3


# ---- losses that explode

@pytest.mark.parametrize("rate", ["lr", "pretrain_lr"])
@each
def test_an_absurd_learning_rate(method, rate, S, fitted):
    "The last good weights are those from before the phase"
    if rate not in parameters(get_method(method)) or not fitted[method].n_iter_: return
    plain, rows = known(method, dict(refine_epochs=0)), fitted[method].history_
    if plain: rows = rows[rows.phase != "refine"].reset_index()
    a, before = small(method, **plain, **{rate: 1e38}), 0 if rate == "pretrain_lr" or method not in PRETRAINED else 2
    with pytest.raises(NonFiniteLoss, match=rf"(?s)phase '{rows.phase[before]}'.*weights from before this epoch are kept.*learning rate"): a.fit(S)
    later = [k for k in parameters(get_method(method)) if k.endswith("epochs") and not (before and "pretrain" in k)]
    assert same_weights(a, small(method, **plain | dict.fromkeys(later, 0)).fit(S)) and a.interrupted_ is True and len(a.history_) == a.n_iter_ == before
    assert np.isfinite(a.transform(S)).all() and np.isfinite(a.predict_proba(S)).all()


# ---- files

def same_model(a, b, X):
    "The same bits, the same answers, the same header?"
    assert type(b) is type(a) and same_weights(a, b)
    for name, answer in answers(a, X).items(): np.testing.assert_array_equal(answers(b, X)[name], answer, err_msg=name)
    for k in ("image_shape_", "n_clusters_", "random_state_", "interrupted_", "n_iter_", "provenance_"): assert getattr(a, k) == getattr(b, k), k
    of_model = lambda m: {k: v for k, v in vars(m.settings_).items() if k not in parameters(type(m), "machine", "network")}
    assert of_model(a) == of_model(b)
    pd.testing.assert_frame_equal(a.history_, b.history_)


def answers(a, X):
    found = {call: getattr(a, call)(X) for call in ("predict", "predict_proba", "transform")}
    if decodes(a.name): found |= dict(reconstruct=a.reconstruct(X), prototypes=a.prototypes())
    if draws(a.name): found |= dict(sample=a.sample(3))
    if is_clusterer(a): found |= dict(labels_=a.labels_, cluster_centers_=a.cluster_centers_)
    return found


@each
def test_save_and_load(method, S, fitted, tmp_path):
    a, path, cls = fitted[method], tmp_path / "model.safetensors", get_method(method)
    a.save(path)
    header = read_header(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"] and header["format"] == FORMAT == 3 and header["method"] == method and header["own_networks"] == []
    assert set(header["settings"]) == set(parameters(cls)) - set(parameters(cls, "machine", "module")) and header["n_clusters"] == a.n_clusters_
    assert ("classes" in header) == is_classifier(a) and ("labels_" in read_tensors(path)[1]) == is_clusterer(a)
    torch.manual_seed(1)
    stream = torch.get_rng_state()
    for b in (cls.load(path), load_model(str(path))):
        same_model(a, b, cohort(20, seed=5))
        b.save(tmp_path / "again")
        assert read_header(tmp_path / "again") == header
    assert torch.get_rng_state().equal(stream) and same_weights(clone(b).set_params(accelerator="cpu", verbose=False).fit(S), a)      # what was loaded says how to fit it again
    other = get_method("VAESim" if method != "VAESim" else "DEC")
    with pytest.raises(ValueError, match=re.escape(f"holds a {method!r}, not a {other.name!r}. Use load_model(path)")): other.load(path)


def answer(folder):
    "In another process: what loaded models say"
    for path in sorted(folder.glob("*.safetensors")): np.savez(path.with_suffix(".npz"), **answers(load_model(path).set_params(accelerator="cpu"), cohort(20, seed=5)))


def test_loaded_in_another_process(fitted, tmp_path):
    for method in ALL: fitted[method].save(tmp_path / f"{type(fitted[method]).__name__}.safetensors")
    status, said = apart(answer, tmp_path, log=tmp_path / "log")
    assert status == 0, said
    for method in ALL:
        with np.load(tmp_path / f"{type(fitted[method]).__name__}.npz") as found:
            for name, expected in answers(fitted[method], cohort(20, seed=5)).items(): np.testing.assert_array_equal(found[name], expected, err_msg=f"{method}, {name}")


# ---- parameters and their texts

@each
def test_every_parameter_is_declared(method):
    for f in fields(get_method(method)):
        assert f.metadata["role"] in ROLES and len(f.metadata["text"].split()) > 1 and not f.metadata["text"].endswith(".") and f.kw_only, f.name


@each
def test_the_docstring(method):
    "First what the method does, then each parameter once"
    cls = get_method(method)
    lines = cls.__doc__.splitlines()
    assert len(lines) <= 110 and lines[0].endswith(".") and len(lines[0].split()) > 3 and not lines[0].startswith(f"{cls.__name__}(") and lines[1:4] == ["", "Parameters", "----------"]
    named = [line.partition(" : ")[0] for line in lines[4:] if not line.startswith(" ")]
    assert sorted(named) == sorted(parameters(cls)) and all(f.metadata["text"] in cls.__doc__ for f in fields(cls))


# ---- what a pre-training reads is what its name in the cache is made of

class Made(Exception):
    "A recipe's pre-training is made, and nothing after it"


def begun(method, way="", seen=None, **changes):
    "A fit, settled, and its pre-training. The settings that are read on the way to networks, data and phases go to `seen`"
    a = small(method, way, **changes)
    fit = settle(a, cohort())
    class Recorder(Settings):
        def __getattribute__(self, name): seen is None or seen.add(name); return super().__getattribute__(name)
    fit.s = s = Recorder(**vars(fit.s))
    autoencoder = next(c for c in a.method.__mro__ if c.__module__ == "medstrat.methods.autoencoders")     # the method's own part is not pre-trained
    build(autoencoder, s, fit.net.shape, 3, fit.net.n_covariates).start(), a.method.working_size(s, (16, 16, 1)), take_condition(a, None, s, cohort(), 60, None)
    if way: fit.net, fit.data = build(a.method, fit.s.but(), fit.net.shape, 3), ImageBatches(fit.images)     # layer by layer, nobody can be told anything
    fit.net.s, fit.engine = s, Engine.of(s)
    def made(*parts): raise Made(Block(*parts))
    with pytest.MonkeyPatch.context() as m, pytest.raises(Made) as e:
        m.setattr(pretraining, "Block", made)
        fit.net.recipe()
    return fit, e.value.args[0]


def pretrained(method, way="", seen=None, **changes):
    "A fit that has just been pre-trained, and its pre-training"
    fit, block = begun(method, way, seen, **changes)
    for phase in block.phases: fit.train(phase)
    return fit, block


def kept_as(fit, block, monkeypatch) -> tuple:
    "The file that a pre-training is kept in, and the names of all that its name is made of"
    what = {}
    monkeypatch.setattr(pretraining, "json", SimpleNamespace(dumps=lambda v, **more: what.update(v) or json.dumps(v, **more)))
    block.keep(fit)
    path, = Path(fit.s.cache_dir).iterdir()
    return path, set(what) & set(parameters(fit.estimator))


@pytest.mark.parametrize("method", PRETRAINED)
def test_the_name_of_a_pretraining_is_made_of_what_it_reads(method, tmp_path, monkeypatch):
    seen = set()
    for i, (way, more) in enumerate([("", dict(network="conv", cache_dir=tmp_path)), ("", dict(network="mlp")), ("", dict(likelihood="gaussian")), ("layer-wise", {}),
                                       ("", BEHIND | dict(weights=backbone_file(), network="mlp", likelihood="gaussian", augment="none"))]):
        fit, block = pretrained(method, way, seen, **more)
        pretraining.take_given(fit)
        if not i: first = fit, block
    cls, read = get_method(method), frozenset(seen)
    _, key = kept_as(*first, monkeypatch)
    assert key == (read & set(parameters(cls))) - set(parameters(cls, "machine", "module", "seed")) | {"trainer_options"}


def another(method, name, value):
    "Another value that a parameter may have; None: not found"
    hint = get_type_hints(get_method(method), include_extras=True)[name]
    choices = [c for h in (hint, *get_args(hint)) if get_origin(h) is Literal for c in get_args(h) if c not in (value, "auto")]
    if isinstance(value, bool): return not value
    if choices: return choices[0]
    if isinstance(value, (int, float)): return value + 1 if isinstance(value, int) else value / 2 or 0.5
    return (value[0] + 1, *value[1:]) if isinstance(value, tuple) and not isinstance(value[0], str) else None


@pytest.mark.parametrize("method", PRETRAINED)
def test_what_shares_a_pretraining(method, tmp_path, monkeypatch):
    "What its name is not made of may change, and the weights stay; with what it is made of, the name changes"
    once = known(method, dict(pretrain_epochs=1))
    fit, block = pretrained(method, cache_dir=tmp_path, **once)
    path, key = kept_as(fit, block, monkeypatch)
    weights, cls, tried = pretraining.autoencoder_of(fit.net), get_method(method), dict(free=0, key=0)
    for name in parameters(cls):
        value = another(method, name, getattr(fit.s, name))
        if value is None or name in parameters(cls, "origin", "seed", "module") or name in ("cache_dir", "patience", "accelerator", "devices", "num_workers", "tracker", "verbose", "pretrain"): continue
        changed = dict(once | {name: value}, cache_dir=tmp_path)
        if name == "prior_std": changed |= known(method, dict(pretrain_kl=0.5))      # else it is refused, as nothing would read it
        if name in key:
            other = begun(method, **changed)
            assert not other[1].fetch(other[0]), name
        else:
            other, again = pretrained(method, **changed)
            assert again.fetch(other), name
            found = pretraining.autoencoder_of(pretrained(method, **changed)[0].net)
            assert found.keys() == weights.keys() and all(v.equal(found[k]) for k, v in weights.items()), name
        tried["key" if name in key else "free"] += 1
    assert min(tried.values()) >= 10 and [*tmp_path.iterdir()] == [path]


# ---- several devices

def agreeing():
    "A callback: at each epoch's end and a phase's, do all processes have the same networks, and the same memory?"
    import pytorch_lightning as pl
    class Agreeing(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            memory = {} if module.phase.memory is None else module.phase.memory.state_dict()
            tensors = {k: v for k, v in (module.net.state_dict() | memory).items()}
            one, two = module.ranks.each(tensors)
            assert module.ranks.world == 2 and one.keys() == two.keys()
            for k in one: assert one[k].equal(two[k]) if hasattr(one[k], "equal") else one[k] == two[k], k
        on_train_end = on_train_epoch_end
    return dict(callbacks=[Agreeing()])


@pytest.mark.parametrize("method", [m for m in ALL if m in DEEP or m in ("CDVaDE", "transfer")])
def test_two_devices_train_one_model(method, S, fitted, monkeypatch):
    sent, real = [], fitting.in_processes
    monkeypatch.setattr(fitting, "in_processes", lambda *args: sent.extend(real(*args)) or sent)
    a, one = small(method, devices=2, trainer_options=agreeing()).fit(S), fitted[method]
    told = [[{k: v for k, v in row.items() if k != "seconds"} for row in process["rows"]] for process in sent]
    assert len(sent) == 2 and told[0] == told[1] and sent[0]["found"] == sent[1]["found"]
    for k, v in a.module_.state_dict().items(): assert v.equal(sent[0]["weights"][k]) and v.equal(sent[1]["weights"][k]), k
    # the same images in each step: what differs from one device is noise, the statistics of a batch, and whom a contrastive loss compares
    term = "reconstruction" if method == "contrastive AE" else "loss"
    assert a.history_.columns.equals(one.history_.columns) and a.history_[["phase", "epoch", "lr"]].equals(one.history_[["phase", "epoch", "lr"]])
    np.testing.assert_allclose(a.history_[term][0], one.history_[term][0], rtol=0.1)
    assert a.interrupted_ is False and a.predict(S).shape == (60,)


def test_a_checkpoint_of_a_phase_that_is_not_there(S, tmp_path, monkeypatch):
    "Nothing would be trained: that must not pass for a training"
    method = get_method("VAE + k-means").method
    small("VAE + k-means", checkpoint_dir=tmp_path).fit(S)
    monkeypatch.setattr(method, "recipe", lambda self: [])
    with pytest.raises(ValueError, match="last.ckpt.*phase 'train', which this training does not have"): small("VAE + k-means").fit(S, resume=tmp_path / "last.ckpt")
