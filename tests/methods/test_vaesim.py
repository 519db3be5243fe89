"VAESim: its mechanisms, one by one."
import warnings

import numpy as np
import pytest
import torch
from conftest import images, same_weights, tiny
from sklearn.cluster import KMeans

from medstrat.methods.vaesim import first_images, is_due
from medstrat.parts.prototypes import orthogonality
from medstrat.training.method import Batch, Told
from medstrat.training.phases import Moment
from medstrat.training.signs import DoubtfulFit


def test_decoder_uses_its_condition(X, fitted):
    a = fitted["VAESim"]
    z = torch.from_numpy(a.transform(X[:6]))
    with torch.inference_mode():
        net, c = a.module_, a.module_.bank.responsibilities(z)
        one, two, own, given = (net.logits(z, Told(assignments=c)) for c in (torch.eye(3)[[0] * 6], torch.eye(3)[[1] * 6], None, c))
        assert (one - two).abs().amax((1, 2, 3)).min() > 1e-3     # for each image
        torch.testing.assert_close(own, given)


def test_prototypes_do_not_learn_by_gradient(X, fitted):
    a = fitted["VAESim"]
    assert not [n for n, _ in a.module_.named_parameters() if "bank" in n] and {"bank.Q", "bank.tau", "bank.unused"} <= set(a.module_.state_dict())
    still = tiny(batch_weight=0.0, kmeans_at=1.0, reseed_after=0, epochs=3).fit(X)     # the update moves nothing: they stay where they began
    np.testing.assert_array_equal(still.cluster_centers_, tiny(batch_weight=0.0, epochs=0).fit(X).cluster_centers_)


@pytest.mark.parametrize("update", ["batch", "set"])
def test_prototypes_move_towards_the_data(update, X):
    start = tiny(epochs=0).fit(X).cluster_centers_
    moved = tiny(batch_weight=0.5, update=update, kmeans_at=1.0, epochs=1).fit(X)
    assert not np.allclose(moved.cluster_centers_, start)


def test_whole_set_update_is_lloyds_algorithm(X):
    "With weight 1 and the nearest prototype: three steps of k-means from where the prototypes were"
    more = dict(update="set", batch_weight=1.0, kmeans_at=1.0, similarity="euclidean", assignment="argmax", epochs=1)
    a = tiny(**more).fit(X)
    Q, Z = tiny(**{**more, "epochs": 0}).fit(X).cluster_centers_, a.transform(X)
    for _ in range(3):
        nearest = ((Z[:, None] - Q[None]) ** 2).sum(2).argmin(1)
        Q = np.stack([Z[nearest == k].mean(0) if (nearest == k).any() else Q[k] for k in range(3)])
    np.testing.assert_allclose(a.cluster_centers_, Q, atol=1e-4)


@pytest.mark.parametrize("kmeans_at, times", [(0.0, 1), (0.1, 1), (0.25, 1), (0.5, 1), (0.74, 1), (0.99, 1), (1.0, 0)])
@pytest.mark.parametrize("update", ["batch", "set"])
def test_kmeans_sets_the_prototypes_once(kmeans_at, times, update, X, monkeypatch):
    at = []
    class Spy(KMeans):
        def fit(self, Z, *more): at.append(len(Z)); return super().fit(Z, *more)
    monkeypatch.setattr("sklearn.cluster.KMeans", Spy)
    tiny(kmeans_at=kmeans_at, update=update, epochs=4).fit(X)
    assert at == [60] * times


def test_temperature_during_training(X):
    for schedule, end in (("linear", 0.01), ("warm", 0.01), ("constant", 0.01)):
        assert tiny(tau_schedule=schedule, tau_end=end, epochs=3).fit(X).module_.bank.tau.item() == pytest.approx(end)
    assert tiny(tau_schedule="linear", tau_start=1.0, tau_end=0.01, epochs=1, batch_size=60, update="batch", kmeans_at=1.0).fit(X).module_.bank.tau.item() == 1.0   # the only step is the first


@pytest.mark.parametrize("more", [dict(compare="sample"), dict(compare="mean"), dict(init="noise"), dict(similarity="dot"), dict(similarity="cosine", tau_end=0.01),
                                  dict(assignment="multinomial"), dict(reseed_after=1, update="batch"), dict(reseed_after=1, update="set"), dict(preset="paper", n_clusters=3),
                                  dict(preset="released", n_clusters=3)], ids=str)
def test_every_mechanism_trains(more, X):
    a = tiny(**dict(dict(epochs=3), **more)).fit(X)
    assert np.isfinite(a.history_.loss).all() and np.isfinite(a.cluster_centers_).all() and np.isfinite(a.prototypes()).all()
    assert same_weights(tiny(**dict(dict(epochs=3), **more)).fit(X), a)


def test_dead_prototypes_are_reseeded_during_training(X):
    more = dict(n_clusters=12, update="batch", batch_weight=0.05, similarity="euclidean", assignment="argmax", kmeans_at=1.0, epochs=6)
    unused = {r: tiny(reseed_after=r, **more).fit(X).module_.bank.unused.max().item() for r in (0, 2, 5)}
    assert unused[0] > 5 and unused[2] < 2 and unused[5] < 5


