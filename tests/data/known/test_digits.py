"The digits: the same images and the same split on every machine."
import hashlib

from medstrat.data.sources import load_dataset


def test_the_split_of_digits_is_frozen():
    "Recorded numbers rest on this split: if this fails, every result on digits has to be made again."
    d = load_dataset("digits", carve_val=True)
    assert [len(d.train), len(d.val), len(d.test)] == [1295, 143, 359]
    sums = [hashlib.md5(getattr(d, p).images.tobytes()).hexdigest()[:8] for p in d.split_names]
    assert sums == FROZEN, sums


FROZEN = ["581f2d0d", "035dc513", "d85b1d16"]  # first digits of the MD5 of the images of train, val, test
