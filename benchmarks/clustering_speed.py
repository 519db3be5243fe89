"""Images a second of DEC's and IDEC's refinement and of VaDE's joint training, beside ClustPy's: same layers (500-500-2000-10), batch 256, 10,000 images of MNIST.

    pip install clustpy
    python benchmarks/clustering_speed.py [--epochs 6] [--threads 2] [--repeats 3]

Only the epochs after the pre-training are timed, the first one left out. Our DEC and IDEC renew the target from all images once an epoch, as
`best` does, or every 140 steps; ClustPy computes it from each mini-batch. Targets: at least three times ClustPy's rate for DEC and IDEC, five times for VaDE.
"""
import argparse
import multiprocessing
import statistics
import time

import torch

from medstrat.data.sources import load_dataset
from medstrat.training.registry import get_method


def ours(name, images, epochs, **more):
    model = get_method(name)(n_clusters=10, preset="paper", epochs=epochs + 1, pretrain="end-to-end", pretrain_epochs=1, n_init=1, batch_size=256,
                             random_state=0, verbose=False, **more).fit(images)
    timed = model.history_[model.history_.phase != "pretrain"]
    return len(images) * epochs / timed.seconds.iloc[1:].sum()


def clustpy(name, images, epochs):
    import clustpy.deep as deep
    (module, loss), seconds = (deep.vade._VaDE_Module, "vade_loss") if name == "VaDE" else (deep.dec._DEC_Module, "_loss"), []
    _loss, batches = getattr(module, loss), -(-len(images) // 256)
    def timed(self, *args, **kwargs):
        seconds.append(time.perf_counter())
        return _loss(self, *args, **kwargs)
    setattr(module, loss, timed)
    try: getattr(deep, name)(10, pretrain_epochs=1, clustering_epochs=epochs + 1, random_state=0, initial_clustering_params=dict(n_init=1, **(dict(covariance_type="diag") if name == "VaDE" else {}))).fit(images)
    finally: setattr(module, loss, _loss)
    return len(images) * epochs / (seconds[-1] - seconds[batches]) * (epochs * batches - 1) / (epochs * batches)


def measure(run, name, epochs, threads, more):
    torch.set_num_threads(threads)
    images = load_dataset("mnist").train.images[:10_000]
    if run is clustpy: images = images.reshape(len(images), -1).astype("float32") / 255
    return run(name, images, epochs, **more)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rates = {}
    renewed = {"medstrat": dict(update_interval="epoch", tol=0.0), "medstrat, target every 140 steps": dict(update_interval=140, tol=0.0)}
    for _ in range(a.repeats):      # alternating, so that what else the machine does meets all of them
        for name in ("DEC", "IDEC", "VaDE"):
            variants = {"medstrat": {}} if name == "VaDE" else renewed
            for who, run, more in (("ClustPy", clustpy, {}), *((who, ours, more) for who, more in variants.items())):
                with multiprocessing.get_context("spawn").Pool(1) as alone:      # a process each: thread pools of one would slow the other
                    rates.setdefault((name, who), []).append(alone.apply(measure, (run, name, a.epochs, a.threads, more)))
    for (name, who), r in rates.items():
        print(f"{name:5}{who:34}{statistics.median(r):10,.0f} img/s   × {statistics.median(r) / statistics.median(rates[name, 'ClustPy']):.1f}")
