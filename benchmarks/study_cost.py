"""What a cell of a study costs beside its run: the kernel, what it imports, papermill, bookkeeping; without figures.

    python benchmarks/study_cost.py [CELLS]

One kernel is kept for all cells, as in a study. A line a cell: seconds by the clock and of processor time (this process and the kernel), and the seconds that
the run itself recorded (loading, fitting, scores). On a machine with other work, processor time is the figure to look at.
"""
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from medstrat.runs.queue import How, _kernel, end_kernels, run_cell
from medstrat.runs.studies import make_study


def processor(how):
    "Seconds of processor time so far"
    kernel = _kernel(how).manager
    its = psutil.Process(kernel.provisioner.process.pid).cpu_times() if kernel is not None else None
    return time.process_time() + (its.user + its.system if its else 0)


if __name__ == "__main__":
    study = make_study(dict(dataset="digits", model="pixels_kmeans", seed=f"0-{int(sys.argv[1]) - 1 if sys.argv[1:] else 7}"))
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / ".locks").mkdir()
        how = How(d, os.getcwd(), figures=False)
        for cell in study.cells:
            clock, before = time.perf_counter(), processor(how)
            assert run_cell(cell.name, cell.words, how)[1] == "finished"
            clock, used = time.perf_counter() - clock, processor(how) - before
            run = sum(v for k, v in json.loads((Path(d) / cell.name / "run.json").read_text())["seconds"].items() if k != "epochs")
            print(f"{cell.name}: {clock:.1f} s, {used:.1f} s of processor time; the run itself {run:.1f} s", flush=True)
        end_kernels()
