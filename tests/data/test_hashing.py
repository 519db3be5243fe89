"Hashes: of files, of images, and the seal that shows any change."
import hashlib
import io
import zlib

import numpy as np
import pytest

from medstrat.data.hashing import checksum, file_digest, file_md5, is_whole, seal


def test_md5(tmp_path):
    (tmp_path / "a").write_bytes(b"pixels" * 10**6)
    assert file_md5(tmp_path / "a") == hashlib.md5(b"pixels" * 10**6).hexdigest()


@pytest.mark.parametrize("shape, dtype", [((3, 4, 4, 1), np.uint8), ((5, 3), np.float32), ((25_000, 2), np.uint8), ((0, 4), np.uint8)])
def test_images_have_one_number_in_any_layout(shape, dtype, tmp_path):
    x = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    want = zlib.crc32(x.tobytes())
    np.save(tmp_path / "x.npy", x)
    views = [x, np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2]] + ([np.load(tmp_path / "x.npy", mmap_mode="r")] if x.size else [])
    assert [checksum(v) for v in views] == [want] * len(views)
    if x.size: assert checksum(x + 1) != want


def test_digest_of_a_part_and_its_copy():
    f, copy = io.BytesIO(b"ab" * 2**20 + b"rest"), io.BytesIO()
    assert file_digest(f, 2**21, copy) == hashlib.sha256(b"ab" * 2**20).hexdigest().encode() and f.read() == b"rest" and copy.getvalue() == b"ab" * 2**20
    assert file_digest(f, 99) == hashlib.sha256(b"").hexdigest().encode()   # nothing is left


@pytest.mark.parametrize("content", [b"", b"x", b"pixels" * 300_000])
def test_any_change_breaks_the_seal(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_whole(path)
    seal(path)
    sealed = path.read_bytes()
    assert sealed.startswith(content) and is_whole(path) == bool(content) and [p.name for p in tmp_path.iterdir()] == ["file"]
    if not content: return
    for i in (0, len(content) - 1, len(content) + 3, len(sealed) - 1):
        path.write_bytes(sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1:])
        assert not is_whole(path)
    for other in (sealed[:-1], sealed[1:], sealed + b"x", sealed[:70]):
        path.write_bytes(other)
        assert not is_whole(path)
