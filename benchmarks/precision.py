"""Do 32 bits and bfloat16 give the same answers? Every metric of methods × seeds, one row a run; the differences beside the spread of the seeds.

    python benchmarks/precision.py precision.csv [--models IDEC VaDE …] [--dataset digits] [--seeds 0 1 2 3 4] [--epochs 20] [--pretrain_epochs 60]

What is in the file already is not run again.
"""
import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from medstrat.data.sources import load_dataset
from medstrat.evaluation.metrics import Encoded
from medstrat.evaluation.protocol import evaluate
from medstrat.training.registry import get_method

SCORES = ("one_to_one_accuracy", "nmi", "ari", "stat_accuracy", "knn_accuracy", "probe_accuracy")

def scores(model, splits):
    "Of the test images, by the protocol of every run."
    parts = {name: Encoded(*model.encode(part), part.labels) for name in splits.split_names for part in [getattr(splits, name)]}
    return evaluate(parts, on="test", n_clusters=model.n_clusters_, seed=model.random_state_).metrics

def table_of(runs):
    "A row a method and score: both means, the mean difference on the same seeds, the seeds' spread, and p of a paired t-test."
    from scipy.stats import ttest_rel
    rows = []
    for (model, score), g in runs.melt(["model", "seed", "precision"], list(SCORES), "score").groupby(["model", "score"], sort=False):
        a, b = g.pivot(index="seed", columns="precision", values="value")[["32-true", "bf16-mixed"]].dropna().to_numpy().T
        spread = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        rows.append(dict(model=model, score=score, fp32=a.mean(), bf16=b.mean(), difference=np.mean(b - a), spread=spread,
                         p=ttest_rel(a, b).pvalue if spread else 1.0, seeds=len(a)))
    return pd.DataFrame(rows)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=Path)
    add("--models", nargs="+", default=["DEC", "IDEC", "VaDE", "VAESim"])
    add("--dataset", default="digits")
    add("--seeds", nargs="+", type=int, default=range(5))
    for name, value in dict(epochs=20, pretrain_epochs=60, n_clusters=10, n_starts=1).items(): add(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    splits, rows = load_dataset(a.dataset), pd.read_csv(a.file).to_dict("records") if a.file.exists() else []
    for model in a.models:
        cls = get_method(model)
        more = {k: v for k, v in vars(a).items() if k in cls.__dataclass_fields__}
        for seed, precision in ((s, p) for s in a.seeds for p in ("32-true", "bf16-mixed")):
            asked = dict(model=cls.name, dataset=splits.name, seed=seed, precision=precision) | more
            if any(all(row[k] == v for k, v in asked.items()) for row in rows): continue
            fitted = cls(random_state=seed, precision=precision, verbose=False, **more).fit(splits.train)
            found = scores(fitted, splits)
            rows.append(asked | {k: found[k] for k in SCORES})
            pd.DataFrame(rows).to_csv(a.file, index=False)
    print(table_of(pd.DataFrame(rows)).round(4).to_string(index=False))

if __name__ == "__main__": main()
