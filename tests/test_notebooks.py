"""Every notebook runs from top to bottom; one case a notebook, so that a failure has a name."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
notebooks = sorted(p.relative_to(root).as_posix() for p in (root / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.parts))


def data_is_there():
    folder = os.environ.get("MEDSTRAT_DATA")
    return bool(folder) and all((Path(folder) / f"{name}.npz").exists() for name in ("mnist", "pneumoniamnist", "covid_cxr_view_128"))


def test_there_are_notebooks(): assert len(notebooks) > 10


@pytest.mark.parametrize("path", notebooks)
def test_notebook(path):
    command = [str(Path(sys.executable).parent / "nbdev_test"), "--path", path, "--n_workers", "0"]
    if data_is_there(): command += ["--flags", "data"]    # cells that need a set which is not embedded
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "Success" in done.stdout
