"The recorded studies: the question and its answers say the same, rows are whole, and everything beside them belongs to one."
import itertools
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from medstrat.data.names import match_name
from medstrat.runs.requests import Request, read_scalar, run_name
from medstrat.runs.tables import COLUMNS, compare, read_label_efficiency, read_runs
from medstrat.training.registry import get_method

STUDIES = Path(__file__).parent.parent / "studies"
TABLES = sorted(STUDIES.glob("*.csv"))
EARLIER = [t for t in TABLES if "remark" in pd.read_csv(t, nrows=1)]    # made before there were studies
WORDS = "model", "dataset", "preset", "seed", "on"


def read(path):
    "A study as it is written: `on` is a word, and numbers are read as at every door"
    def values(x):
        if isinstance(x, dict): return {k: values(v) for k, v in x.items()}
        return [values(v) for v in x] if isinstance(x, list) else read_scalar(x)
    return values(yaml.load(path.read_text(), Loader=yaml.BaseLoader))


def several(value):
    "A list, a range of seeds, or one value, as a list"
    if isinstance(value, str) and (ends := re.fullmatch(r"(\d+)-(\d+)", value)): return list(range(int(ends[1]), int(ends[2]) + 1))
    return value if isinstance(value, list) else [value]


def asked(path):
    "What a study asks for: (model, dataset, preset, seed, on, parameters) of each cell"
    study = read(path)
    for block in study.get("blocks", [{}]):
        words, varied = study | block, block.get("vary", {})
        fixed = study.get("parameters", {}) | block.get("parameters", {})
        for values in itertools.product(*(several(words[k]) for k in WORDS), *varied.values()):
            named = dict(zip(WORDS, values, strict=False))
            yield named, fixed | dict(zip(varied, values[len(WORDS):], strict=True))


def row_of(named, given):
    "The same as a row says it"
    text = ", ".join(f"{k}={v}" for k, v in sorted(given.items()))
    return get_method(named["model"]).name, named["dataset"], named["preset"], named["seed"], named["on"], text


@pytest.mark.parametrize("table", EARLIER, ids=lambda p: p.stem)
def test_a_study_asks_for_its_rows(table):
    rows = read_runs(table)
    there = sorted(rows[["model", "dataset", "preset", "seed", "scored_on", "parameters"]].itertuples(index=False, name=None))
    assert there == sorted(row_of(*cell) for cell in asked(table.with_suffix(".yaml")))


@pytest.mark.parametrize("table", EARLIER, ids=lambda p: p.stem)
def test_a_row_bears_the_name_that_its_run_would_have(table):
    found = set()
    for named, given in asked(table.with_suffix(".yaml")):
        request, cls = Request(**named, parameters=given), get_method(named["model"])
        found.add(run_name(request, cls(**given, preset=named["preset"])))
    assert found == set(pd.read_csv(table).run)


@pytest.mark.parametrize("table", TABLES, ids=lambda p: p.stem)
def test_a_table_is_whole(table):
    rows = pd.read_csv(table, dtype=dict(commit=str))
    assert tuple(rows.columns[:len(COLUMNS)]) == COLUMNS and rows.run.is_unique and rows.run.is_monotonic_increasing
    assert rows.commit.str.fullmatch("[0-9a-f]{40}(-dirty)?").all() and pd.to_datetime(rows.made, utc=True).notna().all()
    for settings in rows.settings.map(json.loads): match_name(settings["preset"], ["paper", "released", "best"], "preset")
    if "remark" in rows: assert rows.remark.str.startswith("earlier code").all()


@pytest.mark.parametrize("study", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_study_says_what_it_is_for(study):
    said = read(study)
    assert said["title"] and said["question"].endswith(("?", "."))


@pytest.mark.parametrize("table", EARLIER, ids=lambda p: p.stem)
def test_a_study_is_compared_as_it_says(table):
    said = read(table.with_suffix(".yaml")).get("compare")
    rows = read_runs(table)
    found = compare(rows) if said is None else compare(rows, said["scores"], said["by"])
    assert found.seeds.sum() == len(rows), "no two rows may count as one"


def test_arrays_belong_to_runs():
    names = {t.stem: set(pd.read_csv(t).run) for t in TABLES}
    for path in (STUDIES / "arrays").iterdir():
        study, _, what = path.name.partition("-")
        assert study in names, path.name
        if what == "clusters.csv.gz": assert set(pd.read_csv(path).columns) - {"label", "split", "color"} <= names[study]
        if what in ("label_efficiency.csv.gz", "associations.csv"): assert set(pd.read_csv(path).run) <= names[study]


@pytest.mark.parametrize("study", ["contrastive", "mixtures", "self_training", "vaesim_or_kmeans"])
def test_a_curve_ends_where_its_run_does(study):
    curves, rows = read_label_efficiency(STUDIES / f"{study}.csv"), read_runs(STUDIES / f"{study}.csv")
    ends = curves[curves.fraction == 1].set_index("folder").accuracy
    assert len(ends) and (ends == rows.set_index("folder").probe_accuracy[ends.index]).all()
