"The baselines: against scikit-learn, the elbow, and what is drawn of a cluster."
import numpy as np
import pytest
import torch
from conftest import four_kinds, images, same_weights, tiny
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score


# ---- pixels and principal components

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


@pytest.mark.parametrize("method", ["pixels + k-means", "PCA + k-means"])
def test_half_precision_does_not_touch_the_linear_methods(method, X, fitted):
    a = tiny(method, precision="bf16-mixed").fit(X)
    assert same_weights(a, fitted[method]) and (a.transform(X) == fitted[method].transform(X)).all() and (a.reconstruct(X) == fitted[method].reconstruct(X)).all()


# ---- autoencoders

@pytest.mark.parametrize("method", ["AE + k-means", "VAE + k-means"])
def test_centres_are_the_means_of_their_members(method, X, fitted):
    a = fitted[method]
    Z = a.transform(X)
    for k in range(3): np.testing.assert_allclose(a.cluster_centers_[k], Z[a.labels_ == k].mean(0), atol=1e-3, rtol=1e-3)
    nearest = ((Z[:, None] - a.cluster_centers_[None]) ** 2).sum(2).argmin(1)
    assert (nearest == a.labels_).all() and set(np.unique(a.predict_proba(X))) == {0.0, 1.0}


@pytest.mark.parametrize("method", ["AE + k-means", "VAE + k-means"])
def test_a_network_that_was_trained_before(method, X, fitted, tmp_path):
    "Nothing is trained, and the same clusters are found"
    fitted[method].save(tmp_path / "m")
    a = tiny(method, pretrained=tmp_path / "m", random_state=0).fit(X)
    assert same_weights(a, fitted[method]) and (a.labels_ == fitted[method].labels_).all() and a.n_iter_ == 0
    recipe = a.module_.recipe()
    assert [p.name for p in recipe[0].phases] == ["train"] and [s.name for s in recipe[1:]] == ["k-means"]


# ---- draws


@pytest.mark.parametrize("method", ["VAE + k-means", "VAESim"])   # both take draws from the prior
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


# ---- the elbow

@pytest.mark.parametrize("method", ["pixels + k-means", "PCA + k-means", "AE + k-means", "VAE + k-means"])
def test_elbow(method):
    x, _ = four_kinds()
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


def test_words_other_than_elbow(X, fitted):
    with pytest.raises(ValueError, match="n_clusters='elbo'.*Did you mean 'elbow'|elbow"): tiny("VAE + k-means", n_clusters="elbo").fit(X)
    with pytest.raises(AttributeError, match="this VAEKMeans has no choice_: there is one after a fit with n_clusters='elbow'"): fitted["VAE + k-means"].choice_


def test_a_curve_without_a_knee(X, monkeypatch):
    "An error where nothing was trained; a warning and a round number, not more than there are embeddings, after a training"
    def none(*args, **more): raise ValueError("no elbow in this curve")
    monkeypatch.setattr("medstrat.methods.baselines.choose_n_clusters", none)
    with pytest.raises(ValueError, match="no elbow"): tiny("pixels + k-means", n_clusters="elbow").fit(X)
    with pytest.warns(UserWarning, match="no elbow in this curve The trained networks are kept, with 10 clusters"): a = tiny("AE + k-means", n_clusters="elbow", epochs=1).fit(X)
    assert a.n_clusters_ == 10 and a.provenance_["n_clusters"] == "no elbow was found: 10, a round number" and not hasattr(a, "choice_")
    with pytest.warns(UserWarning, match="with 4 clusters"): tiny("AE + k-means", n_clusters="elbow", epochs=1).fit(np.repeat(images(4), 6, 0))
