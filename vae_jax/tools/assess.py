"""From a workdir to metrics.json, pictures and the report: what eval.py does, and train.py at its end."""

import datetime
import functools
import math
import os
import shlex
import signal
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.evaluate import evaluate, tasks
from vae_jax.evaluate.run import FIGURES
from vae_jax.mesh import hosts
from vae_jax.report import page as report
from vae_jax.tools import results
from vae_jax.train import checkpoint, step
from vae_jax.train import clock as watch
from vae_jax.train.log import read_history
from vae_jax.train.run import members, restore, siblings


def assess(
    workdir,
    *,
    which="best",
    iw_k=None,
    subjects=(),
    others=(),
    data_dir="",
    mesh=(),
    publish="",
    say=print,
):
    """Evaluate a checkpoint of a workdir on the exact test set; write metrics.json and report/index.html.

    Args:
      which: 'best' (by validation), 'latest' or a step.
      iw_k: importance samples per image; None takes the config's.
      subjects: of ``evaluate.tasks.TASKS``, beside what is always there.
      others: names of the data sets that ``ood`` is asked about.
      mesh: [(field, value)] of the mesh; without it all devices are on ``data``.
      publish: also write the figures to this file of ``results/``.
    Returns:
      (metrics, run): a flat dict with units in its names, and the run's facts.
    Raises:
      UserError: there is no run, or no good checkpoint in it.
    """
    if hosts.several():
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # jax's own waits for a step to save, and there is none
    say = say if hosts.first() else lambda _: None
    s, state, meta = restore(workdir, which, data_dir=data_dir, mesh=mesh, say=say)
    c = s.c
    given = (
        beside(s, others, workdir, which, data_dir, mesh, say) if "ood" in subjects else ({}, None)
    )
    say(
        f"evaluating checkpoint {meta['step']} ({which}) on {len(s.dataset.test.image):,} test images"
    )
    began = time.perf_counter()
    metrics, why, pictures = evaluate(
        c, s.model, step.averaged(state), s.dataset, s.mesh, iw_k=iw_k or c.eval.iw_k
    )
    if subjects:
        others, ensemble = given
        found = tasks.perform(
            subjects, s, step.averaged(state), others=others, ensemble=ensemble, say=say
        )
        for into, part in zip((metrics, why, pictures), found, strict=True):
            into |= part
    seconds = time.perf_counter() - began
    clock = meta["latest"]["clock"]
    trained = clock["seconds"]
    run = {
        "name": os.path.basename(os.path.normpath(workdir)),
        "dataset": c.data.name,
        "objective": c.objective.name,
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "checkpoint": f"step {meta['step']} ({which})",
        "training_seconds": round(trained, 1),
        "compile_seconds": round(clock["compile_seconds"], 1),
        "wall_time": watch.shares(watch.new_clock() | clock) if trained else None,
        "evaluation_seconds": round(seconds, 1),
        "images_per_s": round(meta["latest"]["step"] * c.batch / trained) if trained else None,
        "seed": c.seed,
        "device": results.device(),
        "versions": results.versions(),
        "commit": results.commit(),
        "command": command(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "why": why,
    }
    if not hosts.first():
        return metrics, run
    checkpoint.write_json(os.path.join(workdir, "metrics.json"), metrics)
    content = report.Report(
        title=f"{c.objective.name} on {c.data.name}",
        metrics=metrics,
        pictures=report.Pictures(**pictures),
        history=read_history(workdir),
        config=config_lib.to_json(c),
        run=run,
        classes=s.dataset.classes,
    )
    path = report.write(os.path.join(workdir, "report"), content)
    report.print_summary(metrics, path)
    if publish:
        _publish(publish, c, metrics, run)
    return metrics, run


def beside(s, others, workdir, which, data_dir, mesh, say):
    """What ``tasks=ood`` needs from the disk: {name: images of another data set}, and the parameters of a run's other
    seeds, stacked, or None."""
    for name in others:
        if name == s.c.data.name:
            raise UserError(f"ood={name}: is what the run was trained on; want another data set")
    foreign = {name: data.foreign(name, s.c.data, s.dataset, tasks.IMAGES) for name in others}
    again = functools.partial(restore, which=which, data_dir=data_dir, mesh=mesh, say=say)
    seeds = [step.averaged(again(folder)[1]) for folder in siblings(workdir)]
    return foreign, jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds) if seeds else None


