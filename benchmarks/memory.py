"""Peak memory of `fit` on a memory-mapped array of 1,000,000 × 28 × 28 bytes: one epoch of a small network.

    python benchmarks/memory.py [--images 1000000] [--method vaesim] [--folder FOLDER]

The array (784 MB) is written to a temporary file in pieces, then a second process maps it and fits. Printed: the peak resident set of that
process in GB – mapped pages that the system has in memory count as resident, too – and what it was before `fit`. Target: below 2.5 GB.
"""
import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def peak_gb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def write(path, n):
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 28, 28))
    rng = np.random.default_rng(0)
    for i in range(0, n, 50_000): x[i:i + 50_000] = rng.integers(0, 256, x[i:i + 50_000].shape, dtype=np.uint8)
    x.flush()


def fit(path, method):
    from medstrat.training.registry import get_method
    x = np.load(path, mmap_mode="r")
    cls = get_method(method)
    wanted = dict(n_clusters=10, epochs=1, batch_size=1024, network="mlp", hidden=(64,), latent_dim=8, random_state=0, verbose=False)
    model = cls(**{k: v for k, v in wanted.items() if k in cls.__dataclass_fields__})
    before, start = peak_gb(), time.perf_counter()
    model.fit(x)
    print(f"{cls.name}: {len(x):,} images of 28×28, one epoch in {time.perf_counter() - start:.0f} s\n"
          f"peak memory {peak_gb():.2f} GB (before fit {before:.2f} GB; the array {x.nbytes / 1e9:.2f} GB)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--method", default="vaesim")
    parser.add_argument("--folder", default=None, help="where the temporary file goes")
    parser.add_argument("--fit", default=None, help=argparse.SUPPRESS)    # the second process
    a = parser.parse_args()
    if a.fit: return fit(a.fit, a.method)
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        path = Path(folder) / "images.npy"
        write(path, a.images)
        subprocess.run([sys.executable, __file__, "--fit", str(path), "--method", a.method], check=True)


if __name__ == "__main__": main()
