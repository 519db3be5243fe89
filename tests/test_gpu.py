"On a GPU: no step waits for it, and a training there tells what one on the CPU tells."
import pytest
import pytorch_lightning as pl
import torch
from conftest import ALL, cohort, history, known, ready

from medstrat.training.phases import NonFiniteLoss

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
              pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]


class Watched(pl.Callback):
    "From a batch's arrival on the GPU to the step of the optimiser, whatever waits for the GPU raises."
    steps = 0

    def on_train_batch_start(self, trainer, module, batch, i):
        self.steps += 1
        if i: torch.cuda.set_sync_debug_mode("error")     # the first step of an epoch may look things up

    def on_train_batch_end(self, *_): torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", ALL)
def test_no_step_waits_for_the_gpu(method):
    watched = Watched()
    try: a = ready(method, **known(method, dict(tol=0.0, trainer_options=dict(callbacks=[watched])))).fit(cohort())
    finally: torch.cuda.set_sync_debug_mode("default")
    assert watched.steps > 0 or not len(a.history_)


@pytest.mark.parametrize("method", ALL)
def test_losses_on_the_gpu_are_those_on_the_cpu(method):
    told = [history(ready(method, **known(method, dict(accelerator=where, precision="32-true"))).fit(cohort())) for where in ("cpu", "gpu")]
    assert list(told[0]) == list(told[1]) and len(told[0]) == len(told[1])
    if len(told[0]): assert told[1].loss.iloc[0] == pytest.approx(told[0].loss.iloc[0], rel=.05)


def test_a_loss_that_breaks_is_told_at_the_end_of_the_epoch():
    a = ready("AE + k-means", lr=1e30)
    with pytest.raises(NonFiniteLoss, match="epoch"): a.fit(cohort())
