"Studies as files: what they expand to, what is refused and where, how they stand, and their tables against numbers by hand."
import json

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from scipy import stats

from medstrat.runs import studies
from medstrat.runs.requests import partial
from medstrat.runs.studies import Study, as_text, cell_rows, estimates, failure, find_study, interval, lock_of, make_study, read_study, state_of, status, summarise, table, write_table
from medstrat.runs.tables import tidy

TEXT = """
title: T
dataset: digits
on: test
parameters: {n_clusters: 5}
blocks:
  - Model: [pixels_kmeans, PCA + k-means]
    seed: 0-1
  - model: dec
    seed: [3, 5-6]
    preset: paper
    parameters: {pretrain_epochs: 1e2}
    vary: {latent_dim: [8, 16], channels: [[4, 8], [8, 16]]}
"""


@pytest.fixture
def file(tmp_path):
    def write(text, name="s.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name
    return write


def test_a_study_is_its_product(file):
    s = read_study(file(TEXT))
    assert (s.name, s.title, len(s.cells)) == ("s", "T", 2 * 2 + 3 * 4) and len({c.name for c in s.cells}) == 16
    first, last = s.cells[0], s.cells[-1]
    assert first.name == "pixels-k-means-digits-best-seed0-n_clusters=5" and first.facts["model"] == "pixels + k-means"
    assert last.words == dict(dataset="digits", on="test", model="dec", seed=6, preset="paper", n_clusters=5, pretrain_epochs=100., latent_dim=16, channels=[8, 16])
    assert last.facts == dict(model="DEC", dataset="digits", preset="paper", seed=6, scored_on="test", parameters="channels=[8, 16], latent_dim=16, n_clusters=5, pretrain_epochs=100")
    assert last.cached


def test_without_blocks_and_the_same_cell_twice(file):
    assert [c.facts["seed"] for c in read_study(file("model: pixels_kmeans\nseed: 0-2")).cells] == [0, 1, 2]
    twice = "blocks:\n  - {model: pixels_kmeans, seed: 0-2}\n  - {model: PIXELS + KMEANS, seed: 1-3}"
    assert [c.facts["seed"] for c in read_study(file(twice)).cells] == [0, 1, 2, 3]


@pytest.mark.parametrize("old, new, says", [
    ("pixels_kmeans", "pixel_kmeanz", "s.yaml, block 1: unknown model 'pixel_kmeanz'. Did you mean "),
    ("preset: paper", "preset: papers", "block 2: unknown preset 'papers'. Did you mean 'paper'"),
    ("preset: paper", "prest: paper", "block 2: unknown key 'prest'. Did you mean 'preset'"),
    ("title: T", "titel: T", "s.yaml: unknown key 'titel'. Did you mean 'title'"),
    ("latent_dim: [", "latentdimm: [", "block 2: unknown parameter of DEC 'latentdimm'. Did you mean 'latent_dim'"),
    ("seed: 0-1", "seed: 1-0", "block 1: seed: '1-0' counts down; write 0-1"),
    ("seed: 0-1", "seed: x", "block 1: seed='x' must be a whole number"),
    ("seed: 0-1", "seed: []", "block 1: seed: the list is empty"),
    ("latent_dim: [8, 16]", "latent_dim: 8", "block 2: vary: latent_dim=8 must be a list"),
    ("on: test", "on: tset", "block 1: unknown split to score"),
    ("dataset: digits", "dataset: nowhere.npz", "block 1: "),
    ("blocks:", "blocks: 3\nrest:", "s.yaml: unknown key 'rest'"),
    ("title: T", "title: [", "s.yaml cannot be read"),
    ("title: T", "compare: {score: [nmi]}", "s.yaml: unknown key 'score'. Did you mean 'scores'"),
])
def test_what_is_wrong_is_said_with_its_place(file, old, new, says):
    with pytest.raises(ValueError) as e: read_study(file(TEXT.replace(old, new)))
    assert says in str(e.value)


def test_two_files_of_one_name_are_refused(file, stripes, tmp_path):
    import shutil
    (tmp_path / "other").mkdir()
    other = shutil.copy(stripes, tmp_path / "other" / "stripes.npz")
    with pytest.raises(ValueError, match="runs of one name"): make_study(dict(model="pixels_kmeans", dataset=[stripes, other]))


def test_studies_are_found_by_name(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    here = file("model: pixels_kmeans", "studies/mine.yaml")
    assert find_study("mine").resolve() == here and find_study("studies/mine.yaml").resolve() == here
    assert find_study("digits").name == "digits.yaml", "those of the checkout, or of the package"
    with pytest.raises(FileNotFoundError, match="Did you mean 'mine'"): find_study("mime")
    with pytest.raises(FileNotFoundError): find_study("elsewhere/mine.yaml")


def test_every_study_of_the_repository_can_be_read(monkeypatch):
    for path in sorted(studies.studies_folders()[-1].glob("*.yaml")):
        monkeypatch.setattr(studies, "_cell", lambda words, given, data_dir: (_ for _ in ()).throw(AssertionError) if not words.get("model") else studies.Cell(repr((words, given)), words, {}, False))
        assert read_study(path).cells, path     # which sets are at hand differs from machine to machine


def test_states(tmp_path):
    s = make_study(dict(model="pixels_kmeans", seed="0-3"))
    finished, failed, running, dead = (c.name for c in s.cells)
    (tmp_path / finished).mkdir()
    (tmp_path / finished / "run.json").write_text("{}")
    failure(tmp_path, failed).write_text("why")
    for name in (running, dead): partial(tmp_path / name).mkdir()
    lock = lock_of(tmp_path, running)
    with lock: found = [state_of(tmp_path, c.name) for c in s.cells]
    assert found == ["finished", "failed", "running", "missing"] and state_of(tmp_path, running) == "missing"


def test_time_is_that_of_the_likest_runs():
    s = make_study(dict(blocks=[dict(model="pixels_kmeans", seed="0-1"), dict(model="pixels_kmeans", parameters=dict(n_clusters=3)), dict(model="pca_kmeans")]))
    recorded = pd.DataFrame([dict(s.cells[0].facts, seconds=t) for t in (1., 9., 2.)] + [dict(s.cells[0].facts, parameters="n_clusters=7", seconds=20.)])
    got = estimates(s.cells, recorded)
    assert got[:3] == [2., 2., np.median([1, 9, 2, 20])] and np.isnan(got[3])


def rows(protocol=1, **more):
    found = [dict(dataset="d", model=m, preset=p, parameters="", scored_on="test", protocol=protocol, seed=s, nmi=v)
             for m, p, values in (("A", "best", [.5, .6, .7]), ("B", "best", [.65, .7, .9]), ("B", "paper", [.1, .2, None])) for s, v in enumerate(values)]
    return pd.DataFrame(found).assign(missing=lambda r: r.nmi.isna(), **more)


def test_means_intervals_and_paired_differences():
    got = summarise(rows(), ["nmi"], against="a").set_index(["model", "preset"])
    a, b, c = got.loc[("A", "best")], got.loc[("B", "best")], got.loc[("B", "paper")]
    t = stats.t.interval(.95, 2, loc=.75, scale=stats.sem([.65, .7, .9]))
    assert np.allclose([b["mean"], b.sd, b.n, b.low, b.high], [.75, np.std([.65, .7, .9], ddof=1), 3, *t])
    test = stats.ttest_rel([.65, .7, .9], [.5, .6, .7]).confidence_interval(.95)
    assert np.allclose([b.difference, b.difference_low, b.difference_high, b.pairs], [.15, test.low, test.high, 3])
    assert np.isnan(a.difference) and (c.n, c.pairs, c.missing) == (2, 2, "2") and np.isclose(c.difference, -.4)
    assert np.isnan(interval([1.])).all() and as_text(dict(n=0)) == "–" and as_text({"n": 1, "mean": .5}) == "0.500"


def test_formats_say_the_same():
    summary = summarise(rows(), ["nmi"], against="A")
    text, csv, latex = (write_table(summary, f) for f in ("text", "csv", "latex"))
    assert "0.600 ± 0.100 [0.352, 0.848]" in text and "missing" in text and "scored_on" not in text
    assert r"0.600 $\pm$ 0.100 [0.352, 0.848]" in latex and r"\begin{tabular}" in latex and r"$\Delta$ nmi" in latex and "$-$0.400" in latex
    import io
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(csv)).drop(columns=["missing", "parameters"]), summary.drop(columns=["missing", "parameters"]), check_dtype=False)
    with pytest.raises(ValueError, match="Did you mean 'latex'"): write_table(summary, "latx")


