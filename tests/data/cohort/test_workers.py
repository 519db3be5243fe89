"Processes that share the cores."
import os

import joblib
import pytest
from joblib import delayed

from medstrat.data.cohort import workers
from medstrat.data.cohort.workers import pool, threads_each


@pytest.mark.parametrize("cores, jobs, threads", [(8, 1, 8), (8, 2, 4), (8, 3, 2), (8, 8, 1), (8, 20, 1), (1, 4, 1), (6, 4, 1)])
def test_cores_are_shared_out(monkeypatch, cores, jobs, threads):
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    assert threads_each(jobs) == threads
    assert threads * jobs <= max(cores, jobs)


def limits(_):
    "What a process was started with, and what the libraries in it do about it"
    import numpy  # noqa: F401 (its library of linear algebra)
    from threadpoolctl import threadpool_info
    return os.environ["OMP_NUM_THREADS"], {p["num_threads"] for p in threadpool_info()}


@pytest.mark.parametrize("threads", [1, 2])
def test_processes_have_their_part(monkeypatch, threads):
    monkeypatch.setattr(workers, "threads_each", lambda n_jobs: threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    for variable, found in pool(2)(delayed(limits)(i) for i in range(2)):
        assert variable == str(threads)   # PyTorch goes by it
        assert max(found) <= threads
