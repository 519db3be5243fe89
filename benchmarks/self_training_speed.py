"""Images a second of the refinement of DEC and IDEC, beside ClustPy's: same layers (500-500-2000-10), batch 256, 10,000 images of MNIST.

    pip install clustpy
    python benchmarks/self_training_speed.py [--epochs 6] [--threads 2] [--repeats 3]

Only the epochs after the pre-training are timed, the first one left out. Ours renew the target from all images once an epoch, as
`best` does, or every 140 steps; ClustPy computes it from each mini-batch. Target: at least three times ClustPy's rate.
"""
import argparse
import multiprocessing
import statistics
import time

import torch

from medstrat import load_dataset
from medstrat.training.presets import get_method


def ours(name, images, epochs, update_interval):
    model = get_method(name)(n_clusters=10, preset="paper", epochs=epochs + 1, pretrain="end-to-end", pretrain_epochs=1, tol=0, n_init=1,
                             update_interval=update_interval, random_state=0, verbose=False).fit(images)
    refine = model.history_[model.history_.phase == "refine"]
    return len(images) * epochs / refine.seconds.iloc[1:].sum()


def clustpy(name, images, epochs):
    import clustpy.deep as deep
    module, seconds = deep.dec._DEC_Module, []
    _loss, batches = module._loss, -(-len(images) // 256)
    def timed(self, *args, **kwargs):
        seconds.append(time.perf_counter())
        return _loss(self, *args, **kwargs)
    module._loss = timed
    try: getattr(deep, name)(10, pretrain_epochs=1, clustering_epochs=epochs + 1, random_state=0, initial_clustering_params=dict(n_init=1)).fit(images)
    finally: module._loss = _loss
    return len(images) * epochs / (seconds[-1] - seconds[batches]) * (epochs * batches - 1) / (epochs * batches)


def measure(run, name, epochs, threads, *more):
    torch.set_num_threads(threads)
    images = load_dataset("mnist").train.images[:10_000]
    if run is clustpy: images = images.reshape(len(images), -1).astype("float32") / 255
    return run(name, images, epochs, *more)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rates = {}
    for _ in range(a.repeats):      # alternating, so that what else the machine does meets all of them
        for name in ("DEC", "IDEC"):
            for who, run, more in (("ClustPy", clustpy, ()), ("medstrat", ours, ("epoch",)), ("medstrat, target every 140 steps", ours, (140,))):
                with multiprocessing.get_context("spawn").Pool(1) as alone:      # a process each: thread pools of one would slow the other
                    rates.setdefault((name, who), []).append(alone.apply(measure, (run, name, a.epochs, a.threads, *more)))
    for (name, who), r in rates.items():
        print(f"{name:5}{who:34}{statistics.median(r):10,.0f} img/s   × {statistics.median(r) / statistics.median(rates[name, 'ClustPy']):.1f}")
