"""Images a second through `fit`, beside a bare PyTorch loop over the same networks, batch and precision.

    python benchmarks/training_speed.py [--repeats 5] [--steps 40] [--threads 2] [--precision auto] [--case conv]

Two cases on synthetic images, one process, the two loops alternating (their order too): the VAE with three convolution blocks at 32×32, batch 256;
and the fully connected 500-500-2000 VAE at 28×28, batch 1024. `fit` is timed between the first and the last batch, and as a whole
(with set-up and labels). Target: the training of `fit` reaches at least 90 % of the bare loop.
"""
import argparse
import statistics
import time
from contextlib import nullcontext

import numpy as np
import pytorch_lightning as pl
import torch

from medstrat.methods.autoencoders import VAE
from medstrat.training.method import Batch, build
from medstrat.training.devices import pick_device, pick_precision
from medstrat.training.phases import Moment
from medstrat.training.presets import resolve

CASES = dict(conv=(32, 256, dict(network="conv", channels=(32, 64, 128), latent_dim=32)),
             mlp=(28, 1024, dict(network="mlp", hidden=(500, 500, 2000), latent_dim=10)))


class Watch(pl.Callback):
    "Seconds from the end of the first epoch, which warms up, to the end of the training"
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0: self.start = now()
    def on_train_end(self, trainer, module): self.seconds = now() - self.start


def now():
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter()


def make(case, precision, epochs, watch=None):
    side, batch, networks = CASES[case]
    return VAE(**networks, epochs=epochs, batch_size=batch, lr=1e-3, random_state=0, precision=precision, verbose=False,
               trainer_options=None if watch is None else dict(callbacks=[watch]))


def through_fit(case, images, precision, epochs):
    "Images a second in all epochs but the first; and over the whole of `fit`"
    watch, start = Watch(), now()
    make(case, precision, epochs, watch).fit(images)
    return len(images) * (epochs - 1) / watch.seconds, len(images) * epochs / (now() - start)


def bare(case, images, precision, epochs):
    "The same networks and loss in a plain loop: shuffled uint8 batches, autocast, channels-last, Adam"
    device, s = pick_device(), resolve(make(case, precision, epochs))[0]
    net, batch = build(VAE.method, s, images.shape[1:], 1).to(device).train(), s.batch_size
    half = pick_precision(precision, device).startswith("bf16")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    at, rng = Moment(0, 0, 0.5), np.random.default_rng(0)
    for epoch in range(epochs):
        if epoch == 1: start = now()
        order = rng.permutation(len(images))
        for i in range(0, len(order), batch):
            x = torch.from_numpy(images[order[i:i + batch]]).to(device).permute(0, 3, 1, 2).float().div_(255)
            with torch.autocast(device.type, torch.bfloat16) if half else nullcontext(): loss = net.loss(Batch(x), at)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return len(images) * (epochs - 1) / (now() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="batches an epoch; three epochs are run, the first to warm up")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--case", choices=list(CASES), action="append")
    a = parser.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    print(f"torch {torch.__version__}, {pick_device()}, {torch.get_num_threads()} threads, precision {pick_precision(a.precision, pick_device())}")
    for case in a.case or CASES:
        side, batch, networks = CASES[case]
        images = np.random.default_rng(0).integers(0, 256, (batch * a.steps, side, side, 1), dtype=np.uint8)
        fits, wholes, bares = [], [], []
        for i in range(a.repeats):
            for what in ("fit", "bare") if i % 2 == 0 else ("bare", "fit"):
                if what == "bare": bares.append(bare(case, images, a.precision, 3))
                else:
                    inner, whole = through_fit(case, images, a.precision, 3)
                    fits.append(inner); wholes.append(whole)
        ratios = [f / b for f, b in zip(fits, bares, strict=True)]
        m = statistics.median
        print(f"{case}: {side}×{side}, batch {batch}, {networks}\n"
              f"  fit  {m(fits):8.0f} img/s  ({min(fits):.0f}…{max(fits):.0f}); with set-up and labels {m(wholes):.0f}\n"
              f"  bare {m(bares):8.0f} img/s  ({min(bares):.0f}…{max(bares):.0f})\n"
              f"  ratio {m(fits) / m(bares):.3f} (of medians), {m(ratios):.3f} (median of pairs, {min(ratios):.3f}…{max(ratios):.3f})")


if __name__ == "__main__": main()
