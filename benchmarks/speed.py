"""Images a second of each method, beside a bare loop, the machine's limit and other ways to an answer; and how time and memory grow.

    python benchmarks/speed.py [--parts speed growth answers] [--methods IDEC VaDE …] [--threads 1] [--repeats 3] [--peers FOLDER] [--out FOLDER]
    python benchmarks/speed.py --small      everything, tiny, in a minute or two

`speed`: images a second in the last phase of a training, the first epoch left out.
  fit      through the estimator
  bare     a plain PyTorch loop: the same networks, loss, hooks (the target is renewed), batch, precision and optimiser
  step     an autoencoder of the same layers, squared error, fused Adam: fp32, bf16 (autocast), that compiled, bf16 weights compiled
  limit    the products of the loss alone (of matrices, convolutions), forward and both backward, each measured at its shape and precision
  ClustPy  its method of this name with the same layers and batch, in fp32, its only precision
`growth`: seconds an epoch and peak memory by N, K and side. Exponents are slopes of logarithms; low and high: those between neighbours.
`answers`: seconds from images to clusters, and their NMI with labels: methods as they come, and what a user would take instead.

A process for each measurement; repeats alternate in order; medians. Writes speed.csv and growth.png. ClustPy and UMAP (for N2D) are installed
into a Python of their own, made in FOLDER or for this sitting, which sees the packages of this one; what cannot be had there is skipped.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning  # noqa: F401  what every fit loads is no growth
import torch
from limits import flops, layers_of, now, products, seconds_of
from others import ANSWERS, PEERS, answer, clustpy, having, peers
from torch import nn

from medstrat.methods.autoencoders import VAE, Autoencoder
from medstrat.training.devices import pick_device, pick_precision
from medstrat.training.method import Batch
from medstrat.training.phases import Moment, Phase
from medstrat.training.registry import get_method
from medstrat.training.settling import settle

NETWORKS = {   # side of the images, layers
    "mlp": (28, dict(network="mlp", hidden=(500, 500, 2000), latent_dim=10)),
    "mlp of DVC-2": (28, dict(network="mlp", hidden=(500, 500, 1000), latent_dim=10)),
    "conv": (32, dict(network="conv", channels=(32, 64, 128), latent_dim=32))}
METHODS = {"DEC": "mlp", "IDEC": "mlp", "VaDE": "mlp", "DVC-2": "mlp of DVC-2", "AE": "mlp",
           "conv VAE": "conv", "VAESim": "conv", "GMVAE": "conv"}
STEPS, CLUSTPY = ("fp32", "bf16", "compiled", "bf16 weights, compiled"), ("DEC", "IDEC", "VaDE")
PLAIN = dict(kind="ink", backbone="none", n_starts=1, n_init=1, augment="none", pretrain="end-to-end", pretrain_epochs=1, refine_epochs=0,
             tol=0.0, random_state=0, verbose=False)
TINY = dict(hidden=(32, 16), channels=(4, 8), latent_dim=4)

class Skipped(Exception): "It cannot be measured here; the reason is shown, and nothing is wrong."

def peak_gb():
    "The largest resident set of this process; getrusage would count the process that started it, too."
    status = Path("/proc/self/status")
    if status.exists(): return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9

def noise(folder, n, side):
    "A memory-mapped file of random images; it was not mapped while it was written."
    path, rng = Path(folder) / "images.npy", np.random.default_rng(0)
    with open(path, "wb") as f:
        np.lib.format.write_array_header_1_0(f, dict(descr="|u1", fortran_order=False, shape=(n, side, side, 1)))
        for i in range(0, n, 10_000): f.write(rng.bytes(min(10_000, n - i) * side * side))
    return np.load(path, mmap_mode="r")

def make(job):
    "The estimator of a job, without whatever else takes time."
    cls = {"AE": Autoencoder, "conv VAE": VAE}.get(job["case"]) or get_method(job["case"])
    layers = NETWORKS[job["network"]][1] | (TINY if job["small"] else {}) | (dict(init="diag") if job["case"] == "VaDE" else {})
    return having(cls, **PLAIN, **layers, image_size=job["side"], n_clusters=job["k"], batch_size=job["batch"], epochs=job["epochs"],
                  precision=job["precision"])

def fit(job, images):
    rows = make(job).fit(images).history_
    seconds = rows[rows.phase == rows.phase.iloc[-1]].seconds.iloc[1:]
    return len(images) * len(seconds) / seconds.sum(), ""

def at_last_phase(job, images, work):
    "Follow a recipe; nothing is trained, and in place of the last phase there is `work(fit, phase)`."
    fit, found = settle(make(job), images), []
    recipe = fit.net.to(fit.engine.device).recipe()
    last = [s for stage in recipe for s in getattr(stage, "phases", [stage]) if isinstance(s, Phase)][-1]
    fit.train = lambda phase, resume=None: found.append(work(fit, phase)) if phase is last else None
    fit.follow(recipe)
    return found[0]

def batches(images, batch, device, rng):
    for index in np.split(order := rng.permutation(len(images)), range(batch, len(order), batch)):
        yield torch.from_numpy(images[index]).to(device).permute(0, 3, 1, 2).float().div_(255), torch.from_numpy(index).to(device)

def loop(job, images, device, half, optimizer, loss, after=lambda epoch, outputs: None):
    "A plain training; images a second after the first epoch."
    rng = np.random.default_rng(0)
    for epoch in range(job["epochs"]):
        if epoch == 1: start = now()
        for x, index in batches(images, job["batch"], device, rng):
            with torch.autocast(device.type, torch.bfloat16, enabled=half): outputs = loss(epoch, x, index)
            optimizer.zero_grad()
            outputs["loss"].backward()
            optimizer.step()
            after(epoch, outputs)
    return len(images) * (job["epochs"] - 1) / (now() - start), ""

def rest(net, phase):
    "Training mode, but for what a phase does not train."
    net.train()
    for m in phase.frozen(net): m.eval().requires_grad_(False)

def bare(job, images):
    def train(fit, phase):
        net, done, steps = fit.net, 0, -(-len(fit.images) // job["batch"])
        rest(net, phase)
        at = lambda epoch: Moment(epoch, done, done / steps / phase.epochs, phase.epochs, steps * phase.epochs, phase.memory)
        @torch.no_grad()
        def after(epoch, outputs):
            nonlocal done
            done += 1
            if phase.after_step is not None: phase.after_step(fit, outputs, at(epoch))
            if phase.after_epoch is not None and done % steps == 0: phase.after_epoch(fit, at(epoch))
            if not net.training: rest(net, phase)    # all images were looked at
        optimizer = phase.optimizer([p for p in net.parameters() if p.requires_grad], lr=phase.lr)
        loss = lambda epoch, x, index: phase.loss(Batch(x, index), at(epoch))
        return loop(job, fit.images, fit.engine.device, fit.engine.half, optimizer, loss, after)
    return at_last_phase(job, images, train)

def step(job, images):
    compiled, weights, device = "compiled" in job["variant"], "weights" in job["variant"], pick_device()
    if compiled and device.type == "cpu" and not any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "clang++", "cl")):
        raise Skipped("no C++ compiler")
    made = settle(make(job), images).net
    net = nn.Sequential(made.encoder.body, nn.Flatten(), made.encoder.heads[0], made.decoder).to(device).train()
    if weights: net.bfloat16()
    error = lambda x: (net(x.bfloat16() if weights else x).float() - x).square().mean()
    error = torch.compile(error) if compiled else error
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    return loop(job, images, device, job["variant"] in ("bf16", "compiled"), optimizer, lambda epoch, x, index: dict(loss=error(x)))

def limit(job, images):
    def measured(fit, phase):
        rest(fit.net, phase)
        x, index = next(batches(images, job["batch"], fit.engine.device, np.random.default_rng(0)))
        layers = layers_of(fit.net, lambda: phase.loss(Batch(x, index), Moment(memory=phase.memory)))
        calls = [call for layer in layers for call in products(*layer, torch.bfloat16 if fit.engine.half else torch.float32)]
        with torch.no_grad(): seconds = sum(seconds_of(call, 0 if job["small"] else 0.3) for call in calls)
        total = sum(flops(*layer) for layer in layers)
        return len(x) / seconds, f"{total / len(x) / 1e6:.3g} MFLOP an image, {total / seconds / 1e9:.3g} GFLOP/s"
    return at_last_phase(job, images, measured)

def one(job):
    "Measure one job in this process."
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        images = None if job["what"] == "answer" else noise(folder, job["n"], job["side"])
        base, measure = peak_gb(), dict(fit=fit, bare=bare, step=step, limit=limit, ClustPy=clustpy, answer=answer)[job["what"]]
        try: value, note = measure(job, images)
        except Skipped as e: return dict(note=f"skipped: {e}")
        except Exception as e:
            traceback.print_exc()
            return dict(note=f"failed: {type(e).__name__}: {e}")
        del images
    if job["part"] == "growth": value = job["n"] / value
    return dict(value=value, note=note, peak_gb=peak_gb(), above_gb=peak_gb() - base, gpu_gb=torch.cuda.max_memory_allocated() / 1e9)

def measure(jobs, python, threads):
    "The results of jobs, measured in one process."
    path = os.pathsep.join(p for p in (str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")) if p)
    env = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")} | dict(PYTHONPATH=path)
    run = subprocess.run([str(python), __file__, "--one", json.dumps(jobs)], capture_output=True, text=True, env=env)
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"')]
    if len(found) < len(jobs) or any(r["note"].startswith("failed") for r in found): print(run.stderr[-3000:], file=sys.stderr)
    return found + [dict(note=f"failed: the process ended with status {run.returncode}")] * (len(jobs) - len(found))

def jobs_of(a):
    "All measurements of a sitting."
    jobs = []
    def add(part, case, what, name=None, **more):
        network = more.pop("network", METHODS.get(case, "mlp"))
        side = min(NETWORKS[network][0], 16 if a.small else 1000)
        jobs.append(dict(part=part, case=case, what=what, name=name or what, x=0, n=a.images, k=10, side=side, network=network, batch=a.batch,
                         epochs=a.epochs, precision=a.precision, small=a.small, data=a.data) | more)
    for m in a.methods if "speed" in a.parts else ():
        for what in ("fit", "bare", "limit", *["ClustPy"] * (m in CLUSTPY)): add("speed", m, what)
    for i, network in enumerate(dict.fromkeys(METHODS[m] for m in a.methods) if "speed" in a.parts else ()):
        for v in STEPS[:2] if a.small else STEPS: add("speed", "AE", "step", f"step, {v}", variant=v, network=network)
    for m in a.growth if "growth" in a.parts else ():
        if METHODS[m] == "conv": [add("growth", m, "fit", "side", x=x, side=x, n=-(-a.images // 4)) for x in a.side]
        else: [add("growth", m, "fit", by, x=x, epochs=2, **{by.lower(): x}) for by in "NK" for x in vars(a)[by.lower()]]
    for m in ANSWERS if "answers" in a.parts else (): add("answers", m, "answer", "to clusters")
    return jobs

def slopes(x, y):
    "The exponent a of y ∝ xᵃ by least squares of the logarithms, and the smallest and largest between neighbours."
    x, y = np.log(x), np.log(y)
    between = np.diff(y) / np.diff(x)
    return tuple(round(float(v), 3) for v in (np.polyfit(x, y, 1)[0], between.min(), between.max()))

def table_of(jobs, results, methods):
    "Medians; each method's rates beside its own fit's and the limit's; exponents."
    keys = ["part", "case", "network", "name", "x"]
    found = pd.DataFrame([{k: job[k] for k in keys} | r for i, job in enumerate(jobs) for r in results.get(i, [])])
    found = found.reindex(columns=[*keys, "value", "peak_gb", "above_gb", "gpu_gb", "note"])
    rows = found.groupby(keys, sort=False).agg(
        value=("value", "median"), low=("value", "min"), high=("value", "max"), runs=("value", "count"), peak_gb=("peak_gb", "median"),
        above_gb=("above_gb", "median"), gpu_gb=("gpu_gb", "median"), note=("note", lambda s: "; ".join(dict.fromkeys(s)))).reset_index()
    rows["unit"], parts = rows.part.map(dict(speed="img/s", growth="s an epoch", answers="s")), []
    speed = rows[rows.part == "speed"]
    for m in methods:
        own = speed[np.where(speed.name.str.startswith("step"), speed.network == METHODS[m], speed.case == m)].assign(case=m)
        rate = own.set_index("name").value
        parts.append(own.assign(fit_is=rate.get("fit") / own.value, of_limit=(own.value / rate.get("limit")).where(own.name.isin(["fit", "bare"])))
                     if {"fit", "limit"} <= set(rate.index) else own)
    parts.append(rows[rows.part == "growth"])
    for (case, by), g in rows[(rows.part == "growth") & rows.value.notna()].groupby(["case", "name"], sort=False):
        for note, y in (("seconds", g.value), ("memory above the start's", g.above_gb.clip(lower=1e-3))) if len(g) > 1 else ():
            a = dict(zip(("value", "low", "high"), slopes(g.x, y), strict=True))
            parts.append(pd.DataFrame([dict(part="growth", case=case, name=by, x=0, unit="exponent", note=note, **a)]))
    return pd.concat([*parts, rows[rows.part == "answers"]], ignore_index=True)

def text(table):
    "For people."
    def brief(v): return v if isinstance(v, str) else "" if not v or pd.isna(v) else f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}"
    names = ["part", "case", "name", "x", "value", "unit", "low", "high", "runs", "fit_is", "of_limit", "peak_gb", "note"]
    cells = [names, *([brief(v) for v in row] for row in table.reindex(columns=names).itertuples(index=False))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    side = [str.rjust if name in ("x", "value", "low", "high", "runs", "fit_is", "of_limit", "peak_gb") else str.ljust for name in names]
    return "\n".join("  ".join(f(*c) for f, *c in zip(side, row, widths, strict=True)).rstrip() for row in cells)

def draw(table, path):
    from matplotlib.figure import Figure
    figure, growth = Figure((9, 5.5), layout="constrained"), table[table.part == "growth"]
    axes = figure.subplots(2, 3)
    for i, by in enumerate(("N", "K", "side")):
        for j, (column, label, note) in enumerate((("value", "seconds an epoch", "seconds"), ("peak_gb", "peak memory, GB", "memory above the start's"))):
            axes[j, i].set(xscale="log", yscale="log", xlabel=by, ylabel=label)
            for case, g in growth[growth.name == by].groupby("case", sort=False):
                points, a = g[(g.unit != "exponent") & g.value.notna()], g[(g.unit == "exponent") & (g.note == note)].value
                axes[j, i].plot(points.x, points[column], "o-", label=case + "".join(f": exponent {v:.2f}" for v in a))
                axes[j, i].legend(fontsize=7)
    figure.savefig(path, dpi=150)

def facts(a):
    "Of the machine."
    lines, able, device = Path("/proc/cpuinfo"), torch.cpu.get_capabilities(), pick_device()
    named = [line.partition(":")[2].strip() for line in (lines.read_text().splitlines() if lines.exists() else ()) if line.startswith("model name")]
    return dict(cpu=named[0] if named else platform.processor(), flags=" ".join(f for f in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if able.get(f)),
                device=torch.cuda.get_device_name() if device.type == "cuda" else device.type, threads=a.threads, torch=torch.__version__,
                precision=pick_precision(a.precision, device), medstrat=version("medstrat"))

def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--small", action="store_true")
    add("--parts", nargs="+", choices=("speed", "growth", "answers"), default=("speed", "growth", "answers"))
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    add("--growth", nargs="+", choices=list(METHODS), default=["IDEC", "VaDE", "conv VAE"], help="by N and K, those with convolutions by side")
    for name, values in (("n", (10_000, 100_000, 1_000_000)), ("k", (10, 30, 100, 300, 1000)), ("side", (28, 56, 112, 224))):
        add(f"--{name}", nargs="+", type=int, default=values)
    for name, value in dict(images=10_240, batch=256, epochs=3, repeats=3, threads=1).items(): add(f"--{name}", type=int, default=value)
    add("--precision", default="auto")
    add("--data", default="mnist", help="labelled images, for the answers")
    add("--peers", help="folder of the Python with ClustPy and UMAP; none: without")
    add("--out", default=".", help="folder for speed.csv and growth.png")
    add("--one", help=argparse.SUPPRESS)    # a process of its own
    a = parser.parse_args(arguments)
    if a.one: return [print(json.dumps(one(job)), flush=True) for job in json.loads(a.one)] and 0
    if a.small: vars(a).update(n=(48, 96), k=(2, 4), side=(16, 32), images=48, batch=16, repeats=1, epochs=2, data="digits",
                               peers=a.peers or "none")
    Path(a.out).mkdir(parents=True, exist_ok=True)
    jobs, results, machine = jobs_of(a), {}, facts(a)
    print(", ".join(f"{k} {v}" for k, v in machine.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        needs = lambda job: "clustpy" if job["what"] == "ClustPy" else "umap-learn" if job["case"] == "N2D" else ""
        python, missing = sys.executable, dict.fromkeys(PEERS, f"--peers {a.peers}")
        if a.peers != "none" and any(map(needs, jobs)): python, missing = peers(a.peers or folder)
        for repeat in range(a.repeats):
            order = list(range(len(jobs)))[::-1 if repeat % 2 else 1]
            ours = [i for i in order if not needs(jobs[i])]
            for portion in [ours, *([i] for i in order if i not in ours)] if a.small else [[i] for i in order]:
                if why := missing.get(need := needs(jobs[portion[0]])): found = [dict(note=f"skipped: {why}")]
                else: found = measure([jobs[i] for i in portion], python if need else sys.executable, a.threads)
                for i, result in zip(portion, found, strict=True): results.setdefault(i, []).append(result)
                table = table_of(jobs, results, a.methods)    # a long sitting leaves what it has
                table.assign(**machine).to_csv(Path(a.out) / "speed.csv", index=False)
    print(text(table))
    if "growth" in a.parts: draw(table, Path(a.out) / "growth.png")
    return int(any(r["note"].startswith("failed") for found in results.values() for r in found))

if __name__ == "__main__": sys.exit(main())
