"A cohort in stages, from files to a report: what is asked, what comes out, and what a stop in between changes (nothing)."
import filecmp
import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medstrat.data.cohort.folder import Cohort
from medstrat.data.cohort.pseudonyms import Pseudonyms
from medstrat.data.cohort.rules import Rules
from medstrat.data.cohort.tables import write_csv
from medstrat.data.images import ImageSet
from medstrat.runs import stratify as module
from medstrat.runs.stratify import STAGES, Interrupted, Question, start_stratify, stratify, known_columns, write_example
from medstrat.training.saving import load_model

TABLES = "assignments.csv", "files.csv", "associations.csv", "artefacts.csv", "characteristics.csv", "duplicates.csv"
SMALL = dict(model="VAE + k-means", clusters=3, epochs=2, channels=(4, 8), latent_dim=4, verbose=False, accelerator="cpu", precision="32-true", n_jobs=1, reading=dict(size=32))


@pytest.fixture(scope="module")
def example(tmp_path_factory): return write_example(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def done(example, tmp_path_factory):
    d = tmp_path_factory.mktemp("done")
    return stratify(**example, out=d / "report", cache_dir=d / "cache", **SMALL)


def test_what_comes_out(done, example):
    assert {p.name for p in done.iterdir()} == {*TABLES, "model.safetensors", "history.csv", "report.html", "record.json"}
    assigned, record = pd.read_csv(done / "assignments.csv"), json.loads((done / "record.json").read_text())
    assert list(assigned) == ["file", "cluster", "probability", "distance", "typical", "error", "outlier"] and len(assigned) == 60
    model = load_model(done / "model.safetensors")     # two epochs, and it says so
    assert model.signs_ and all(f"The method may not have worked. {s}" in record["alarms"] for s in model.signs_)
    assert record["sizes"] == np.bincount(assigned.cluster, minlength=3).tolist() and record["patients"] == 30 and record["missing"] == {}
    assert record["rules"]["colour"] == "gray" and record["rules"]["size"] == 32 and record["provenance"]["epochs"] == "given"
    assert set(record["seconds"]) == set(STAGES) and {"medstrat", "torch", "python"} <= set(record["versions"])
    found = pd.read_csv(done / "associations.csv").set_index("column")
    assert {"view", "age", "file_contrast"} <= set(found.index) and not {"patient", "file"} & set(found.index)
    assert found.of["age"] == "table" and found.of["file_contrast"] == "file" and "patients" in found.remark["age"]
    text = (done / "report.html").read_text()
    assert model.signs_[0].text in html.unescape(text)
    assert "file_contrast" in text and "Characteristics" in text


def test_the_model_knows_its_files_and_its_images(done):
    model = load_model(done / "model.safetensors")
    assert model.reading_["size"] == 32 and model.reading_["levels"] != "auto" and model.reference_["sizes"] == json.loads((done / "record.json").read_text())["sizes"]
    assert sum(n for _, n in model.reference_["units"]) == 30


class Stop(BaseException): "As a kill: nothing below gets a word in"


@pytest.mark.parametrize("at", STAGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_at_any_stage_changes_nothing(done, example, tmp_path, monkeypatch, at, when):
    out, words = tmp_path / "report", dict(**example, cache_dir=done.parent / "cache", **SMALL)
    work, calls = getattr(module, f"_{at}"), []
    def stopping(s, folder):
        if when == "after": work(s, folder)
        raise Stop
    monkeypatch.setattr(module, f"_{at}", stopping)
    with pytest.raises(Stop): stratify(out=out, **words)
    monkeypatch.undo()
    assert not out.exists()
    for name in STAGES:
        own = getattr(module, f"_{name}")
        monkeypatch.setattr(module, f"_{name}", lambda s, folder, own=own, name=name: (calls.append(name), own(s, folder)))
    folder = stratify(out=out, **words)
    assert calls == list(dict.fromkeys(["read", *STAGES[STAGES.index(at):]])), "what was finished is not done again; the rest is"
    assert all(filecmp.cmp(done / name, folder / name, shallow=False) for name in TABLES)
    a, b = load_model(done / "model.safetensors"), load_model(folder / "model.safetensors")
    assert all((v == b.module_.state_dict()[k]).all() for k, v in a.module_.state_dict().items())


def test_a_training_goes_on_from_its_checkpoint(example, tmp_path, monkeypatch):
    from medstrat.training import loop
    words, fit = dict(**example, cache_dir=tmp_path / "cache", **SMALL | dict(epochs=5)), module._fit
    whole = stratify(out=tmp_path / "whole", **words)
    saved, seal = [], loop.seal
    def stop_after_two(path):
        if len(saved) == 2: raise Stop
        saved.append(path)
        seal(path)
    monkeypatch.setattr(loop, "seal", stop_after_two)
    with pytest.raises(Stop): stratify(out=tmp_path / "report", **words)
    monkeypatch.undo()
    resumed = []
    def watching(s, folder):
        resumed.append((folder / "checkpoints" / "last.ckpt").exists())
        fit(s, folder)
    monkeypatch.setattr(module, "_fit", watching)
    folder = stratify(out=tmp_path / "report", **words)
    assert resumed == [True] and all(filecmp.cmp(whole / name, folder / name, shallow=False) for name in TABLES)


def test_an_interrupted_training_is_not_finished(example, tmp_path, monkeypatch):
    from medstrat.training.fitting import Fit
    words, follow = dict(**example, cache_dir=tmp_path / "cache", **SMALL), Fit.follow
    def interrupted(self, recipe, resume=None):
        follow(self, recipe, resume)
        self.interrupted = True
    monkeypatch.setattr(Fit, "follow", interrupted)
    with pytest.raises(Interrupted, match="stopped after 2 epochs"): stratify(out=tmp_path / "report", **words)
    monkeypatch.undo()
    assert stratify(out=tmp_path / "report", **words).exists()


def test_a_changed_file_makes_later_stages_again(example, tmp_path, monkeypatch):
    own = write_example(tmp_path / "own", 40)
    words = dict(**own, cache_dir=tmp_path / "cache", **SMALL)
    s = start_stratify(out=tmp_path / "report", **words)
    for stage in STAGES[:4]: getattr(s, stage)()
    s.stages.leave()
    again = start_stratify(out=tmp_path / "report", **words)
    for stage in STAGES[:4]: getattr(again, stage)()
    assert again.stages.found == ["measure", "compare", "fit"]
    again.stages.leave()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(f"{own['folder']}/007.png")
    changed = start_stratify(out=tmp_path / "report", **words)
    for stage in STAGES[:4]: getattr(changed, stage)()
    assert changed.stages.found == []
    changed.stages.leave()


@pytest.mark.parametrize("words, says", [
    (dict(model="vaed"), "Did you mean 'VaDE'"), (dict(model="transfer"), "learns from labels"), (dict(clusters=1), "at least 2"),
    (dict(latent_dimm=3), "Did you mean 'latent_dim'"), (dict(n_clusters=3), "called clusters"), (dict(preset="bset"), "Did you mean 'best'"),
    (dict(reading=dict(level=1)), "Did you mean 'levels'"), (dict(reading=dict(size=1)), "size"), (dict(seed=-1), "seed"),
    (dict(model="pixels + k-means", condition="view"), "no decoder that a condition could be told"), (dict(model="CDVaDE"), "needs a condition"),
    (dict(pseudonymise=True, key_file="{out}/key.csv"), "is handed on"), (dict(lr="fast"), "lr"),
])
def test_bad_questions_fail_before_anything_is_read(example, tmp_path, monkeypatch, words, says):
    monkeypatch.setattr(module, "read_folder", lambda *a, **k: pytest.fail("a file was opened"))
    words = {k: v.format(out=tmp_path / "report") if isinstance(v, str) else v for k, v in words.items()}
    with pytest.raises(ValueError, match=says): start_stratify(**example, out=tmp_path / "report", **{k: v for k, v in dict(model="vade", clusters=3).items() if k not in words}, **words)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"]


def test_a_folder_that_is_none_leaves_nothing_behind(tmp_path):
    with pytest.raises((ValueError, OSError)): stratify(tmp_path / "nowhere", out=tmp_path / "report", model="vade", clusters=3)
    assert not list(tmp_path.iterdir())


def test_an_array_file_and_a_named_set(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8)
    np.savez(tmp_path / "mine.npz", train_images=x[:40], test_images=x[40:], train_patient=np.arange(40) // 2, test_patient=20 + np.arange(20) // 2)
    folder = stratify(tmp_path / "mine.npz", out=tmp_path / "report", model="pixels + k-means", clusters=2)
    assigned = pd.read_csv(folder / "assignments.csv")
    assert len(assigned) == 60 and assigned.file.iloc[0] == "train 0" and json.loads((folder / "record.json").read_text())["patients"] == 30
    assert load_model(folder / "model.safetensors").reading_ is None
    with pytest.raises(ValueError, match="belong to a folder"): stratify(tmp_path / "mine.npz", out=tmp_path / "b", table="x.csv", model="kmeans", clusters=2)


@pytest.mark.parametrize("model", ["VAE + k-means", "vade"])
def test_the_elbow_is_called_so(example, tmp_path, model):
    small = {k: v for k, v in SMALL.items() if k not in ("model", "clusters")} | (dict(pretrain_epochs=2) if model == "vade" else {})
    folder = stratify(**example, out=tmp_path / "report", cache_dir=tmp_path / "cache", model=model, **small)
    record = json.loads((folder / "record.json").read_text())
    assert record["n_clusters"] >= 2 and record["chosen"].startswith("elbow of the k-means curve") and "elbow" in (folder / "report.html").read_text()
    assert ("principal components" in record["chosen"]) == (model == "vade")


@pytest.mark.parametrize("condition", ["view", ["file_contrast", "view"]])
def test_conditions_of_the_table_and_of_the_files(example, tmp_path, condition):
    folder = stratify(**example, out=tmp_path / "report", cache_dir=tmp_path / "cache", condition=condition, **SMALL)
    assert load_model(folder / "model.safetensors").covariates_.names == ([condition] if isinstance(condition, str) else condition)
    with pytest.raises(ValueError, match="Did you mean 'view'"): stratify(**example, out=tmp_path / "other", cache_dir=tmp_path / "cache", condition="veiw", **SMALL)


@pytest.mark.parametrize("words, says", [
    (dict(condition="veiw"), "Did you mean 'view'"), (dict(condition=["file_contrast", "gaps"]), "'gaps' is missing or infinite for 5 of 60"),
    (dict(clusters=61), "61 subgroups cannot be found in 60 images"), (dict(n=19, clusters="auto"), "an elbow cannot be seen with 19 images"),
])
def test_what_the_cohort_cannot_answer_is_said_before_anything_is_measured(example, tmp_path, monkeypatch, words, says):
    monkeypatch.setattr(module, "measure_files", lambda *a, **k: pytest.fail("the files were measured"))
    table = pd.read_csv(example["table"])
    write_csv(table.assign(gaps=np.where(table.index % 12, table.age, np.nan)), tmp_path / "t.csv")
    if n := words.pop("n", None): example = write_example(tmp_path / "few", n)
    with pytest.raises(ValueError, match=says): stratify(example["folder"], table=tmp_path / "t.csv", out=tmp_path / "report", cache_dir=tmp_path / "cache", **SMALL | words)
    assert not list(tmp_path.glob("report*")), "the corrected question finds the place free"


def test_names_that_could_act_in_a_spreadsheet_or_read_as_numbers(tmp_path):
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    names = ["=cmd|calc!A1.png", "+1.png", "-2.png", "@x.png", "007", "7", "1e3", "NA", "nan", "'=quoted.png", "<img src=x onerror=alert(1)>.png", *(f"{i}.png" for i in range(9))]
    sides = rng.permutation(np.arange(20, 40))
    for n, side in zip(names, sides, strict=True):
        with open(folder / n, "wb") as f: Image.fromarray(rng.integers(0, 256, (int(side), 20), np.uint8)).save(f, "PNG")
    write_csv(pd.DataFrame({"file": names, "=1+1": rng.permutation(["-a", "=b"] * 10)}), tmp_path / "t.csv")
    s = start_stratify(folder, table=tmp_path / "t.csv", out=tmp_path / "report", cache_dir=tmp_path / "cache", model="pixels + k-means", clusters=2, reading=dict(size=32))
    for stage in STAGES: getattr(s, stage)()
    assert dict(zip(s.cohort.images.table.file, s.artefacts.file_height, strict=True)) == dict(zip(names, sides, strict=True))
    assert "=1+1" in set(s.evidence["associations"].column) and {"-a", "=b"} <= set(s.evidence["characteristics"].index.get_level_values("value"))
    out = s.finish()
    assert "<img src=x onerror" not in (out / "report.html").read_text()
    assert not any(line.startswith(("=", "+", "-", "@")) for line in (out / "assignments.csv").read_text().splitlines())


def test_an_elbow_among_few_images(tmp_path):
    small = write_example(tmp_path, 24)
    out = stratify(**small, out=tmp_path / "report", cache_dir=tmp_path / "cache", **SMALL | dict(model="vade", clusters="auto", pretrain_epochs=2))
    assert 2 <= json.loads((out / "record.json").read_text())["n_clusters"] <= 24


def test_an_artefact_that_explains_everything_is_said_first(tmp_path):
    "Two halves that differ by exposure alone: the alarm, and the option that runs again"
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for i in range(60): Image.fromarray((rng.integers(0, 60, (40, 40)) + 150 * (i % 2)).astype(np.uint8)).save(folder / f"{i:02}.png")
    out = stratify(folder, out=tmp_path / "report", cache_dir=tmp_path / "cache", model="pixels + k-means", clusters=2, reading=dict(size=32))
    record = json.loads((out / "record.json").read_text())
    assert record["alarms"][1] == "pixels + k-means cannot be told a condition; add --model vade for that."
    assert "--condition file_" in record["alarms"][0] and "The subgroups go with an artefact" in (out / "report.html").read_text()


def test_pseudonyms_reach_everything_and_the_key_stays_outside(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names, patients = [f"SECRETFILE{i:02}.png" for i in range(40)], [f"SECRETNAME{i // 2}" for i in range(40)]
    for n in names: Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(folder / n)
    (folder / "SECRETFILE99.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    write_csv(pd.DataFrame(dict(file=names, patient=patients, age=rng.normal(50, 9, 40))), tmp_path / "t.csv")
    out = stratify(folder, table=tmp_path / "t.csv", out=tmp_path / "report", cache_dir=tmp_path / "cache", pseudonymise=True, **SMALL)
    for p in out.iterdir(): assert b"SECRET" not in p.read_bytes().replace(b"SECRETX", b""), p.name
    key = tmp_path / "report.key.csv"
    assert key.exists() and set(Pseudonyms(key).numbers["file"]) == {*names, "SECRETFILE99.png"} and key.stat().st_mode & 0o77 == 0
    assigned = pd.read_csv(out / "assignments.csv")
    assert set(assigned.file) <= set(Pseudonyms(key).numbers["file"].values()) and len(assigned) == 40


def test_what_follows_the_training_never_costs_it(example, tmp_path, monkeypatch):
    def broken(*a, **k): raise RuntimeError("no picture today")
    for name in ("associations", "characteristics", "map_of", "write_report"): monkeypatch.setattr(module, name, broken)
    out = stratify(**example, out=tmp_path / "report", cache_dir=tmp_path / "cache", **SMALL)
    record = json.loads((out / "record.json").read_text())
    assert {"associations", "characteristics", "embedding", "report"} <= set(record["missing"]) and (out / "model.safetensors").exists() and not (out / "report.html").exists()
    assert any("associations" in a for a in record["alarms"])


def test_the_machine_is_no_part_of_the_question(example, tmp_path):
    a = Question(**example, model="vade", clusters=3, parameters=dict(accelerator="cpu")).to_dict()
    assert a == Question(**example, model="VaDE", clusters=3, parameters=dict(verbose=False)).to_dict()
    assert a != Question(**example, model="vade", clusters=4).to_dict() and json.loads(json.dumps(a)) == a


def test_twins_are_listed_and_those_of_two_patients_come_first(tmp_path):
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    pictures = rng.integers(0, 256, (20, 40, 40), np.uint8)
    for i, x in enumerate([*pictures, pictures[3], pictures[4]]): Image.fromarray(x).save(folder / f"{i:02}.png")
    write_csv(pd.DataFrame(dict(file=[f"{i:02}.png" for i in range(22)], patient=[*range(20), 3, 11])), tmp_path / "t.csv")
    out = stratify(folder, table=tmp_path / "t.csv", out=tmp_path / "report", cache_dir=tmp_path / "cache", model="pixels + k-means", clusters=2, reading=dict(size=32))
    pairs, record = pd.read_csv(out / "duplicates.csv"), json.loads((out / "record.json").read_text())
    assert pairs[["image_a", "image_b", "kind"]].values.tolist() == [["03.png", "20.png", "file"], ["04.png", "21.png", "file"]]
    assert pairs[["patient_a", "patient_b"]].values.tolist() == [[3, 3], [4, 11]]
    said, = [a for a in record["alarms"] if "two patients" in a]
    assert said.startswith("1 pairs") and "04.png and 21.png" in said and len(pd.read_csv(out / "assignments.csv")) == 22


def test_several_slices_of_one_file_are_no_copies_and_one_patient(tmp_path):
    nib = pytest.importorskip("nibabel")
    folder, rng = tmp_path / "volumes", np.random.default_rng(0)
    folder.mkdir()
    for i in range(8): nib.save(nib.Nifti1Image(rng.normal(0, 1, (20, 20, 9)).astype(np.float32), np.eye(4)), folder / f"{i}.nii.gz")
    out = stratify(folder, out=tmp_path / "report", cache_dir=tmp_path / "cache", model="pixels + k-means", clusters=2, reading=dict(size=32, every=4))
    assigned, record = pd.read_csv(out / "assignments.csv"), json.loads((out / "record.json").read_text())
    assert list(assigned)[:2] == ["file", "slice"] and assigned.groupby("file").size().min() > 1 and record["patients"] == 8
    assert not len(pd.read_csv(out / "duplicates.csv"))


def test_the_label_is_tested_by_its_names():
    table = pd.DataFrame(dict(file=list("abcd"), folder=["x", "x", "y", "y"], label=[0, 0, 1, 1], age=[1., 2, 3, 4], patient=[1, 1, 2, 2]))
    images = ImageSet(np.zeros((4, 8, 8), np.uint8), table, target="label", classes={0: "well", 1: "ill"})
    of = lambda images: known_columns(Cohort(images, table, Rules(), [], "patient", None, Path(), ""))
    assert list(of(images)) == ["label", "age"] and list(of(images).label) == ["well", "well", "ill", "ill"]   # the folders say the same
    other = images.but(table=table.assign(folder=list("xyxy"), label=[0, -1, 1, 1]))
    assert list(of(other)) == ["folder", "label", "age"] and of(other).label.isna().tolist() == [False, True, False, False]
    assert list(images.table) == list(table)
