"Saving: settings of any type, headers that do not fit, files that are no models, a full disk."

import numpy as np
import pytest
import torch
from conftest import images, tiny

from medstrat.training import saving
from medstrat.training.saving import (
    FORMAT,
    as_now,
    load_model,
    read_header,
    read_tensors,
    tensors_digest,
    write_tensors,
)


@pytest.mark.parametrize("more", [dict(random_state=np.int64(4)), dict(random_state=np.random.RandomState(1)), dict(random_state=None), dict(n_clusters=np.int64(4)),
                                  dict(lr=np.float32(1e-3)), dict(channels=[4, 8]), dict(network="mlp"), dict(likelihood="gaussian"), dict(image_size=None), dict(norm="none")])
def test_save_and_load_with_settings_of_any_type(more, X, tmp_path):
    a = tiny(**dict(dict(epochs=1), **more), checkpoint_dir=tmp_path / "c").fit(X)
    a.save(tmp_path / "m")
    assert (load_model(tmp_path / "m").transform(X) == a.transform(X)).all()


def test_save_and_load_after_the_elbow(tmp_path):
    x = images(80)
    a = tiny("VAE + k-means", n_clusters="elbow", epochs=1).fit(x)
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert b.n_clusters_ == a.n_clusters_ == len(b.cluster_centers_) > 1 and (b.predict(x) == a.labels_).all()


def _rewrite(path, change):
    "Change the header of a saved model"
    header, tensors = read_tensors(path)
    change(header, tensors)
    write_tensors(path, tensors, header)


@pytest.mark.parametrize("name, change, says", [
    ("future", lambda h, t: h.update(format=99, medstrat="7.0"), "format 99.*medstrat 7.0; install"),
    ("unknown method", lambda h, t: h.update(method="VAESimm"), "VAESimm.*VAESim"),
    ("another size", lambda h, t: h.update(image_shape=[20, 20, 1]), "do not fit"),
    ("missing weight", lambda h, t: t.pop("net.bank.Q"), "(?s)do not fit.*bank.Q"),
    ("surplus weight", lambda h, t: t.update({"net.extra": torch.zeros(1)}), "(?s)do not fit.*extra"),
    ("no labels", lambda h, t: t.pop("labels_"), "labels_"),
    ("header without format", lambda h, t: h.pop("format"), "not a model saved by medstrat"),
    ("unknown parameter", lambda h, t: h["settings"].update(colour="blue"), "colour"),
])
def test_damaged_headers(name, change, says, fitted, tmp_path):
    path = tmp_path / "m"
    fitted["VAESim"].save(path)
    _rewrite(path, change)
    with pytest.raises(ValueError, match=says): load_model(path)


def test_damaged_files(fitted, tmp_path):
    from safetensors.torch import save_file
    path = tmp_path / "m"
    fitted["VAESim"].save(path)
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:20], whole[:3], b"", b"hello world, this is not a model"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    save_file({"a": torch.ones(2)}, path, metadata=dict(medstrat="no json"))
    with pytest.raises(ValueError, match="not a model saved by medstrat"): load_model(path)
    with pytest.raises(FileNotFoundError, match="no file"): load_model(tmp_path / "nowhere")
    with pytest.raises((ValueError, IsADirectoryError)): load_model(tmp_path)


def test_a_failed_save_leaves_the_old_file(fitted, tmp_path, monkeypatch):
    path = tmp_path / "m"
    fitted["VAESim"].save(path)
    before = path.read_bytes()
    def full(self, data):
        with self.open("wb") as f: f.write(data[:100])
        raise OSError("No space left on device")
    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError): fitted["VAE + k-means"].save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_there_and_back_again(fitted, tmp_path):
    a = fitted["VAE + k-means"]
    a.save(tmp_path / "a"); b = load_model(tmp_path / "a", type(a)); b.save(tmp_path / "b")
    header = read_header(tmp_path / "a")
    assert read_header(tmp_path / "b") == header and (b.labels_ == a.labels_).all() and b.provenance_ == a.provenance_ and b.provenance_["epochs"] == "given"
    assert b.checkpoint_ is None and b.found_ == {} and b.channels == (4, 8)
    with pytest.raises(ValueError, match="holds a 'VAE . k-means', not a 'VAESim'. Use load_model"): load_model(tmp_path / "a", type(fitted["VAESim"]))


def test_a_file_of_the_present_format_is_taken_as_it_is():
    header, tensors = dict(format=FORMAT, method="transfer", settings=dict(n_clusters=2)), {"labels_": 0}
    now, kept = as_now(header, tensors)
    assert now is header and kept is tensors


def test_the_header_may_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "LARGEST", 200)
    with pytest.raises(ValueError, match="would have 12. characters, more than a file may hold .100.. Shorten the history_"):
        write_tensors(tmp_path / "m", dict(w=torch.ones(2)), dict(format=FORMAT, rows=["x" * 98]))
    assert list(tmp_path.iterdir()) == []


def test_what_counts_is_in_the_digest():
    two = dict(a=torch.ones(2), b=torch.zeros(2))
    other = (dict(a=two["b"], b=two["a"]), dict(two, a=two["a"].double()), dict(two, a=two["a"][None]), dict(a=two["a"]), dict(two, c=torch.zeros(0)))
    assert len({tensors_digest(t, "") for t in (two, *other)} | {tensors_digest(two, "text")}) == 7
    assert tensors_digest(dict(reversed(two.items())), "") == tensors_digest(two, "")


def test_how_files_were_read_and_what_the_images_were_like_travel_with_a_model(X, tmp_path):
    a = tiny(epochs=1).fit(X)
    a.save(tmp_path / "without")
    a.reading_, a.reference_ = dict(size=16, levels="window", low=-1.5, high=2.0), dict(sizes=[30, 30])
    a.save(tmp_path / "with")
    without, with_ = (load_model(tmp_path / name) for name in ("without", "with"))
    assert (without.reading_, without.reference_) == (None, None)
    assert (with_.reading_, with_.reference_) == (a.reading_, a.reference_)
    _rewrite(tmp_path / "with", lambda h, t: (h.pop("reading"), h.pop("reference")))     # as written before there were any
    assert load_model(tmp_path / "with").reading_ is None
