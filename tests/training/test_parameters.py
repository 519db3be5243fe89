"Parameters: values against their hints, declarations by role, settings that stay as they are."
import copy
import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from medstrat.training.parameters import (
    RENAMED,
    ROLES,
    Columns,
    Count,
    Counts,
    Epochs,
    NonNegative,
    Positive,
    Settings,
    Share,
    check_value,
    param,
    parameters,
)


@pytest.mark.parametrize("value, hint, wanted", [
    ("16", Count | None, 16), (np.int64(16), Count, 16), (None, Count | None, None), (0, Epochs, 0), ([32, 64], Counts | None, (32, 64)),
    ("1e-3", Positive, 1e-3), (0, NonNegative, 0.0), (1, Share, 1.0), (True, bool, True), (True, Any, True),
    ("scanner", Columns | None, "scanner"), (["scanner", "age"], Columns | None, ("scanner", "age")),
])
def test_values_that_can_be_used(value, hint, wanted):
    found = check_value("p", value, hint)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize("value, hint, says", [
    (0, Count | None, "p=0 cannot be used"), (-1, Epochs, "p=-1"), (1.5, Count, "p=1.5"), ([], Counts | None, r"p=\[\]"), ((4, 0), Counts, "p="), (8, Counts, "p=8"),
    (0.0, Positive, "p=0.0"), (float("inf"), Positive, "p=inf"), (float("nan"), NonNegative, "p=nan"), (1.01, Share, "p=1.01"), (True, Count | None, "yes-or-no"),
    (False, Positive, "yes-or-no"), ("cosin", Literal["cosine", "dot"] | None, "unknown value of p 'cosin'.*Did you mean 'cosine'"),
    (np.zeros((3, 1)), Columns | None, r"fit\(X, condition=…\)"), ([], Columns, r"fit\(X, condition=…\)"), (["", "age"], Columns, "names of columns"),
])
def test_values_that_cannot(value, hint, says):
    with pytest.raises(ValueError, match=says): check_value("p", value, hint)


@dataclass(kw_only=True)
class Base:
    lr: Positive | None = param("learning rate", "training")
    verbose: bool = param("show a progress bar", "machine", True)


def test_a_class_without_a_parameter_of_a_role():
    assert parameters(Base, "network") == () and parameters(Base, "machine") == ("verbose",) and parameters(Base, *ROLES) == parameters(Base)
    with pytest.raises(ValueError, match="role"): parameters(Base, "machines of all kinds")


def test_a_field_that_was_not_declared():
    @dataclass(kw_only=True)
    class Careless(Base): tau: float = field(default=1.0)
    with pytest.raises(TypeError, match=r"Careless.tau must be declared by param"): parameters(Careless)


def test_old_names_lead_to_new_ones(): assert RENAMED["condition_on"] == "compare" and not set(RENAMED) & set(RENAMED.values())


def test_settings_cannot_be_changed():
    s = Settings(lr=1e-3, beta=1.0)
    for change in (lambda: setattr(s, "lr", 1), lambda: setattr(s, "new", 1), lambda: delattr(s, "beta")):
        with pytest.raises(AttributeError, match="do not change.*before fit"): change()
    assert repr(s) == "Settings(lr=0.001, beta=1.0)" and vars(s.but(beta=2, tau=3)) == dict(lr=1e-3, beta=2, tau=3) and s.beta == 1


def test_settings_say_what_they_lack():
    s = Settings(lr=1e-3)
    with pytest.raises(AttributeError, match="the settings have no parameter 'learning_rate'"): s.learning_rate
    assert not hasattr(s, "beta") and getattr(s, "beta", None) is None


def test_settings_travel():
    "To another process, or as a copy: neither may ask for an attribute for ever"
    s = Settings(lr=1e-3, channels=(4, 8))
    for other in (pickle.loads(pickle.dumps(s)), copy.deepcopy(s), copy.copy(s)): assert vars(other) == vars(s) and other is not s
