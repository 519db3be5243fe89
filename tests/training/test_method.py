"What a method is: the words that have an answer already, and a network that depends on its seed."
import numpy as np
import pytest
import torch
from torch import nn

from medstrat.training.method import Batch, Network, Told, build, enough_for
from medstrat.training.parameters import Settings


def bare(**more): return Network(Settings(latent_dim=2, image_size=None, **more), (8, 8, 1), n_clusters=3)


def test_words_without_an_answer():
    net = bare()
    for ask in (lambda: net.loss(None, None), lambda: net.embed(None), lambda: net.recipe(), lambda: net.make_bank(3)):
        with pytest.raises(NotImplementedError): ask()
    with pytest.raises(AttributeError, match="no decoder"): net.decode(torch.zeros(1, 2))
    with pytest.raises(AttributeError, match="no distribution"): net.draw(3, np.random.default_rng(0))


def test_words_with_an_answer():
    net, images = bare(), np.zeros((3, 8, 8, 1), np.uint8)
    assert net.dim == 2 and net.origin() == {} and net.start() is None and net.prepare(images, None) is images and not net.conditional
    assert net.working_size(Settings(image_size=None), (8, 8, 1)) == (None, None) and net.working_size(Settings(image_size=32), (8, 8, 1)) == (32, None)
    Network.check(net.s)
    Network.check_images(Settings(n_clusters=3), images)
    with pytest.raises(ValueError, match="n_clusters=4 is more than the 3 images"): Network.check_images(Settings(n_clusters=4), images)


@pytest.mark.parametrize("n, k, says", [(0, 1, "got 0 image"), (1, 1, "got 1 image; clustering needs at least 2"), (10, 11, "n_clusters=11 is more than the 10 images given. Choose n_clusters ≤ 10"),
                                        (19, "elbow", "at least 20 images to see a knee, got 19")])
def test_too_few_images(n, k, says):
    with pytest.raises(ValueError, match=says): enough_for(n, k)


def test_enough_images():
    for n, k in ((2, 2), (10, 10), (20, "elbow"), (10, None)): enough_for(n, k)


def test_nothing_told():
    alone = Batch(torch.rand(2, 1, 8, 8))
    assert (alone.index, alone.told, alone.labels) == (None, Told(None, None), None)


class Random(Network):
    def __init__(self, *args):
        super().__init__(*args)
        self.layer, self.bank = nn.Conv2d(3, 4, 3), self.make_bank(self.n_clusters)
    def make_bank(self, k): return nn.Linear(2, k)


@pytest.mark.parametrize("last", [True, False])
def test_built_from_a_seed(last):
    make = lambda seed: build(Random, Settings(random_state=seed, channels_last=last), [8, 8, 3], 4, 1)
    torch.manual_seed(5); ours = torch.rand(1)
    torch.manual_seed(5); a = make(0); assert torch.rand(1) == ours
    assert a.layer.weight.equal(make(0).layer.weight) and not a.layer.weight.equal(make(1).layer.weight)
    assert a.shape == (8, 8, 3) and a.n_covariates == 1 and a.layer.weight.is_contiguous(memory_format=torch.channels_last) == last


def test_another_number_of_clusters():
    net = build(Random, Settings(random_state=0, channels_last=False), (8, 8, 3), 4)
    before = net.layer.weight.clone()
    net.set_n_clusters(7)
    assert net.n_clusters == 7 and net.bank.out_features == 7 and net.layer.weight.equal(before)
