"Phases: what is frozen, which stream, what of a loss that is no number."
import pytest
import torch

from medstrat.training.parameters import Settings
from medstrat.training.phases import ADVICE, Block, Moment, NonFiniteLoss, Phase, check_finite, course
from medstrat.training.seeds import mix_seed


def test_streams_of_phases():
    phases = Phase("warm up", 5), Phase("train", 5), Phase("train", 5, stream=0)
    seeds = [phase.seed(seed) for phase in phases for seed in range(9)]
    assert len(set(seeds)) == len(seeds)
    assert Phase("train", 5).seed(0) == 1550685491      # in every version of this package
    assert Phase("refine", 5, stream=0).seed(7) == mix_seed(7, 0)


def test_what_is_frozen():
    layer = lambda: torch.nn.Linear(2, 2)
    net = torch.nn.ModuleDict(dict(encoder=torch.nn.Sequential(layer(), layer()), encoder2=layer(), decoder=layer()))
    assert Phase("all", 1).frozen(net) == []
    assert Phase("one", 1, learns=("encoder",)).frozen(net) == [net["encoder2"], net["decoder"]]    # a name that begins alike is another
    assert Phase("two", 1, learns=("encoder", "encoder2")).frozen(net) == [net["decoder"]]
    with pytest.raises(ValueError, match=r"phase 'three' trains \['decodr'\], but the networks are \['decoder', 'encoder', 'encoder2'\]"): Phase("three", 1, learns=("decodr", "encoder")).frozen(net)


def test_a_course():
    at = course(Settings(lr=1e-2, lr_schedule="cosine", lr_drop=None, lr_drop_every=None))
    assert at["lr"] == 1e-2 and at["lr_factor"](Moment(progress=0.0)) == 1 and at["lr_factor"](Moment(progress=1.0)) == pytest.approx(0, abs=1e-6)


def test_a_block_keeps_nothing_by_itself(): assert Block([], fetch=lambda fit: False).keep(None) is None


@pytest.mark.parametrize("terms, name", [(dict(kl=1.0), "loss"), (dict(kl=float("inf")), "kl"), (dict(reconstruction=float("nan"), kl=float("inf")), "reconstruction")])
def test_the_first_term_that_broke_is_named(terms, name):
    outputs = dict(loss=torch.tensor(torch.nan), z=torch.full((3,), torch.nan), note="text", **{k: torch.tensor(v) for k, v in terms.items()})
    with pytest.raises(NonFiniteLoss) as e: check_finite(outputs, "train", 2, 7)
    assert f"the term {name!r} of the loss" in str(e.value) and "phase 'train', epoch 3, step 8" in str(e.value) and str(e.value).endswith(ADVICE)
    check_finite(dict(outputs, loss=torch.tensor(1.0)), "train", 2, 7)
