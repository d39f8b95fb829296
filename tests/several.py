"""What tests/test_hosts.py has several processes do, in one start of them: each task's outcome as JSON.

python -m vae_jax.tools.launch --processes=2 --devices_per_process=2 -- -m tests.several --folder=DIR --tasks=fed
"""

import functools
import json
import os
import pathlib
import shutil
import signal
import threading
import time

import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax.config import UserError
from vae_jax.mesh import hosts
from vae_jax.train import clock as watch

STEPS, EVERY = 12, 4
IMAGES = 37  # of the evaluated split: no number of devices or batches divides it


def config(devices, *, fed=False, steps=STEPS):
    from tests.test_step import small

    # One optimiser step per call and plain Adam steps: float32 sums in another order stay small.
    c = small(
        steps=steps,
        log_every=1,
        eval__every=EVERY,
        eval__batch=24,
        eval__iw_k=2,
        mesh__data=devices,
    )
    c.data.on_device_mb = 0 if fed else 1024
    return c


def rows(workdir):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in watch.ROW} for line in lines]


@functools.cache
def state(workdir, devices):
    """The latest state of a finished run as numpy, and its step, on the first devices of this process alone."""
    import jax

    from vae_jax import data
    from vae_jax.mesh import rules as sharding
    from vae_jax.models import model
    from vae_jax.train import checkpoint
    from vae_jax.train import program as compile_lib

    c = config(devices)
    dataset = data.load(c.data)
    mesh = sharding.make_mesh(c.mesh, jax.local_devices()[:devices])
    shapes, places = compile_lib.shapes(c, model.build_for(c, dataset), mesh)
    saved = checkpoint.Checkpoints(str(workdir), write=False)
    found, meta = saved.restore(checkpoint.abstract(shapes, places))
    saved.close()
    return jax.tree.map(np.asarray, found), meta["step"]


def cut(source, target, step):
    """A copy of a run as if it had ended after ``step``."""
    shutil.copytree(source, target)
    for later in (target / "checkpoints").iterdir():
        if later.name.isdigit() and int(later.name) > step:
            shutil.rmtree(later)
            (target / "manifests" / f"{later.name}.json").unlink()


def figures(c, mesh, dataset):
    """log-likelihood figures of each of the images, and the validation figures, of a fresh state."""
    from vae_jax.evaluate import likelihood
    from vae_jax.evaluate.subject import Subject
    from vae_jax.models import model
    from vae_jax.train import actions, step
    from vae_jax.train import program as compile_lib
    from vae_jax.train import run as workdir

    test = type(dataset.test)(dataset.test.image[:IMAGES], dataset.test.label[:IMAGES])
    dataset = dataset._replace(test=test, validation=test)
    m = model.build_for(c, dataset)
    fresh, _ = compile_lib.init(c, m, mesh, dataset)
    key = step.stream(c.seed, "test")
    subject = Subject(c, m, fresh.params, dataset, mesh)
    found = likelihood.log_likelihood(subject, test, key, k=2)
    (mean,) = actions.evaluation_of(workdir.Setup(c, dataset, m, mesh))(fresh)
    return {"iw": found["iw"].tolist(), "validation": mean}


def main(argv):
    def define(values):
        flags.DEFINE_string("folder", "", "where the runs are", flag_values=values)
        flags.DEFINE_list("tasks", [], "what to do, in order", flag_values=values)
        hosts.define(values)

    values, _ = flags_lib.parse(argv, define)
    hosts.join(values)
    import jax

    from vae_jax import data
    from vae_jax.mesh import rules as sharding
    from vae_jax.train import checkpoint, loop
    from vae_jax.train import program as compile

    compile.use_cache()
    folder, n = pathlib.Path(values.folder), jax.device_count()

    def fed():
        return loop.train(config(n, fed=True), str(folder / "fed"))

    def again():  # the same layout: bit for bit
        hosts.agree(lambda: cut(folder / "fed", folder / "again", 8))
        return loop.train(config(n, fed=True), str(folder / "again"))

    def from_one():  # begun by one process of one device
        return loop.train(config(n, fed=True), str(folder / "from_one"))

    def count():
        c = config(n)
        return figures(c, sharding.make_mesh(c.mesh), data.load(c.data))

    def taken():  # by another run
        try:
            return loop.train(config(n), str(folder / "taken"))
        except (UserError, SystemExit) as error:
            return f"{type(error).__name__}: {error}"

    def preempted():
        def ask():
            while not checkpoint.steps(folder / "preempted"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        if jax.process_index() == 1:
            threading.Thread(target=ask, daemon=True).start()
        done = loop.train(config(n, steps=100_000), str(folder / "preempted"))
        return [done, checkpoint.steps(folder / "preempted")[-1]]

    def skew():  # process 1 takes 50 ms a step more
        seen = watch.Watch(watch.new_clock(), 0, time.time())
        seen.begin()
        with seen.part("data"):
            time.sleep(0.2 * jax.process_index())
        found = [seen.skew(4), seen.skew(4)]
        seen.close()
        return found

    tasks = {f.__name__: f for f in (fed, again, from_one, count, taken, skew, preempted)}
    outcome = {name: tasks[name]() for name in values.tasks}
    path = folder / f"outcome_{jax.process_count()}_{jax.process_index()}.json"
    path.write_text(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    flags_lib.main(main)
