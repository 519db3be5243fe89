"The measured tables which chapters show are what the script makes of the recorded runs."
import runpy
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parent.parent / "results"


SCRIPT = runpy.run_path(str(RESULTS / "make_tables.py"))
TABLES, text = SCRIPT["TABLES"], SCRIPT["text"]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_made_of_recorded_runs(name):
    stored = pd.read_csv(RESULTS / "tables" / f"{name}.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(stored, text(TABLES[name]()), check_dtype=False, check_names=False)


def test_every_table_has_its_maker(): assert {p.stem for p in (RESULTS / "tables").glob("*.csv")} == set(TABLES)
