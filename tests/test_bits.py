"The table in the chapter on speed: what leaves the bits of a training as they are. (Resuming: test_contract.py.)"
import pytest
from conftest import cohort, history, known, ready, same_weights


def trained(method, precision, **more):
    return ready(method, **known(method, dict(precision=precision, tol=0.0) | more)).fit(cohort())


def same(a, b): return same_weights(a, b) and history(a).equals(history(b)) and (a.predict_proba(cohort()) == b.predict_proba(cohort())).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", ["VAESim", "contrastive AE", "DVC", "IDEC", "VaDE"])
def test_settings_of_the_machine_leave_the_bits_as_they_are(method, precision, tmp_path, capsys):
    first = trained(method, precision)
    for more in (dict(), dict(verbose=True), dict(num_workers=1), dict(checkpoint_dir=tmp_path / "c"), dict(cache_dir=tmp_path / "k"),
                 dict(cache_dir=tmp_path / "k")):     # kept, then taken
        assert same(trained(method, precision, **more), first), more
    other = {"32-true": "bf16-mixed", "bf16-mixed": "32-true"}[precision]
    assert not same_weights(trained(method, other), first)
