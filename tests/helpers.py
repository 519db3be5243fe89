"What tests look at: drawn figures, memory, tensors; and slow words of equations. Imported by those that need it; what all share is in conftest.py."
import math
import tracemalloc
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.utils._python_dispatch import TorchDispatchMode


def overlapping(fig, texts):
    "Pairs of texts whose boxes overlap by more than a pixel when drawn."
    FigureCanvasAgg(fig).draw() # a closed figure has no canvas of its own
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()]
    return [(a, b) for (a, p), (b, q) in combinations(boxes, 2)
            if min(p.x1, q.x1) - max(p.x0, q.x0) > 1 and min(p.y1, q.y1) - max(p.y0, q.y0) > 1]


def check(fig):
    "Not left open in pyplot, not wider than a notebook, and drawable."
    assert not plt.get_fignums() and fig.get_size_inches()[0] <= 9.01
    FigureCanvasAgg(fig).draw()
    return fig


class Largest(TorchDispatchMode):
    "The number of values in the largest tensor that any operation returns"
    size = 0
    def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
        out = fn(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor): self.size = max(self.size, t.numel())
        return out


def memory(f):
    "The largest memory that `f` takes, in bytes"
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()


def slow_nt_xent(z1, z2, tau, denominator):
    "Eq. 1, one pair at a time, in float64, the exponentials shifted by the largest"
    z = np.concatenate([np.asarray(z1, np.float64), np.asarray(z2, np.float64)])
    b, total = len(z1), 0.0
    cos = lambda a, b: (a * b).sum() / math.sqrt((a * a).sum()) / math.sqrt((b * b).sum())
    for i in range(2 * b):
        j = i + b if i < b else i - b
        terms = [cos(z[i], z[k]) / tau for k in range(2 * b) if k != i and not (denominator == "negatives" and k == j)]
        total += max(terms) + math.log(sum(math.exp(t - max(terms)) for t in terms)) - cos(z[i], z[j]) / tau
    return total / (2 * b)


def pairs(seed, b, p, scale=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy((scale * rng.uniform(-1, 1, (b, p))).astype(dtype)) for _ in range(2)]
