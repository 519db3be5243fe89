"Batches: each image once, in an order that can be computed; what belongs to images comes with them."
import pickle

import numpy as np
import pytest
import torch
from conftest import images, same_weights, tiny

from medstrat.training.batches import ImageBatches, ShuffledBatches, train_loader
from medstrat.vae.networks import to_network


@pytest.mark.parametrize("n, batch, world", [(10, 4, 1), (9, 4, 1), (1, 4, 1), (5, 1, 1), (10, 4, 3), (7, 3, 2), (8, 100, 1)])
def test_batches_hold_each_image_once(n, batch, world):
    x = ImageBatches(images(n, 8))
    seen, steps = [], set()
    for rank in range(world):
        loader = train_loader(x, batch, 3, lambda: 0, rank=rank, world=world)
        parts = [b["index"].numpy() for b in loader]
        assert len(parts) == len(loader.batch_sampler)
        assert all(len(p) <= batch + 1 for p in parts) and (batch == 1 or len(parts) == 1 or min(map(len, parts)) > 1)
        seen += parts; steps.add(len(parts))
    assert len(steps) == 1, "a rank with fewer steps lets the others wait for ever"
    seen = np.concatenate(seen)
    assert set(seen) == set(range(n)) and len(seen) - n < world
    again = np.concatenate([b["index"].numpy() for b in train_loader(x, batch, 3, lambda: 1)])
    assert n < 5 or world > 1 or not (again == seen).all()    # another epoch, another order


@pytest.mark.parametrize("n, batch, sizes", [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 8, [3]), (1, 8, [1]), (2, 1, [1, 1])])
def test_sizes_of_batches(n, batch, sizes):
    assert [len(i) for i in ShuffledBatches(n, batch, seed=0, epoch=lambda: 0)] == sizes


def test_processes_share_an_epoch():
    ranks = [np.concatenate(list(ShuffledBatches(50, 8, 7, lambda: 0, rank=r, world=2))) for r in (0, 1)]
    assert sorted(np.concatenate(ranks)) == list(range(50))


def test_recorded_runs_stay_repeatable():
    "The order stands behind every recorded run: it must not change"
    assert [b.tolist() for b in ShuffledBatches(9, 4, seed=7, epoch=lambda: 1)] == ORDER


def test_one_image_is_a_batch():
    data = ImageBatches(images(5), covariates=np.ones((5, 2)), labels=None)
    assert len(data) == 5 and list(data[2]) == ["images", "index", "covariates"] and data[2]["images"].shape == (1, 16, 16, 1)


def test_features_are_taken_as_they_are():
    features = torch.ones(3, 5)
    assert to_network(features) is features and to_network(torch.from_numpy(images(3)), channels_last=False).is_contiguous()


def test_a_loader_draws_nothing_from_the_common_stream():
    torch.manual_seed(3); a = torch.rand(1)
    torch.manual_seed(3); list(train_loader(ImageBatches(images(20)), 4, 0, lambda: 0))
    assert torch.rand(1) == a


def test_workers_read_the_same_batches(X):
    assert same_weights(tiny(num_workers=1, epochs=1).fit(X), tiny(epochs=1).fit(X))
    loader = train_loader(ImageBatches(X), 4, 0, int, num_workers=1)
    pickle.dumps(loader.collate_fn)      # where processes are spawned (macOS, Windows), it travels


ORDER = [[5, 0, 2, 6], [7, 3, 4, 1, 8]]
