"""The machine's limit: the products that a network's layers cannot do without, of matrices and convolutions, one by one.

Used by speed.py. A layer has three of them: forward, for the gradient of its input, for the gradient of its weights.
"""
import statistics
import time

import torch
from torch import nn


def now():
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter()


def layers_of(net, run):
    "The layers with products that `run()` passes: (module, shape in, shape out, does the input need a gradient, do the weights)."
    seen, kinds = [], (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    note = lambda m, given, out: seen.append((m, given[0].shape, out.shape, given[0].requires_grad, m.weight.requires_grad))
    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, kinds)]
    run()
    for h in hooks: h.remove()
    return seen


def flops(m, x, y, dx=True, dw=True):
    "Of a layer's products, forward and backward: each output (transposed: input) meets the weights of one row, in each of them."
    return 2 * (x if getattr(m, "transposed", False) else y).numel() * m.weight[0].numel() * (1 + dx + dw)


def products(m, x, y, dx, dw, dtype):
    "A layer's products, as functions without arguments that do nothing else."
    x, g, w = (*(torch.randn(shape, device=m.weight.device).to(dtype) for shape in (x, y)), m.weight.detach().to(dtype))
    if isinstance(m, nn.Linear): return [lambda: x @ w.T, *[lambda: g @ w] * dx, *[lambda: g.T @ x] * dw]
    x, g, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, g, w))
    how = m.stride, m.padding, m.dilation, m.transposed, m.output_padding, m.groups
    back = lambda *which: torch.ops.aten.convolution_backward(g, x, w, None, *how, [*which, False])
    return [lambda: torch.ops.aten.convolution(x, w, None, *how), *[lambda: back(True, False)] * dx, *[lambda: back(False, True)] * dw]


def seconds_of(call, least):
    "The median of calls in at least so many seconds, five at least, after three that warm up."
    for _ in range(3): call()
    begin, taken = now(), []
    while len(taken) < 5 or now() - begin < least:
        start = now()
        call()
        taken.append(now() - start)
    return statistics.median(taken)
