"""What share of a contrastive training step is spent on making the two views? Batch 256, 32×32 gray images, three convolution blocks.

    python benchmarks/augmentation_speed.py [--steps 40] [--threads 2] [--batch 256]

A step is what `fit` does for one batch: views, forward, loss, backward, optimiser. Target: the views cost at most 40 % of it.
"""
import argparse
import statistics
import time

import torch

import medstrat.methods.contrastive as contrastive
from medstrat.data.sources import load_dataset
from medstrat.methods.contrastive import ContrastiveAE


def measure(how, crop, images, batch, steps, threads):
    "(seconds for the views, seconds for a step), medians; the first epoch is left out."
    torch.set_num_threads(threads)
    two_views, spent, starts = contrastive.two_views, [], []
    def with_watch(s):
        views = two_views(s)
        def timed(batch, training):
            start = time.perf_counter()
            starts.append(start)
            seen = views(batch, training)
            spent.append(time.perf_counter() - start)
            return seen
        return timed
    contrastive.two_views = with_watch
    per_epoch = len(images) // batch
    try: ContrastiveAE(n_clusters=2, n_init=1, image_size=32, batch_size=batch, augment=how, crop=crop, epochs=1 + -(-steps // per_epoch), decoder_epochs=0, random_state=0, verbose=False).fit(images)
    finally: contrastive.two_views = two_views
    pairs = [(s, b - a) for i, (s, a, b) in enumerate(zip(spent, starts, starts[1:])) if i >= per_epoch and (i + 1) % (per_epoch + 1)]
    return tuple(statistics.median(x) for x in zip(*pairs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    a = parser.parse_args()
    images = load_dataset("mnist").train.images[:a.batch * 10]
    for how in ("contrastive", "medical"):
        views, step = measure(how, 0.5, images, a.batch, a.steps, a.threads)
        print(f"{how:12} both views {1000 * views:.0f} ms of a step of {1000 * step:.0f} ms: {views / step:.0%}")
