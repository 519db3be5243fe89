"""Files a second: a cohort read for the first time and again, beside a bare parallel Pillow loop over the same files.

    python benchmarks/cohort_reading.py [--files 10000] [--side 128] [--jobs 2] [--repeats 3]

The bare loop opens each file, decodes it and puts it into one array, in as many processes, and does nothing else. Reading also takes
a check sum of every file, recognises gray and colour, writes the pictures and a record of every file to disk. Target: at least
85 % of the bare loop's rate; and below 1 s for the second start.
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from PIL import Image

from medstrat.data.cohort.folder import read_folder
from medstrat.data.cohort.rules import Rules


def write(folder, n, side):
    "Smooth pictures with some noise, as PNG files in a hundred sub-folders."
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for i in range(n):
        path = folder / f"{i % 100:02}" / f"{i:06}.png"
        path.parent.mkdir(exist_ok=True)
        a, b, c = rng.uniform(2, 9, 3)
        picture = 128 + 80 * np.sin(a * x + c) * np.cos(b * y) + rng.normal(0, 6, (side, side))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(path)


def bare(paths): return np.stack([np.asarray(Image.open(p)) for p in paths])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "images"
        folder.mkdir()
        write(folder, a.files, a.side)
        paths = sorted(folder.rglob("*.png"))
        best = {"bare": 0., "reading": 0., "again": 0.}
        for i in range(a.repeats):
            start = time.perf_counter()
            parts = Parallel(a.jobs)(delayed(bare)(paths[j:j + 64]) for j in range(0, len(paths), 64))
            expected = np.concatenate(parts)
            best["bare"] = max(best["bare"], a.files / (time.perf_counter() - start))
            for what in ("reading", "again"):
                start = time.perf_counter()
                cohort = read_folder(folder, rules=Rules(size=a.side), cache_dir=Path(tmp) / f"cache{i}", n_jobs=a.jobs)
                seconds = time.perf_counter() - start
                best[what] = max(best[what], a.files / seconds)
            assert (np.asarray(cohort.images.images)[..., 0] == expected).all()
        print(f"{a.files:,} files of {a.side}×{a.side}, {a.jobs} processes, best of {a.repeats}: bare loop {best['bare']:,.0f} files/s,"
              f" reading {best['reading']:,.0f} ({best['reading'] / best['bare']:.0%}), second start {a.files / best['again']:.2f} s")


if __name__ == "__main__": main()
