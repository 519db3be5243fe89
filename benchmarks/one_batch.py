"""The way of one batch through each loss of each method: which functions of the package are called, in which files.

    python benchmarks/one_batch.py [--calls] [model …]

One line a phase: calls, files, changes of file, and the files; `--calls` prints each call. Whoever reads a method reads these files. Target: no loss
needs more than six outside the loop (the method's page and its base, networks, the bound, a bank, a schedule), and none matches a name or looks a preset up. Exit status 1 where that does not hold.
"""
import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

import medstrat
from medstrat.data.images import ImageSet
from medstrat.training.settling import settle
from medstrat.training.loop import PhaseModule
from medstrat.training.batches import train_loader
from medstrat.training.registry import get_method, list_methods

PACKAGE = Path(medstrat.__file__).parent
LOOKED_UP = ("match_name", "plain", "find_value", "resolve", "check_value", "operations_of")   # nothing of a training step
SMALL = dict(epochs=1, decoder_epochs=1, pretrain_epochs=1, layer_epochs=1, n_clusters=5, batch_size=32, hidden=(16,), channels=(8, 16), latent_dim=4, input_size=32,
             random_state=0, accelerator="cpu", verbose=False)
THE_LOOP = ("training/phases.py", "training/loop.py")
VARIANTS = dict(   # settings under which a loss takes another way
    VAESim=[dict(orthogonality=0.5, update="batch", tau_schedule="linear")], DEC=[dict(pretrain="layer-wise", augment="affine")], DVC=[dict(refine_with="elbo")], VaDE=[dict(pretrain_kl=1.0)], Transfer=[dict(tune="all")])


def calls_of(loss, *args):
    "The calls of functions of the package while `loss` runs: [(file, function)]"
    seen = []
    def note(frame, event, arg):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and code.co_name[0] != "<": seen.append((str(Path(code.co_filename).relative_to(PACKAGE)), code.co_name))
    sys.setprofile(note)
    try: outputs = loss(*args)
    finally: sys.setprofile(None)
    return seen, outputs


def ways(estimator, images, **more):
    "Follow a recipe with one batch a phase; yields (phase, calls)"
    fit, found = settle(estimator, images, **more), []
    def one_batch(phase, resume=None):
        def traced(batch, at):
            seen, outputs = calls_of(phase.loss, batch, at)
            found.append((phase.name, seen))
            return outputs
        module = PhaseModule(fit.net, replace(phase, loss=traced), 0, 1, fit=fit)
        module.train()
        module.loss(next(iter(train_loader(fit.data, fit.s.batch_size, 0, lambda: 0))))
    fit.train = one_batch
    fit.follow(fit.net.recipe())
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--calls", action="store_true", help="print each call")
    a = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    digits = load_digits()
    images = ImageSet((digits.images[:100] * 15.9).astype(np.uint8), pd.DataFrame(dict(label=digits.target[:100], half=np.arange(100) % 2)), target="label")
    wrong = 0
    for cls in [get_method(m) for m in a.models] or list_methods():
        for variant in [{}, *VARIANTS.get(cls.__name__, [])]:
            known = cls.__dataclass_fields__
            estimator = cls(**{k: v for k, v in (SMALL | variant).items() if k in known})
            if cls.__name__ == "CDVaDE": estimator.set_params(condition="half")
            for phase, seen in ways(estimator, images):
                files = list(dict.fromkeys(f for f, _ in seen if f not in THE_LOOP))
                changes = sum(x[0] != y[0] for x, y in zip(seen, seen[1:]))
                bad = [n for _, n in seen if n in LOOKED_UP]
                wrong += len(files) > 6 or bool(bad)
                what = f"{cls.name} {variant or ''}".strip()
                print(f"{what:<46} {phase:<9} {len(seen):>3} calls, {len(files)} files, {changes:>2} changes of file: {', '.join(files)}" + (f"; looked up: {bad}" if bad else ""))
                if a.calls: print(*(f"    {f}: {n}" for f, n in seen), sep="\n")
    return wrong > 0


if __name__ == "__main__": sys.exit(main())
