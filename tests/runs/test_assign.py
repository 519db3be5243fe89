"New patients: read by the model's rules, compared with what was usual, refused where the model could not have known them."
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medstrat.runs import assign as module
from medstrat.runs.assign import assign_folder, compare_sizes, in_words
from medstrat.runs.reference import Reference
from medstrat.runs.stratify import stratify, write_example
from medstrat.training.saving import load_model

SMALL = dict(model="PCA + k-means", clusters=3, latent_dim=4, verbose=False, n_jobs=1, reading=dict(size=32))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    d = tmp_path_factory.mktemp("first")
    example = write_example(d, 120)
    return dict(folder=example["folder"], table=example["table"], report=stratify(**example, out=d / "report", cache_dir=d / "cache", **SMALL), cache=d / "cache")


@pytest.fixture
def model(first): return first["report"] / "model.safetensors"


def save(pictures, folder, mode=None, start=0):
    folder.mkdir(exist_ok=True)
    for i, x in enumerate(pictures, start): Image.fromarray(x, mode).save(folder / f"{i:03}.png")
    return folder


def test_the_same_files_get_the_same_rows(first, model, tmp_path):
    found = assign_folder(model, first["folder"], tmp_path / "new", first["table"], cache_dir=tmp_path / "cache")
    assert (tmp_path / "new" / "assignments.csv").read_bytes() == (first["report"] / "assignments.csv").read_bytes()
    assert [r["now"] for r in found["subgroups"]] == [r["then"] for r in found["subgroups"]] and found["chi_square"] == 0 and found["p"] == 1
    assert found["patients"] == 60 and found["share_outliers"] == found["share_outliers_then"]
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"assignments.csv", "outliers.csv", "files.csv", "summary.json", "record.json"}
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == found and in_words(found)[:-5] == found["notices"] and "to 32×32" in found["notices"][1]


def test_asked_the_same_nothing_is_done_and_asked_otherwise_it_is_refused(first, model, tmp_path, monkeypatch):
    words = dict(out=tmp_path / "new", cache_dir=tmp_path / "cache")
    found = assign_folder(model, first["folder"], **words)
    monkeypatch.setattr(module, "read_folder", lambda *a, **k: pytest.fail("done already"))
    assert assign_folder(model, first["folder"], **words) == found
    with pytest.raises(FileExistsError, match="another question: table"): assign_folder(model, first["folder"], table=first["table"], **words)


def test_other_images_are_unlike_anything_seen(model, tmp_path):
    rng = np.random.default_rng(0)
    found = assign_folder(model, save(rng.integers(0, 256, (12, 50, 70), np.uint8), tmp_path / "noise"), tmp_path / "new", cache_dir=tmp_path / "cache")
    assert found["outliers"] == 12 and len(pd.read_csv(tmp_path / "new" / "outliers.csv")) == 12 and "unlike anything seen: 12 images (100.0%" in in_words(found)[-1]


def test_a_shift_is_found(first, model, tmp_path):
    assigned = pd.read_csv(first["report"] / "assignments.csv")
    most = assigned.cluster.value_counts().index[0]
    folder = tmp_path / "one"
    folder.mkdir()
    for name in assigned.file[assigned.cluster == most]: (folder / name).write_bytes((module.Path(first["folder"]) / name).read_bytes())
    found = assign_folder(model, folder, tmp_path / "new", cache_dir=tmp_path / "cache")
    assert found["p"] == .001 and found["subgroups"][most]["share_now"] == 1


