"""From a workdir to metrics.json and the report: the work of eval.py, and train.py's last step."""

import dataclasses
import datetime
import math
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.evaluate import evaluate, quality, record, tasks
from vae_jax.evaluate.run import FIGURES
from vae_jax.evaluate.subject import Subject, compute, own_metrics
from vae_jax.mesh import hosts
from vae_jax.report import page as report
from vae_jax.report.metrics import lookup
from vae_jax.tools import results
from vae_jax.train import checkpoint, film, step
from vae_jax.train import clock as watch
from vae_jax.train.alive import alive
from vae_jax.train.log import check_writable, read_history, write_evaluation
from vae_jax.train.run import (
    UNMOVED,
    Files,
    Restored,
    Setup,
    members,
    replica_name,
    restore,
    siblings,
)

Tell = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of an evaluation.

    Args:
      which: 'best' (by validation), 'latest' or a step.
      iw_k: importance samples per image; None takes the config's.
      tasks: names of ``evaluate.tasks.TASKS``, beside the metrics that are always there.
      metrics: the user's own metrics, each ``file:function``.
      ood: names of the data sets that the task ``ood`` is asked about.
      features: what ``quality`` measures in: a run's folder, or ``file:function``.
      data_dir: where TFDS data is now; short for ``Files(data_dir=…)``.
      files: what has moved or changed since the run was trained.
      mesh: [(field, value)] of ``mesh.*`` and ``eval.batch``, which change no figure; without
        them all devices are on ``data``.
      publish: also write the metrics to this file of ``results/``.
    """

    which: str | int = "best"
    iw_k: int | None = None
    tasks: Sequence[str] = ()
    metrics: Sequence[str] = ()
    ood: Sequence[str] = ()
    features: str = ""
    data_dir: str = ""
    files: Files = UNMOVED
    mesh: Sequence[tuple[str, str]] = ()
    publish: str = ""

    def restore(self, workdir: str, say: Tell) -> Restored:
        """The parts, state and meta of the checkpoint that is asked for."""
        where = {"data_dir": self.data_dir, "files": self.files, "mesh": self.mesh}
        return restore(workdir, self.which, **where, say=say)


def _silent(line: str) -> None:
    """Another process tells it."""


def assess(workdir: str, request: Request = Request(), say: Tell = print) -> tuple[dict, dict]:
    """Evaluate a checkpoint on the exact test set; write metrics.json and report/index.html.

    Returns:
      (metrics, run): a flat dict with units in its names, and the run's facts.
    Raises:
      UserError: there is no run, or no good checkpoint in it.
    """
    if hosts.several():  # jax's own handler waits for a step to save, and there is none
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not hosts.first():
        say = _silent
    s, state, meta = request.restore(workdir, say)
    hosts.agree(lambda: _check_outputs(workdir, request))
    count = len(s.dataset.test.image)
    say(f"evaluating checkpoint {meta['step']} ({request.which}) on {count:,} test images")
    began = time.perf_counter()
    subject = Subject.of(s, step.averaged(state))
    with alive("evaluating", say) as then:
        metrics, why, pictures = _measure(subject, workdir, request, s, meta["step"], say)
        run = _facts(s.c, meta, state, request.which)
        run |= {
            "name": os.path.basename(os.path.normpath(workdir)),
            "evaluation_seconds": round(time.perf_counter() - began, 1),
            "why": why,
        }
        if replica := replica_name(workdir):
            run["replica"] = replica
        if not hosts.first():
            return metrics, run
        then("writing the report")
        _write(workdir, s, metrics, pictures, run)
    write_evaluation(workdir, meta["step"], metrics)
    if request.publish:
        _publish(request.publish, s.c, metrics, run)
    return metrics, run


def _check_outputs(workdir: str, request: Request) -> None:
    """Raise where results cannot be written or own metrics are not there, before the work."""
    own_metrics(request.metrics)
    names = ["metrics.json", "report/index.html"]
    names += [f"{record.FOLDER}/{task}/result.json" for task in request.tasks]
    for name in names:
        check_writable(os.path.join(workdir, name))
    if request.publish:
        results.check(request.publish)


def _measure(
    subject: Subject, workdir: str, request: Request, s: Setup, step_: int, say: Tell
) -> tuple[dict, dict, dict]:
    """(metrics, why a metric is missing, pictures).

    They are what is always there, what earlier calls found for this checkpoint
    (``evaluate.record``), and what was asked for now.
    """
    others: dict = {}
    ensemble = None
    if "ood" in request.tasks:
        others, ensemble = _ood_sets(s, workdir, request, say)
    features = None
    if "quality" in request.tasks:
        features = quality.named(request.features, s.dataset.shape, request.files.data_dir)
    which = record.mark(workdir, step_)
    earlier = record.load(workdir, which)
    iw_k = request.iw_k or subject.config.eval.iw_k
    metrics, why, pictures = evaluate(subject, iw_k=iw_k)
    needs = {"others": others, "ensemble": ensemble, "features": features}
    results = tasks.perform(request.tasks, subject, **needs, say=say)
    if request.metrics:
        results[record.OWN] = (dict(compute(subject, request.metrics)), {}, {})
    for task, (values, _, _) in (earlier | results).items():
        if task == "quality":
            quality.describe(values)
    for values, _, _ in results.values():
        for name, value in values.items():
            if value is not None and "@" not in name:
                say(f"{name}  {lookup(name).text(value)}")
    if hosts.first():
        options = {"tasks": [*request.tasks], "metrics": [*request.metrics], "ood": [*request.ood]}
        options["features"] = request.features
        for task, result in results.items():
            results[task] = record.save(workdir, task, which, result, options)
    for values, reasons, panels in (earlier | results).values():
        metrics |= values
        why |= reasons
        pictures |= panels
    return metrics, why, pictures


def _facts(c: ConfigDict, meta: dict, state: Any, which: str | int) -> dict[str, Any]:
    """What the page and the published file say of a run beside its metrics."""
    clock = meta["latest"]["clock"]
    trained = clock["seconds"]
    facts = {
        "dataset": c.data.name,
        "objective": c.objective.name,
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "checkpoint": f"step {meta['step']} ({which})",
        "training_seconds": round(trained, 1),
        "compile_seconds": round(clock["compile_seconds"], 1),
        "restarts": clock.get("restarts", 0),
        "wall_time": None,
        "images_per_s": None,
        "seed": c.seed,
        "device": results.device(),
        "versions": results.versions(),
        "commit": results.commit(),
        "command": command(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    if trained:
        facts["wall_time"] = watch.shares(watch.new_clock() | clock)
        facts["images_per_s"] = round(meta["latest"]["step"] * c.batch / trained)
    return facts


def _write(workdir: str, s: Setup, metrics: dict, pictures: dict, run: dict) -> None:
    """metrics.json, the page, and the lines for the terminal."""
    c = s.c
    checkpoint.write_json(os.path.join(workdir, "metrics.json"), metrics)
    history = read_history(workdir)
    frames = film.read(workdir, [row["step"] for row in history if row["split"] == "validation"])
    content = report.Report(
        title=f"{c.objective.name} on {c.data.name}",
        metrics=metrics,
        pictures=report.Pictures(**pictures, film=frames),
        history=history,
        config=config_lib.to_json(c),
        run=run,
        classes=s.dataset.classes,
    )
    path = report.write(os.path.join(workdir, "report"), content)
    report.print_summary(metrics, path)


def _ood_sets(s: Setup, workdir: str, request: Request, say: Tell) -> tuple[dict, Any]:
    """({name: images of another data set}, stacked parameters of the run's other seeds or None)."""
    others = {}
    for name in request.ood:
        if config_lib.absolute_name(name) == s.c.data.name:
            raise UserError(f"ood={name}: is what the run was trained on; want another data set")
        others[name] = data.foreign(name, s.c.data, s.dataset, tasks.IMAGES)
    seeds = [step.averaged(request.restore(folder, say)[1]) for folder in siblings(workdir)]
    if not seeds:
        return others, None
    return others, jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)


