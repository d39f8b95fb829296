"""Clusters of several seeds: an autoencoder with k-means, and VaDE that begins at it.

    python -m vae_jax.tools.clusters --begin=configs/ae_mnist.py --config=configs/vade_mnist.py \\
        --seeds=0,1,2 --data_dir=~/data --workdir=runs/clusters_mnist

For each seed the run of ``--begin`` is trained, a mixture is fitted to its codes
(``vae_jax.tools.density``), and the run of ``--config`` begins from both. clusters.json has the
figures of the task ``clusters`` of the two runs, every seed's; ``--results`` writes them with their
means and standard deviations. The same command goes on where it was stopped.

    autoencoder-0/  mixture-0/  vade-0/    the runs of seed 0
"""

import json
import os
import statistics
import time
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.evaluate import tasks
from vae_jax.evaluate.subject import restored
from vae_jax.tools import assess, density, results
from vae_jax.train import checkpoint, log, loop
from vae_jax.train import program as compile_lib

SHARED = ("data.name", "latent", "encoder", "decoder", "likelihood")  # of both configs
Row = dict[str, float]  # name of a metric → its value


class Plan(NamedTuple):
    """The two configs, and the folder of all runs."""

    begin: ConfigDict
    after: ConfigDict
    root: str

    def folder(self, kind: str, seed: int) -> str:
        return os.path.join(self.root, f"{kind}-{seed}")


def clusters_of(folder: str, kind: str) -> Row:
    """{kind_metric: value} of the task ``clusters`` of a run."""
    metrics, _, _ = tasks.perform(["clusters"], restored(folder), say=_silent)["clusters"]
    return {f"{kind}_{key}": value for key, value in metrics.items() if value is not None}


def _silent(_: str) -> None:
    """A metric that a run does not have is left out."""


def of_seed(plan: Plan, seed: int) -> Row | None:
    """The figures of a seed's two runs, which are trained where they are not; None on a signal."""
    begin = plan.begin.copy_and_resolve_references()
    begin.seed = seed
    first = plan.folder("autoencoder", seed)
    if not loop.train(begin, first):
        return None
    after = plan.after.copy_and_resolve_references()
    after.seed = seed
    after.init_from = plan.folder("mixture", seed)
    if not checkpoint.has_saved(after.init_from):
        density.write_run(first, after.init_from, density.Fit(after.prior.components))
    last = plan.folder("vade", seed)
    if not loop.train(after, last):
        return None
    return clusters_of(first, "autoencoder") | clusters_of(last, "vade")


def figures_of(rows: dict[int, Row]) -> dict[str, dict]:
    """Each metric's mean and sd over seeds, and its value of every seed."""
    figures = {}
    for key in next(iter(rows.values())):
        values = [row[key] for row in rows.values()]
        sd = statistics.stdev(values) if len(values) > 1 else None
        figures[key] = results.figure(statistics.fmean(values), "", sd=sd, n=len(values))
        for seed, row in rows.items():
            figures[f"{key}[seed={seed}]"] = results.figure(row[key], "")
    return figures


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    flags.DEFINE_string("begin", None, "config of the autoencoder", flag_values=values)
    flags.DEFINE_string("config", None, "config of objective.name=vade", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "one or more, such as 0,1,2", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of all runs", flag_values=values)
    flags.DEFINE_string("results", "", "also write results/NAME.json", flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is", flag_values=values)


def planned(values: flags.FlagValues) -> Plan:
    """What the flags say.

    Raises:
      UserError: one is missing, or the second config has no clusters.
    """
    for name, right in (("begin", "FILE"), ("config", "FILE"), ("workdir", "FOLDER")):
        if not values[name].value:
            raise UserError(f"{name}: want --{name}={right}")
    if not values.seeds:
        raise UserError("seeds=: want one or more, such as 0,1,2")
    for seed in values.seeds:
        if not seed.isdecimal():
            raise UserError(f"seeds={seed}: want whole numbers, such as 0,1,2")
    configs = []
    for path in (values.begin, values.config):
        c = config_lib.load(path)
        c.data.dir = values.data_dir or c.data.dir
        configs.append(c)
    for field, (begin, after) in config_lib.changed(*configs).items():
        if field.startswith(SHARED):
            said = f"{after} begins at {begin}"
            raise UserError(f"{field}: {said}; want the same in --begin and --config")
    if configs[1].prior.name != "mixture":
        raise UserError(f"prior.name={configs[1].prior.name}: has no clusters; want mixture")
    return Plan(*configs, values.workdir)


def run(argv: list[str]) -> int:
    """Train, cluster and compare as the flags say; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    plan = planned(values)
    if values.results:
        results.check(values.results)
    log.check_writable(os.path.join(plan.root, "clusters.json"))
    compile_lib.use_cache()
    began = time.perf_counter()
    rows: dict[int, Row] = {}
    for seed in map(int, values.seeds):
        row = of_seed(plan, seed)
        if row is None:
            return loop.STOPPED
        rows[seed] = row
        print(f"seed {seed}: {json.dumps(row)}")
    checkpoint.write_json(os.path.join(plan.root, "clusters.json"), rows)
    if values.results:
        publish(values.results, plan, rows, time.perf_counter() - began)
    return 0


def publish(path: str, plan: Plan, rows: dict[int, Row], seconds: float) -> None:
    """Write the figures of all seeds to a file of results/."""
    facts: dict[str, Any] = {"config": config_lib.to_json(plan.after), "seed": [*rows]}
    command = assess.command()
    results.write(path, command=command, seconds=seconds, figures=figures_of(rows), **facts)


if __name__ == "__main__":
    flags_lib.main(run)
