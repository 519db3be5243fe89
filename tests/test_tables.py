"The measured tables which chapters show are what the scripts make of the recorded runs."
import importlib.util
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parent.parent / "results"


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = {name: make for path in sorted(RESULTS.glob("make_tables*.py")) for name, make in script(path).TABLES.items()}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_made_of_recorded_runs(name):
    stored = pd.read_csv(RESULTS / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(stored, TABLES[name]().reset_index().astype(str), check_dtype=False, check_names=False)


def test_every_table_has_its_maker(): assert {p.stem for p in (RESULTS / "tables").glob("*.csv")} == set(TABLES)
