"""Peak memory of `medstrat stratify` on very many files: the proportional set size of the command and all its children.

    python benchmarks/cohort_memory.py [--files 100000] [--side 128] [--model vaesim] [--folder FOLDER]

The files are written first (100,000 PNG files of 128×128: about 1.2 GB). Then one epoch of a small network. Target: below 3 GB at any moment.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from cohort_reading import write

SMALL = ("epochs=1", "network=mlp", "hidden=[64]", "latent_dim=8", "batch_size=512")


def pss(process):
    "Bytes of a process and its children, shared pages counted in shares."
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try: total += p.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError): pass
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--model", default="vaesim")
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as tmp:
        images = Path(tmp) / "images"
        images.mkdir()
        write(images, a.files, a.side)
        command = [str(Path(sys.executable).with_name("medstrat")), "stratify", str(images), "--model", a.model, "--clusters", "5",
                   "--size", str(a.side), "--out", f"{tmp}/report", "--cache-dir", f"{tmp}/cache", *(x for p in SMALL for x in ("-p", p))]
        start, peak = time.perf_counter(), 0
        with subprocess.Popen(command) as child:
            watched = psutil.Process(child.pid)
            while child.poll() is None:
                now = pss(watched)
                if now > peak: peak, at = now, time.perf_counter() - start
                time.sleep(.5)
        if child.returncode: raise SystemExit(child.returncode)
        print(f"{a.files:,} files of {a.side}×{a.side}: {time.perf_counter() - start:.0f} s, peak {peak / 1e9:.2f} GB after {at:.0f} s;"
              f" report {Path(tmp, 'report', 'report.html').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__": main()
