"The methods: the baselines against scikit-learn, VAESim's mechanisms one by one, presets, names."
import warnings

import numpy as np
import pytest
import torch
from conftest import DEEP, METHODS, images, same_weights, tiny
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from medstrat.methods.baselines import VAEKMeans
from medstrat.parts.prototypes import orthogonality
from medstrat.training.estimator import DeepClusterer
from medstrat.training.method import Batch, Told, build
from medstrat.training.phases import Moment
from medstrat.training.presets import resolve
from medstrat.training.registry import get_method

# ---- baselines

@pytest.fixture(scope="module")
def blobs():
    "Four kinds of images that any method should separate: one quarter is bright"
    rng = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = rng.integers(0, 60, (80, 16, 16, 1))
    for i, k in enumerate(y): x[i, 8 * (k // 2):8 * (k // 2) + 8, 8 * (k % 2):8 * (k % 2) + 8] += 180
    return x.astype(np.uint8), y


@pytest.mark.parametrize("method", METHODS)
def test_what_is_plain_is_found(method, blobs):
    x, y = blobs
    more = dict(pretrain_epochs=40, pretrain_lr=3e-3) if "pretrain_epochs" in get_method(method).__dataclass_fields__ else {}
    if method == "GMVAE": more = dict(epochs=100, w_dim=4, prior_hidden=32)     # its clusters start anywhere: they need time to part
    a = tiny(method, **dict(dict(n_clusters=4, epochs=40, lr=3e-3, network="mlp"), **more)) if method in DEEP else tiny(method, n_clusters=4)
    assert adjusted_rand_score(y, a.fit_predict(x)) == 1


def test_pixel_kmeans_is_kmeans_on_pixels(X):
    a = tiny("pixels + k-means").fit(X)
    flat = X.transpose(0, 3, 1, 2).reshape(60, -1) / np.float32(255)
    assert adjusted_rand_score(KMeans(3, n_init=10, random_state=0).fit_predict(flat), a.labels_) == 1
    np.testing.assert_allclose(a.transform(X), flat, atol=1e-6)
    for k in range(3): np.testing.assert_allclose(a.prototypes()[k], X[a.labels_ == k].mean(0) / 255, atol=1e-4)
    assert (a.reconstruct(X) * 255).round().astype(np.uint8).tobytes() == X.tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_pca_kmeans_is_kmeans_on_components(channels):
    X = images(channels=channels)
    a = tiny("PCA + k-means").fit(X)
    flat = X.transpose(0, 3, 1, 2).reshape(60, -1) / np.float32(255)
    pca = PCA(4, random_state=0).fit(flat)
    np.testing.assert_allclose(a.transform(X), pca.transform(flat), atol=1e-3)
    assert adjusted_rand_score(KMeans(3, n_init=10, random_state=0).fit_predict(pca.transform(flat)), a.labels_) == 1
    np.testing.assert_allclose(a.reconstruct(X).transpose(0, 3, 1, 2).reshape(60, -1), pca.inverse_transform(pca.transform(flat)).clip(0, 1), atol=1e-3)


def test_too_many_components():
    with pytest.raises(ValueError, match="latent_dim=32.*Choose latent_dim ≤ 20"): tiny("PCA + k-means", latent_dim=32).fit(images(20))


@pytest.mark.parametrize("method", ["AE + k-means", "VAE + k-means"])
def test_centres_are_the_means_of_their_members(method, X, fitted):
    a = fitted[method]
    Z = a.transform(X)
    for k in range(3): np.testing.assert_allclose(a.cluster_centers_[k], Z[a.labels_ == k].mean(0), atol=1e-3, rtol=1e-3)
    nearest = ((Z[:, None] - a.cluster_centers_[None]) ** 2).sum(2).argmin(1)
    assert (nearest == a.labels_).all() and set(np.unique(a.predict_proba(X))) == {0.0, 1.0}


@pytest.mark.parametrize("method", ["pixels + k-means", "PCA + k-means"])
def test_half_precision_does_not_touch_the_linear_methods(method, X, fitted):
    a = tiny(method, precision="bf16-mixed").fit(X)
    assert same_weights(a, fitted[method]) and (a.transform(X) == fitted[method].transform(X)).all() and (a.reconstruct(X) == fitted[method].reconstruct(X)).all()


@pytest.mark.parametrize("method", ["pixels + k-means", "PCA + k-means", "AE + k-means", "VAE + k-means"])
def test_elbow(method, blobs):
    x, _ = blobs
    a = tiny(method, n_clusters="elbow", epochs=1).fit(x)
    assert a.n_clusters_ == a.choice_.n_clusters == len(a.cluster_centers_) == a.predict_proba(x).shape[1] == len(a.prototypes()) > 1
    assert a.n_clusters == "elbow" == a.settings_.n_clusters      # the parameter is not overwritten
    if method == "pixels + k-means": assert a.n_clusters_ == 4


def test_elbow_with_few_images():
    "Either fewer numbers are tried, or the message names what the user can change"
    try: assert 1 < tiny("VAE + k-means", n_clusters="elbow", epochs=1).fit(images(30)).n_clusters_ < 30
    except ValueError as e: assert "n_clusters" in str(e)


def test_elbow_is_for_kmeans_only(X):
    with pytest.raises(ValueError, match="n_clusters='elbow'"): tiny("VAESim", n_clusters="elbow").fit(X)


# ---- VAE

def test_kl_warm_up():
    beta = lambda warmup, progress: build(VAEKMeans.method, resolve(tiny("VAE + k-means", beta=2.0, kl_warmup=warmup))[0], (16, 16, 1), 3).beta(Moment(0, 0, progress, 4))
    assert [beta(2.0, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, 1, 2, 2]) and beta(0.0, 0.0) == 2


def test_beta_pulls_the_posterior_to_the_prior(X):
    kl = [tiny("VAE + k-means", beta=b, epochs=8, lr=1e-2).fit(X).history_.kl.iloc[-1] for b in (0.0, 1.0, 100.0)]
    assert kl[0] > kl[1] > kl[2]


def test_learned_and_fixed_sigma(X):
    a = tiny("VAE + k-means", likelihood="gaussian", lr=1e-2, epochs=5).fit(X)
    b = tiny("VAE + k-means", likelihood="gaussian", sigma=0.3, lr=1e-2, epochs=5).fit(X)
    assert abs(a.module_.log_sigma.item() - np.log(0.5)) > 1e-2
    assert b.module_.log_sigma.item() == pytest.approx(np.log(0.3), abs=1e-6)


# ---- VAESim

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


@pytest.fixture
def decoded(monkeypatch):
    "The embeddings that are drawn, in place of images"
    found = []
    monkeypatch.setattr(DeepClusterer, "inverse_transform", lambda self, Z, condition=None: found.append(Z) or np.zeros((len(Z), 16, 16, 1)))
    return found


@pytest.mark.parametrize("method", ["VAE + k-means", "VAESim"])
def test_samples_of_a_cluster_lie_in_it(method, fitted, decoded):
    "Those draws from the prior that a cluster is most similar to"
    a, found = fitted[method], 0
    for k in range(3):
        try: a.sample(7, cluster=k)
        except ValueError as e: assert f"draws from the prior fell into cluster {k}" in str(e); continue     # a cluster may lie where the prior has nothing
        found += 1
        z = torch.from_numpy(decoded.pop())
        assert z.shape == (7, 4) and (a.module_.bank.responsibilities(z).argmax(1) == k).all()
    assert found >= 1


def test_samples_of_a_vae_are_shaped_by_the_prior(X, decoded):
    "A prior of another width; a cluster's share of it is what a large sample of all falls into it"
    a = tiny("VAE + k-means", prior_std=0.5, beta=20.0).fit(X)
    a.sample(20000); everything, = decoded
    np.testing.assert_allclose(everything.std(0), 0.5, rtol=0.03)
    k, label = int(np.bincount(a.labels_).argmax()), ((everything[:, None] - a.cluster_centers_) ** 2).sum(2).argmin(1)
    a.sample(5000, cluster=k)
    np.testing.assert_allclose(decoded[1].mean(0), everything[label == k].mean(0), atol=0.05)
    np.testing.assert_allclose(decoded[1].std(0), everything[label == k].std(0), rtol=0.1)
    a.sample(5000, cluster=k); a.sample(5000, cluster=k, random_state=1)
    assert (decoded[2] == decoded[1]).all() and not (decoded[3] == decoded[1]).all()


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
        tiny().fit(X, validation=images(20)).predict(X)
