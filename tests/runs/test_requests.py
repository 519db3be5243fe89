"Requests: every door reads the same, names of folders say what is in them, a folder is claimed by one."
import pytest

from medstrat import cli
from medstrat.runs.requests import Request, claim_folder, read_scalar, run_name


@pytest.mark.parametrize("text", ["16", "016", "-3", "1e-3", "1:30", "True", "true", "None", "null", "no", "none", "[8,16]", "[8, '16']", "{affine: 0.5}", "'16'", '"null"', "1_000", "nan", "b=c", " 5 ", "[a, null]", "é"])
def test_both_doors_read_the_same(text):
    from papermill.cli import _resolve_type
    assert repr(read_scalar(text)) == repr(_resolve_type(text)), "the first step is papermill's"
    assert cli.parse_parameters([f"x={text}"]) == {"x": read_scalar(text)} or text == "nan"


def test_values_of_both_doors():
    asked = Request("dec", parameters=cli.parse_parameters(["hidden=[8, 016]", "lr=1e-3", "image_size=null", "augment={affine: 0.5}", "n_clusters=007"]))
    asked.estimator()
    assert asked.parameters == dict(hidden=(8, 16), lr=0.001, image_size=None, augment={"affine": 0.5}, n_clusters=7)
    with pytest.raises(ValueError, match="epochs"): Request("dec", parameters=cli.parse_parameters(["epochs=1:30"])).estimator()


@pytest.mark.parametrize("name", ["encoder", "random_state", "preset"])
def test_networks_seed_and_preset_are_no_parameters(name):
    with pytest.raises(ValueError, match="unknown parameter"): Request("dec", parameters={name: 1}).estimator()


def test_names_of_folders(tmp_path):
    name = lambda **kw: run_name(r := Request(**kw), r.estimator())
    assert name() == "vaesim-digits-best-seed0"
    assert name(model="VAE_KMEANS", dataset="/some/where/Heart.npz", seed=3, preset="Paper", on="val+test", parameters=dict(latent_dim=16, channels=(4, 8))) \
        == "vae-k-means-heart-paper-seed3-on-val+test-channels=48-latent_dim=16"
    assert name(parameters=dict(verbose=False)) == name()
    assert "/" not in name(parameters=dict(checkpoint_dir="../a/b")) and not name(parameters=dict(checkpoint_dir="../a/b")).startswith(".")
    assert name(target="finding", group=False) == "vaesim-digits-best-seed0-group=false-target=finding"
    assert len(name(dataset="/x/" + "ü" * 200 + ".npz", parameters=dict(lr=0.5)).encode()) <= 150
    assert claim_folder(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a-2").mkdir()
    assert claim_folder(tmp_path, "a") == tmp_path / "a-3"


def test_folders_are_claimed_by_one_only(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool: claimed = list(pool.map(lambda _: claim_folder(tmp_path, "x"), range(40)))
    assert len(set(claimed)) == 40


def test_fewer_training_images(tmp_path):
    asked = Request("pixels + k-means", n_train=100)
    assert run_name(asked, asked.estimator()) == "pixels-k-means-digits-best-seed0-n_train=100" and asked.data()["n_train"] == 100
    for wrong in (0, "many", True, 2.5):
        with pytest.raises(ValueError, match=r"n_train=.* must be a whole number ≥ 1"): Request("pixels + k-means", n_train=wrong).estimator()