def test_orthogonality_parts_the_soft_centroids(X):
    def cosine(weight):
        a = tiny(orthogonality=weight, similarity="cosine", tau_end=0.2, epochs=15, lr=1e-2, likelihood="squared").fit(X)
        assert ("orthogonality" in a.history_) == (weight > 0)
        return orthogonality(torch.from_numpy(a.transform(X)), torch.from_numpy(a.predict_proba(X))).item()
    assert cosine(300.0) < 0.7 * cosine(0.0)


def test_samples_above_a_similarity(X, decoded):
    a = tiny(similarity="cosine", tau_end=0.1).fit(X)
    k = int(np.bincount(a.labels_).argmax())
    a.sample(5, cluster=k, min_similarity=0.8)
    z, q = decoded.pop(), a.cluster_centers_
    cosines = z @ q.T / np.linalg.norm(z, axis=1, keepdims=True) / np.linalg.norm(q, axis=1)
    assert (cosines[:, k] >= 0.8 - 1e-6).all() and (cosines.argmax(1) == k).all()
    with pytest.raises(ValueError, match=f"only 0 of .* cluster {k} with a similarity of at least 1.5 .the largest was"):
        a.sample(5, cluster=k, min_similarity=1.5)


def test_a_threshold_without_a_cluster_is_refused(fitted):
    with pytest.raises(ValueError, match="cluster"): fitted["VAESim"].sample(2, min_similarity=0.5)


def test_prototypes_are_decoded_with_their_own_assignment(fitted):
    a = fitted["VAESim"]
    q = torch.from_numpy(a.cluster_centers_)
    net = a.module_
    with torch.inference_mode(): expected = net.decoder(torch.cat([q, net.bank.responsibilities(q)], 1)).sigmoid().permute(0, 2, 3, 1)
    np.testing.assert_allclose(a.prototypes(), expected, atol=1e-5)


def test_embedding_is_the_posterior_mean(X, fitted):
    a = fitted["VAESim"]
    x = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode(): mu, _ = a.module_.encoder(x)
    np.testing.assert_allclose(a.transform(X), mu, atol=1e-5)


def test_gradients_of_the_loss(X):
    "Of all terms, against finite differences with the same noise each time"
    a = tiny(norm="none", activation="gelu", orthogonality=0.5, compare="mean", tau_end=0.5).fit(X)
    net, batch = a.module_, Batch(torch.from_numpy(X[:6]).permute(0, 3, 1, 2).float() / 255)
    def value(term):
        torch.manual_seed(0)
        return net.loss(batch, Moment())[term]
    for term, weight in [("loss", net.encoder.heads[0].weight), ("kl", net.encoder.heads[1].weight), ("reconstruction", net.decoder.linear.weight)]:
        slope, = torch.autograd.grad(value(term), weight)
        with torch.no_grad():
            for i, j in [(0, 0), (2, 5)]:
                h, old = 1e-2, weight[i, j].item()
                weight[i, j] = old + h; up = value(term).item()
                weight[i, j] = old - h; down = value(term).item()
                weight[i, j] = old
                assert (up - down) / (2 * h) == pytest.approx(slope[i, j].item(), rel=1e-2, abs=5e-3), term


def test_no_warnings_in_a_normal_run(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DoubtfulFit)   # two epochs are few
        tiny().fit(X, validation=images(20)).predict(X)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.999, 1.0])
def test_a_share_of_the_training_is_reached_once(share, epochs):
    "At the end of the first epoch that has done so much; never with 1"
    due = [is_due(share, (i + 1) / epochs, epochs) for i in range(epochs)]
    assert due.count(True) == (share < 1) and (share == 1 or due.index(True) == max(int(np.ceil(share * epochs - 1e-6)) - 1, 0))
    assert not is_due(share, 0.0, 0)      # no epoch, no end of one


def test_first_images(X):
    "Different ones, in the order of the set; noise is noise, and neither depends on anything but the seed"
    rows = [int((X == x).all((1, 2, 3)).argmax()) for x in first_images(X, 12, "batch", 3)]
    assert len(set(rows)) == 12 and rows == sorted(rows)
    noise = first_images(X, 5, "noise", 3)
    assert noise.shape == (5, 16, 16, 1) and noise.dtype == np.float32 and noise.std() == pytest.approx(12**-0.5, rel=0.05)
    for how in ("batch", "noise"):
        assert (first_images(X, 5, how, 3) == first_images(X, 5, how, 3)).all() and not (first_images(X, 5, how, 3) == first_images(X, 5, how, 4)).all()


def test_loss_is_the_sum_of_its_terms(X):
    h = tiny(orthogonality=0.7, beta=0.3, epochs=3, similarity="cosine").fit(X).history_
    np.testing.assert_allclose(h.loss, h.reconstruction + 0.3 * h.kl + 0.7 * h.orthogonality, rtol=1e-4)
