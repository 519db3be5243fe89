"""Every notebook runs from top to bottom; one case a notebook, so that a failure has a name."""
import os
from pathlib import Path

import pytest
from conftest import apart

root = Path(__file__).parent.parent
notebooks = sorted(p.relative_to(root).as_posix() for p in (root / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.parts))


def data_is_there():
    folder = os.environ.get("MEDSTRAT_DATA")
    return bool(folder) and all((Path(folder) / f"{name}.npz").exists() for name in ("mnist", "pneumoniamnist", "covid_cxr_view_128"))


def test_there_are_notebooks(): assert len(notebooks) > 10


def _run(path, flags):
    os.chdir(root)
    from nbdev.test import nbdev_test
    nbdev_test.__wrapped__(path=path, flags=flags, n_workers=0)


@pytest.mark.parametrize("path", notebooks)
def test_notebook(path, tmp_path):
    "As the command `nbdev_test` does it"
    status, said = apart(_run, path, "data" if data_is_there() else "", log=tmp_path / "log")    # the flag: cells that need a set which is not embedded
    assert status == 0 and "Success" in said, said[-4000:]