def test_colour_where_gray_was_learned(first, model, tmp_path):
    gray = [np.asarray(Image.open(p)) for p in sorted(module.Path(first["folder"]).iterdir())[:30]]
    same = save([np.repeat(x[..., None], 3, -1) for x in gray], tmp_path / "rgb")
    found = assign_folder(model, same, tmp_path / "a", cache_dir=tmp_path / "cache")
    then = pd.read_csv(first["report"] / "assignments.csv").set_index("file").cluster
    assert found["images"] == 30 and (pd.read_csv(tmp_path / "a" / "assignments.csv").set_index("file").cluster == then[[f"{i:03}.png" for i in range(30)]]).all()
    stain = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    save(stain[:1], same, start=90)                     # 1 of 31: left out, and listed
    found = assign_folder(model, same, tmp_path / "b", cache_dir=tmp_path / "cache")
    files = pd.read_csv(tmp_path / "b" / "files.csv").set_index("file")
    assert found["images"] == 30 and files.status["090.png"] == "skipped" and "colour" in files.reason["090.png"]
    save(stain[1:], same, start=91)                     # 2 of 32: more than a twentieth
    with pytest.raises(ValueError, match=r"2 of 32 files are in colour \(such as 090\.png, 091\.png\)"): assign_folder(model, same, tmp_path / "c", cache_dir=tmp_path / "cache")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("c") and p.name != "cache"]


def test_a_model_of_arrays_is_refused_in_words(tmp_path):
    from conftest import images, tiny
    tiny("pixels + k-means", n_clusters=2).fit(images(30)).save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"does not say how its images were read .*predict\(X\)"): assign_folder(tmp_path / "m", tmp_path, tmp_path / "new")


def test_a_condition_comes_from_the_files_and_from_the_table(tmp_path):
    example = write_example(tmp_path / "first", 60)
    words = SMALL | dict(model="VAE + k-means", epochs=2, channels=(4, 8), accelerator="cpu", precision="32-true")
    report = stratify(**example, out=tmp_path / "report", cache_dir=tmp_path / "cache", condition=["file_contrast", "view"], **words)
    new = dict(out=tmp_path / "new", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="'view'"): assign_folder(report / "model.safetensors", example["folder"], **new)
    assign_folder(report / "model.safetensors", example["folder"], table=example["table"], **new)
    assert (tmp_path / "new" / "assignments.csv").read_bytes() == (report / "assignments.csv").read_bytes()


def test_levels_of_deep_files_are_those_of_the_first_cohort(tmp_path):
    "16 bits by the range of the first cohort: the second, brighter by half, is not stretched to the same picture"
    rng, shape = np.random.default_rng(0), (40, 24, 24)
    x = (rng.integers(0, 1000, shape) + 3000 * (np.arange(40) % 2)[:, None, None]).astype(np.uint16)
    report = stratify(save(x, tmp_path / "a"), out=tmp_path / "report", cache_dir=tmp_path / "cache", **SMALL | dict(clusters=2))
    assert load_model(report / "model.safetensors").reading_["high"] == x.max()
    found = assign_folder(report / "model.safetensors", save(x // 2, tmp_path / "b"), tmp_path / "new", cache_dir=tmp_path / "cache")
    assert found["rules"]["high"] == x.max() and found["outliers"] > 15


def test_pseudonyms(first, model, tmp_path):
    out = tmp_path / "new"
    assign_folder(model, first["folder"], out, first["table"], pseudonymise=True, cache_dir=tmp_path / "cache")
    assert (tmp_path / "new.key.csv").exists() and pd.read_csv(out / "assignments.csv").file.dtype.kind == "i"
    assert not any(b"007.png" in p.read_bytes() for p in out.iterdir())


def test_sizes_with_patients_whole():
    usual = Reference([30, 10], [], [], None, 0, [[[1, 0], 30], [[0, 1], 10]])
    clusters, patients = np.array([0] * 8 + [1] * 8), np.repeat([0, 1], 8)
    one, many = compare_sizes(usual, clusters, patients), compare_sizes(usual, clusters)
    assert one["subgroups"][1] == dict(cluster=1, then=10, now=8, share_then=.25, share_now=.5) and one["chi_square"] == many["chi_square"]
    assert many["p"] < .2 and one["p"] <= 1