def sweep(c: ConfigDict, workdir: str, *, publish: str = "", say: Tell = print) -> None:
    """:func:`assess` each replica of a workdir; their metrics side by side in replicas.json.

    ``publish``: where only the seeds differ, each metric's mean and sd over them; else each
    replica's own.
    """
    rows = []
    runs = []
    for _, folder in members(c, workdir):
        metrics, run = assess(folder, say=say)
        rows.append(metrics)
        runs.append(run)
    fields = config_lib.flatten(c.replicas)
    values = [dict(zip(fields, v, strict=True)) for v in zip(*fields.values(), strict=True)]
    path = os.path.join(workdir, "replicas.json")
    checkpoint.write_json(path, [one | row for one, row in zip(values, rows, strict=True)])
    names = [",".join(f"{field}={v}" for field, v in one.items()) for one in values]
    say("")
    for name, row in zip(names, rows, strict=True):
        cells = [f"{key} {row[key]:.4g}" for key in HEADLINES if row[key] is not None]
        say("  ".join([f"{name:<24}", *cells]))
    say(f"side by side: {path}")
    if not publish:
        return
    figures = _figures_of_replicas(names, rows, only_seeds=list(fields) == ["seed"])
    trained = runs[0]["training_seconds"]  # of all together
    figures["training_seconds"] = results.figure(trained, "s", n=len(runs))
    results.write(
        publish,
        command=command(),
        config=config_lib.to_json(c),
        seed=[one.get("seed", c.seed) for one in values],
        seconds=trained + sum(run["evaluation_seconds"] for run in runs),
        figures=figures,
    )


