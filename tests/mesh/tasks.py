"""What tests/mesh/test_hosts.py has several processes do, in one start of them.

python -m vae_jax.tools.launch --processes=2 --devices_per_process=2 -- \
    -m tests.mesh.tasks --folder=DIR --tasks=from_host,count

Each process writes the outcome of each task as JSON.
"""

import functools
import json
import os
import pathlib
import signal
import threading
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from tests.processes import cut
from tests.tiny import short
from vae_jax import cli, data, models
from vae_jax.config import ConfigDict, UserError
from vae_jax.evaluate import likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import hosts, rules
from vae_jax.train import actions, checkpoint, clock, loop, program, step
from vae_jax.train import run as run_lib

IMAGES = 37  # of the evaluated split: no number of devices or batches divides it


@functools.cache
def state(workdir: str | pathlib.Path, devices: int) -> tuple[Any, int]:
    """The latest state of a finished run as numpy, and its step.

    It is restored on the first devices of this process alone.
    """
    c = short(devices)
    dataset = data.load(c.data)
    mesh = rules.make_mesh(c.mesh, jax.local_devices()[:devices])
    shapes, places = program.shapes(c, models.build_for(c, dataset), mesh)
    saved = checkpoint.Checkpoints(str(workdir), write=False)
    restored, meta = saved.restore(checkpoint.abstract(shapes, places))
    saved.close()
    return jax.tree.map(np.asarray, restored), meta["step"]


def metrics(c: ConfigDict, mesh: jax.sharding.Mesh, dataset: data.Dataset) -> dict[str, Any]:
    """IW-2 of each of the images, and the validation metrics, of the state before training."""
    test = data.Split(dataset.test.image[:IMAGES], dataset.test.label[:IMAGES])
    dataset = dataset._replace(test=test, validation=test)
    m = models.build_for(c, dataset)
    begin, _ = program.init(c, m, mesh, dataset)
    key = step.stream(c.seed, "test")
    each = likelihood.log_likelihood(Subject(c, m, begin.params, dataset, mesh), test, key, k=2)
    (mean,) = actions.evaluation_of(run_lib.Setup(c, dataset, m, mesh))(begin)
    return {"iw": each["iw"].tolist(), "validation": mean}


# --- tasks: functions of the folder ---


def from_host(folder: pathlib.Path) -> bool:
    """A run whose batches come from the hosts."""
    return loop.train(short(jax.device_count(), from_host=True), str(folder / "from_host"))


def again(folder: pathlib.Path) -> bool:
    """That run from step 8, in the same layout: bit for bit."""
    hosts.agree(lambda: cut(folder / "from_host", folder / "again", 8))
    return loop.train(short(jax.device_count(), from_host=True), str(folder / "again"))


def from_one(folder: pathlib.Path) -> bool:
    """A run that one process of one device began."""
    return loop.train(short(jax.device_count(), from_host=True), str(folder / "from_one"))


def count(folder: pathlib.Path) -> dict[str, Any]:
    c = short(jax.device_count())
    return metrics(c, rules.make_mesh(c.mesh), data.load(c.data))


def taken(folder: pathlib.Path) -> bool | str:
    """A run in a folder that another run uses."""
    try:
        return loop.train(short(jax.device_count()), str(folder / "taken"))
    except (UserError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"


def preempted(folder: pathlib.Path) -> list:
    """Process 1 gets SIGTERM after the first checkpoint of a long run."""
    workdir = folder / "preempted"

    def ask() -> None:
        while not checkpoint.steps(workdir):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    if jax.process_index() == 1:
        threading.Thread(target=ask, daemon=True).start()
    done = loop.train(short(jax.device_count(), steps=100_000), str(workdir))
    return [done, checkpoint.steps(workdir)[-1]]


def skew(folder: pathlib.Path) -> list:
    """Process 1 takes 50 ms a step more than process 0."""
    watch = clock.Watch(clock.new_clock(), 0, time.time())
    watch.begin()
    with watch.part("data"):
        time.sleep(0.2 * jax.process_index())
    skews = [watch.skew(4), watch.skew(4)]
    watch.close()
    return skews


TASKS = {task.__name__: task for task in (from_host, again, from_one, count, taken)}
TASKS |= {task.__name__: task for task in (preempted, skew)}


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("folder", "", "where the runs are", flag_values=values)
    flags.DEFINE_list("tasks", [], "what to do, in order", flag_values=values)
    hosts.define(values)


def main(argv: list[str]) -> int:
    values, _ = cli.parse(argv, define)
    hosts.join(values)
    program.use_cache()
    folder = pathlib.Path(values.folder)
    outcome = {}
    for name in values.tasks:
        outcome[name] = TASKS[name](folder)
    path = folder / f"outcome_{jax.process_count()}_{jax.process_index()}.json"
    path.write_text(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    cli.main(main)