def sweep(c, workdir, *, publish="", say=print):
    """:func:`assess` each replica of a workdir; their figures side by side in replicas.json.

    ``publish``: where only the seeds differ, each figure's mean and sd over them; else each replica's own.
    """
    rows, runs = zip(*(assess(folder, say=say) for _, folder in members(c, workdir)), strict=True)
    fields = config_lib.flatten(c.replicas)
    values = [dict(zip(fields, v, strict=True)) for v in zip(*fields.values(), strict=True)]
    path = os.path.join(workdir, "replicas.json")
    checkpoint.write_json(path, [one | row for one, row in zip(values, rows, strict=True)])
    names = [",".join(f"{field}={v}" for field, v in one.items()) for one in values]
    say("")
    for name, row in zip(names, rows, strict=True):
        shown = [
            f"{k} {row[k]:.4g}"
            for k in ("accuracy", "elbo_nats", "iw_nats", "bits_per_dim")
            if row[k] is not None
        ]
        say("  ".join([f"{name:<24}", *shown]))
    say(f"side by side: {path}")
    if not publish:
        return
    figures = {}
    for key in (k for k, v in rows[0].items() if v is not None):
        each = [row[key] for row in rows]
        if list(fields) == ["seed"]:
            mean, sd = statistics.fmean(each), statistics.stdev(each)
            figures[key] = results.figure(mean, _unit(key), sd=sd, n=len(each))
        else:
            named = zip(names, each, strict=True)
            figures |= {
                f"{key}[{name}]": results.figure(v, _unit(key), n=rows[0]["n"]) for name, v in named
            }
    figures["training_seconds"] = results.figure(
        runs[0]["training_seconds"], "s", n=len(runs)
    )  # of all together
    seconds = runs[0]["training_seconds"] + sum(run["evaluation_seconds"] for run in runs)
    seeds = [one.get("seed", c.seed) for one in values]
    results.write(
        publish,
        command=command(),
        config=config_lib.to_json(c),
        seed=seeds,
        seconds=seconds,
        figures=figures,
    )


def _unit(key):
    return next((u for end, u in UNITS.items() if key.endswith(end)), "")


def command():
    """The command line as it was given, with the flags of XLA that it ran under."""
    xla = (
        f"XLA_FLAGS={shlex.quote(os.environ['XLA_FLAGS'])} " if os.environ.get("XLA_FLAGS") else ""
    )
    return xla + shlex.join(["python", *sys.orig_argv[1:]])


UNITS = {"nats": "nats / image", "nats_se": "nats / image", "dim": "bits / dim"}


def _publish(path, c, metrics, run):
    n = metrics["n"]
    figures = {}
    for key, value in metrics.items():
        sd = (
            metrics["iw_nats_se"] * math.sqrt(n)
            if key == "iw_nats" and metrics["iw_nats_se"] is not None
            else None
        )
        figures[key] = results.figure(
            value, _unit(key), sd=sd, n=n if key in FIGURES else None
        )  # tasks look at fewer
    for key in ("training_seconds", "evaluation_seconds"):
        figures[key] = results.figure(run[key], "s")
    figures["images_per_s"] = results.figure(run["images_per_s"], "images / s")
    figures["parameters"] = results.figure(run["parameters"], "")
    seconds = run["training_seconds"] + run["compile_seconds"] + run["evaluation_seconds"]
    results.write(
        path,
        command=run["command"],
        config=config_lib.to_json(c),
        seed=c.seed,
        seconds=seconds,
        figures=figures,
    )
