"""A study of 40 cells on digits, killed (-9) five times at random moments, and on a Dask cluster whose workers are killed twice:
is every cell there once, and is the table that of an undisturbed study?

    python benchmarks/study_kills.py [FOLDER] [--cells 40] [--kills 5] [--worker-kills 2] [--jobs 2]
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from medstrat.runs.studies import make_study
from medstrat.runs.tables import tidy

TIMES = "^(seconds_|made)"    # what two studies may differ in


def asked(cells):
    "Half the cells are k-means on pixels, half an autoencoder of one epoch"
    small = dict(model="ae_kmeans", seed=f"0-{cells // 2 - 1}", parameters=dict(channels=[4, 8], epochs=1, verbose=False))
    return dict(dataset="digits", blocks=[dict(model="pixels_kmeans", seed=f"0-{cells // 2 - 1}"), small])


def start(study, out, jobs, dask=None):
    "The study in a process of its own, whose workers and kernels are its descendants"
    code = f"from medstrat.runs.queue import run_study; run_study({study!r}, n_jobs={jobs}, out={str(out)!r}, dask={dask!r}, figures=False)"
    return subprocess.Popen([sys.executable, "-c", code], stderr=open(Path(out).with_suffix(".log"), "a"))


def finished(out): return {p.parent.name: p.stat().st_mtime_ns for p in Path(out).glob("*/run.json")}


def wait(out, process, more):
    "Until so many further cells are finished; False: the study has ended"
    there = len(finished(out))
    while len(finished(out)) < there + more:
        if process.poll() is not None: return False
        time.sleep(.1)
    time.sleep(random.random() * 2)
    return process.poll() is None


def kernels(out):
    "Processes whose working files are in the study's folder, or that were started by it and live on"
    import psutil
    mine = [p for p in psutil.process_iter(["cmdline", "environ"]) if (p.info["environ"] or {}).get("STUDY_KILLS") == str(os.getpid())]
    return [p for p in mine if p.pid != os.getpid()]


def killed(study, out, kills, jobs):
    "The study, killed so many times"
    lasting, lived = [], {}
    for i in range(kills + 1):
        process = start(study, out, jobs)
        if i == kills: process.wait(); break
        if not wait(out, process, random.randint(1, len(make_study(study).cells) // (kills + 2))): break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        begun = time.time()
        while kernels(out) and time.time() - begun < 30: time.sleep(.1)
        lasting.append(time.time() - begun)
        now = finished(out)
        assert {k: now[k] for k in lived} == lived, "a finished cell was made again"
        lived = now
        print(f"kill {i + 1}: {len(now)} finished, {len(list(out.glob('*.partial')))} left half done; its processes had gone after {lasting[-1]:.1f} s", flush=True)
    now = finished(out)
    assert {k: now[k] for k in lived} == lived, "a finished cell was made again"


def on_dask(study, out, kills):
    "The study on three worker processes, of which so many are killed"
    from distributed import LocalCluster
    with LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        process, before = start(study, out, -1, cluster.scheduler_address), {}
        for i in range(kills):
            if not wait(out, process, random.randint(1, len(make_study(study).cells) // (kills + 2))): break
            worker = random.choice(list(cluster.workers.values()))
            before = finished(out)
            os.kill(worker.process.process.pid, signal.SIGKILL)
            print(f"worker kill {i + 1}: {len(before)} finished", flush=True)
        process.wait()
        now = finished(out)
        assert {k: now[k] for k in before} == before, "a finished cell was made again"


def same(study, out, reference):
    "Every cell once, nothing else, and the table of the undisturbed study"
    names = sorted(c.name for c in make_study(study).cells)
    table, other = tidy(out), tidy(reference)
    assert table.run.tolist() == names == other.run.tolist(), (len(table), len(names), len(other))
    assert not list(out.glob("*.partial")) and not list(out.glob("*.failed*"))
    drop = lambda t: t.drop(columns=t.filter(regex=TIMES).columns)
    pd.testing.assert_frame_equal(drop(table), drop(other), check_exact=True)
    return len(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=None)
    for name, default in dict(cells=40, kills=5, worker_kills=2, jobs=2, seed=0).items(): parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    a = parser.parse_args()
    random.seed(a.seed)
    os.environ["STUDY_KILLS"] = str(os.getpid())
    folder, study = Path(a.folder or tempfile.mkdtemp()), asked(a.cells)
    begun = time.time()
    start(study, folder / "undisturbed", a.jobs).wait()
    print(f"undisturbed: {len(finished(folder / 'undisturbed'))} cells, {time.time() - begun:.0f} s", flush=True)
    begun = time.time()
    killed(study, folder / "killed", a.kills, a.jobs)
    print(f"killed {a.kills} times: {same(study, folder / 'killed', folder / 'undisturbed')} cells, each once, the same table, {time.time() - begun:.0f} s", flush=True)
    begun = time.time()
    on_dask(study, folder / "dask", a.worker_kills)
    print(f"Dask, {a.worker_kills} workers killed: {same(study, folder / 'dask', folder / 'undisturbed')} cells, each once, the same table, {time.time() - begun:.0f} s", flush=True)
