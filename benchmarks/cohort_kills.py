"""Does a killed `medstrat stratify` lose anything? It is killed at random moments until it ends by itself, again and again.

    python benchmarks/cohort_kills.py [--kills 20] [--files 300]

Each round starts the same command on the same cohort in a new folder, kills the command and all its children (SIGKILL) after a random time,
starts it again, …, until it finishes. Final tables and the model's weights must be equal to those of a run that nobody disturbed, and a stage
that was finished must not have been done again.
"""
import argparse
import filecmp
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from cohort_reading import write

TABLES = "assignments.csv", "files.csv", "associations.csv", "artefacts.csv", "characteristics.csv"


def command(images, out, cache):
    return [str(Path(sys.executable).with_name("medstrat")), "stratify", str(images), "--model", "vade", "--clusters", "3", "--out", str(out), "--size", "32",
            "--cache-dir", str(cache), "--seed", "0", *(x for p in ("epochs=3", "pretrain_epochs=3", "channels=[8,16]") for x in ("-p", p))]


def killed_after(seconds, words):
    "True: killed; False: it ended before, well."
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = child.communicate(timeout=seconds)
        if child.returncode: raise SystemExit(f"it failed after an earlier kill:\n{said}")
        return False
    except subprocess.TimeoutExpired:
        everyone = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
        for p in everyone:
            try: p.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess: pass
        child.communicate()
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--files", type=int, default=300)
    a = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        images = tmp / "images"
        images.mkdir()
        write(images, a.files, 40)
        start = time.perf_counter()
        subprocess.run(command(images, tmp / "whole", tmp / "cache0"), check=True, stdout=subprocess.DEVNULL)
        whole, kills, rounds = time.perf_counter() - start, 0, 0
        print(f"undisturbed: {whole:.0f} s")
        while kills < a.kills:
            rounds, out, cache = rounds + 1, tmp / f"round{rounds}", tmp / f"cache{rounds}"
            while killed_after(rng.uniform(1, whole), command(images, out, cache)):
                kills += 1
                print(f"round {rounds}: killed ({kills})", flush=True)
            for name in TABLES:
                if not filecmp.cmp(tmp / "whole" / name, out / name, shallow=False): raise SystemExit(f"{name} differs after {kills} kills")
            shutil.rmtree(out)
        print(f"{kills} kills in {rounds} rounds: all tables equal")


if __name__ == "__main__": main()
