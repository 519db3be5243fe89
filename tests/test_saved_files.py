"Models, checkpoints and kept pre-trainings: every damage is refused by name; files of the first format load; modes follow the umask."
import json
import os
import stat
import struct
import warnings

import numpy as np
import pytest
import torch
from conftest import images, same_weights, tiny

from medstrat.training.checkpoints import read_checkpoint
from medstrat.training.saving import FORMAT, LARGEST, load_model, read_tensors


def mutate(data: bytes, rng) -> bytes:
    "One damage of a file: bits flipped, bytes of the header exchanged, or something cut off, left out, added"
    out, kind = bytearray(data), rng.integers(3)
    if kind == 0:
        for i in rng.integers(len(out), size=rng.integers(1, 4)): out[i] ^= 1 << rng.integers(8)
    elif kind == 1:
        head = min(len(out), 8 + int.from_bytes(out[:8], "little")) if int.from_bytes(out[:8], "little") < len(out) else 2000
        for i in rng.integers(head, size=rng.integers(1, 4)): out[i] = rng.choice(list(b'0123456789 ,:{}[]"\\eE-nft') + [0, 255])
    else:
        i, n = rng.integers(len(out)), rng.integers(1, 200)
        out = [out[:i], out[:i] + out[i + n:], out + bytes(rng.integers(0, 256, n, dtype=np.uint8)), out[:i] + bytes(n) + out[i:]][rng.integers(4)]
    return bytes(out)


def alike(a, b):
    "The same nested content, tensors to the bit?"
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a != a)).all())
    if isinstance(a, dict): return isinstance(b, dict) and list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return a == b or a != a and b != b


def damaged(path, read, times, seed=0):
    "How many damaged copies of a file were refused, or gave what the file holds; anything else fails"
    whole, content, rng, counts = path.read_bytes(), read(path), np.random.default_rng(seed), dict(refused=0, same=0)
    bad = path.with_name("bad" + path.suffix)
    for i in range(times):
        bad.write_bytes(mutate(whole, rng))
        try: found = read(bad)
        except ValueError as e:
            assert bad.name in str(e), e
            counts["refused"] += 1
        else:
            assert alike(found, content), f"damage number {i} was accepted"
            counts["same"] += 1
    return counts


def test_damaged_models(tmp_path):
    tiny().fit(images()).save(tmp_path / "m.safetensors")
    counts = damaged(tmp_path / "m.safetensors", read_tensors, 300)
    assert counts["refused"] > 280
    (tmp_path / "bad.safetensors").write_bytes(mutate((tmp_path / "m.safetensors").read_bytes()[:-1], np.random.default_rng(1)))
    with pytest.raises(ValueError, match="bad.safetensors"): load_model(tmp_path / "bad.safetensors")


def test_damaged_checkpoints(tmp_path):
    tiny(checkpoint_dir=tmp_path).fit(images())
    assert damaged(tmp_path / "last.ckpt", read_checkpoint, 200)["refused"] > 190
    (tmp_path / "bad.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:-80])     # without the seal
    with pytest.raises(ValueError, match="bad.ckpt.*check sum"): tiny().fit(images(), resume=tmp_path / "bad.ckpt")


def test_a_damaged_pretraining_is_done_again(tmp_path):
    first = tiny("DEC", cache_dir=tmp_path).fit(images())
    path, = tmp_path.glob("*.safetensors")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for i in range(4):
        bad = bytearray(whole); bad[-1 - rng.integers(2000)] ^= 1 << rng.integers(8); path.write_bytes(bad)
        with pytest.warns(UserWarning, match="cannot be read.*done again"): again = tiny("DEC", cache_dir=tmp_path).fit(images())
        assert same_weights(again, first)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be read")
        tiny("DEC", cache_dir=tmp_path).fit(images())     # mended


def test_a_header_that_claims_to_be_huge(tmp_path):
    (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", LARGEST + 1) + b"{" * 100)
    with pytest.raises(ValueError, match="bomb.*claims"): load_model(tmp_path / "bomb.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{}", "[]", "null", '{"format": 2}', '{"format": []}'])
def test_strange_headers(text, tmp_path):
    from safetensors.torch import save_file
    save_file({"w": torch.zeros(2)}, tmp_path / "odd.safetensors", metadata=dict(medstrat=text))
    with pytest.raises(ValueError, match="odd.safetensors"): load_model(tmp_path / "odd.safetensors")


def test_files_of_the_first_format(tmp_path):
    from safetensors.torch import save_file
    model = tiny().fit(images())
    model.save(tmp_path / "m.safetensors")
    header, tensors = read_tensors(tmp_path / "m.safetensors")
    header |= dict(format=1, settings=header["settings"] | dict(accelerator="gpu", num_workers=2, verbose=True))   # as it used to be written
    save_file(tensors, tmp_path / "old.safetensors", metadata=dict(medstrat=json.dumps(header)))
    old = load_model(tmp_path / "old.safetensors")
    assert same_weights(old, model) and old.accelerator == "auto" and np.array_equal(old.set_params(accelerator="cpu").predict(images()), model.labels_)
    assert header["format"] < FORMAT


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        tiny("DEC", checkpoint_dir=tmp_path, cache_dir=tmp_path / "kept").fit(images()).save(tmp_path / "m.safetensors")
        (tmp_path / "plain").write_text("")
    finally: os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 4 and {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o666 & ~mask}


