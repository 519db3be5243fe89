"Trackers: one fit is one tracked run, with everything in it; what is missing is said at once, and what fails costs nothing."
import pickle
from importlib.util import find_spec

import pytest
from conftest import images, mlp, quick_run, same_weights, save_stripes, tiny

from medstrat.parts import trackers
from medstrat.parts.trackers import Tracker
from medstrat.training.parameters import parameters

each = pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.skipif(find_spec(k) is None, reason=f"{package} is not installed"))
                                        for k, package in trackers.PACKAGES.items() if k in ("mlflow", "tensorboard")])
few = dict(pretrain_epochs=2, epochs=2, update_interval=2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(kind, folder):
    "The only run in a folder: its hyper-parameters (names), and {name of a number: {step: value}}"
    if kind == "mlflow":
        from mlflow.tracking import MlflowClient
        client = MlflowClient(f"file:{folder}/mlruns")
        run, = client.search_runs([client.get_experiment_by_name("medstrat").experiment_id])
        assert run.info.status == "FINISHED"
        return run.data.params, {k: {m.step: m.value for m in client.get_metric_history(run.info.run_id, k)} for k in run.data.metrics}
    import yaml
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    version, = (folder / "tensorboard").glob("*/version_*")
    events = EventAccumulator(str(version)).Reload()
    numbers = {k: {e.step: e.value for e in events.Scalars(k)} for k in events.Tags()["scalars"] if k != "hp_metric"}
    return yaml.unsafe_load((version / "hparams.yaml").read_text()), numbers


@each
@pytest.mark.parametrize("devices", [1, 2])
def test_one_fit_is_one_run(kind, devices, here):
    a = mlp(tracker=kind, devices=devices, **few).fit(images())
    settings, numbers = read(kind, here)
    assert settings["method"] == "DEC" and set(settings) == {"method", "data", "n"} | set(parameters(type(a))) - set(parameters(type(a), "machine", "module"))
    for phase in ("pretrain", "refine"):
        rows = a.history_[a.history_.phase == phase]
        assert numbers[f"{phase}/loss"] == pytest.approx(dict(zip(rows.epoch, rows.loss)), rel=1e-6)
    assert "refine/changed" in numbers and not any("seconds" in k for k in numbers)
    assert pickle.loads(pickle.dumps(a)).tracker_.run == a.tracker_.run and same_weights(a, mlp(devices=devices, **few).fit(images()))


@each
def test_scores_of_a_run_and_several_starts(kind, here):
    quick_run(save_stripes(here / "set.npz"), here / "runs", tracker=kind)
    settings, numbers = read(kind, here)
    assert settings["method"] == "pixels + k-means" and settings["data"] == "set" and 0 <= numbers["score/nmi"][0] <= 1
    (here / "more").mkdir()
    with pytest.MonkeyPatch.context() as m:
        m.chdir(here / "more")
        mlp(tracker=kind, n_starts=2, **few).fit(images())
    assert {"start 1/pretrain/loss", "start 2/pretrain/loss"} <= set(read(kind, here / "more")[1])


@each
def test_what_a_tracker_does_wrong_costs_nothing(kind, here):
    (here / dict(mlflow="mlruns", tensorboard="tensorboard")[kind]).write_text("no folder")
    with pytest.warns(UserWarning, match=f"tracker='{kind}' does not work and is left alone") as said: a = mlp(tracker=kind, **few).fit(images())
    assert sum("left alone" in str(w.message) for w in said) == 1 and a.tracker_.broken and same_weights(a, mlp(**few).fit(images()))


@pytest.mark.parametrize("kind", ["mlflow", "tensorboard"])
def test_a_missing_package_is_said_before_any_training(kind, untrained, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"tracker='{kind}' needs the package '{kind}.*pip install {kind}"): tiny(tracker=kind).fit(images())
    with pytest.raises(ValueError, match="unknown value of tracker .wandb.. There are: mlflow, tensorboard"): tiny(tracker="wandb").fit(images())


def test_what_is_no_number_is_left_out():
    seen = []
    class Logger:
        version = "1"
        def save(self): pass
        def log_metrics(self, numbers, step): seen.append(numbers)
    t = Tracker("mlflow", "x"); t.logger = Logger()
    t.numbers(dict(a=1, b="text", c=None, d=float("nan"), e=True), "score")
    assert seen == [{"score/a": 1.0}]