def test_protocols_are_never_mixed():
    with pytest.raises(ValueError, match="9 of version 1, 3 of version 2"): summarise(pd.concat([rows(), rows(2).head(3)]), ["nmi"])


def test_an_unclear_baseline_is_refused():
    r = rows()
    r = pd.concat([r, r[r.model == "A"].assign(parameters="x=1"), r[r.model == "A"].assign(parameters="x=2", nmi=.1)])
    with pytest.raises(ValueError, match="2 groups of A"): summarise(r[(r.model == "B") | (r.parameters != "")], ["nmi"], against="A")


def test_rows_of_folders_and_of_the_kept_table(done, stripes, tmp_path):
    "Two runs of three are in the folder, under names given by hand; the third is missing. Then the folder is a file beside the study"
    small = json.loads(next(done.glob("vaesim*")).joinpath("run.json").read_text())["parameters"]
    s = make_study(dict(model="vaesim", dataset=stripes, seed="0-2", parameters=small), "s")
    got = cell_rows(s, done)
    assert got.missing.tolist() == [False, False, True] and got.nmi.notna().tolist() == [True, True, False] and set(got.dataset) == {"stripes"}
    text = table(s, done)
    assert text.splitlines()[1].split()[-1] == "2" and "missing" in text
    tidy(done).to_csv(tmp_path / "s.csv", index=False)
    kept = Study("s", s.cells, path=tmp_path / "s.yaml")
    assert table(kept, tmp_path / "nothing") == text
    assert status(kept, tmp_path / "nothing").seconds.notna().all()
    assert "VAESim" in table(None, done) and table(None, tmp_path / "s.csv") == table(None, done)
    with pytest.raises(ValueError, match="no finished runs"): table(s, tmp_path / "nothing")


def test_a_lock_that_nobody_holds_is_none(tmp_path):
    (tmp_path / ".locks").mkdir()
    FileLock(tmp_path / ".locks" / "x.lock").acquire().lock.release()
    assert not studies.is_locked(tmp_path, "x")