def _figures_of_replicas(names: list[str], rows: list[dict], only_seeds: bool) -> dict[str, dict]:
    figures = {}
    for key, first in rows[0].items():
        if first is None:
            continue
        each = [row[key] for row in rows]
        if only_seeds:
            sd = statistics.stdev(each)
            figures[key] = results.figure(statistics.fmean(each), _unit(key), sd=sd, n=len(each))
            continue
        for name, value in zip(names, each, strict=True):
            figures[f"{key}[{name}]"] = results.figure(value, _unit(key), n=rows[0]["n"])
    return figures


def _unit(key: str) -> str:
    return next((unit for end, unit in UNITS.items() if key.endswith(end)), "")


def command() -> str:
    """The command line as it was given, with the flags of XLA that it ran under."""
    words = shlex.join(["python", *sys.orig_argv[1:]])
    flags = os.environ.get("XLA_FLAGS")
    return f"XLA_FLAGS={shlex.quote(flags)} {words}" if flags else words


HEADLINES = ("accuracy", "elbo_nats", "iw_nats", "bits_per_dim")
UNITS = {"nats": "nats / image", "nats_se": "nats / image", "dim": "bits / dim"}


def _publish(path: str, c: ConfigDict, metrics: dict, run: dict) -> None:
    n = metrics["n"]
    figures = {}
    for key, value in metrics.items():
        sd = None
        if key == "iw_nats" and metrics["iw_nats_se"] is not None:
            sd = metrics["iw_nats_se"] * math.sqrt(n)
        count = n if key in FIGURES else None  # tasks look at fewer images
        figures[key] = results.figure(value, _unit(key), sd=sd, n=count)
    for key in ("training_seconds", "evaluation_seconds"):
        figures[key] = results.figure(run[key], "s")
    figures["images_per_s"] = results.figure(run["images_per_s"], "images / s")
    figures["parameters"] = results.figure(run["parameters"], "")
    results.write(
        path,
        command=run["command"],
        config=config_lib.to_json(c),
        seed=c.seed,
        seconds=run["training_seconds"] + run["compile_seconds"] + run["evaluation_seconds"],
        figures=figures,
    )
