"""A run's folder: what a config makes of a machine, whose folder it is, and what is saved in it."""

import dataclasses
import fcntl
import hashlib
import json
import os
import tempfile

import jax
import jax.numpy as jnp
from etils import epath

from vae_jax import cli as flags
from vae_jax import config as config_lib
from vae_jax import data, nets
from vae_jax.config import UserError
from vae_jax.mesh import rules as sharding
from vae_jax.mesh import store
from vae_jax.models import model
from vae_jax.train import checkpoint, step
from vae_jax.train import program as compile_lib

# Fields that may differ when a run goes on: they change no number of it.
FREE = (
    "log_every",
    "mesh.",
    "compile",
    "remat",
    "data.dir",
    "data.memory_mb",
    "data.on_device_mb",
    "init_from",  # read once, before the first step
    "steps_per_call",
    "unroll",
    "eval.iw_k",
)


@dataclasses.dataclass
class Setup:
    """What a config makes of a machine: the parts that training and evaluation share."""

    c: object
    dataset: object
    model: object
    mesh: object


def setup(c):
    config_lib.validate(c)
    mesh = sharding.make_mesh(c.mesh)
    if not c.unroll and {c.encoder.name, c.decoder.name} & nets.CONVOLUTIONAL and jax.default_backend() == "cpu":
        raise UserError("unroll=False: convolutions in a loop are ten times slower on CPU; want unroll=True")
    dataset = data.load(c.data)
    s = Setup(c, dataset, model.build_for(c, dataset), mesh)
    sharding.check_replicas(config_lib.replica_count(c), mesh)
    alone = config_lib.override(c, {})
    params = compile_lib.shapes(alone, s.model, mesh)[0].params
    figures = step.check(alone, s.model, dataset, params)
    if c.eval.select not in figures:
        raise UserError(f"eval.select={c.eval.select}: objective {c.objective.name} gives {', '.join(sorted(figures))}")
    if c.eval.select == "loss" and hasattr(config_lib.resolve("objective", c.objective.name), "init"):
        raise UserError(f"eval.select=loss: that of {c.objective.name} changes as it learns; want elbo")
    return s


def claim(workdir, c):
    """Make or reopen a workdir for this config; the lock's descriptor, to be closed at the end.

    Raises:
      UserError: it is a file, cannot be written, is in use, or holds a run of another config.
    """
    if store.remote(workdir):  # a store locks nothing: this is between the runs of one machine
        name = hashlib.sha256(store.absolute(workdir).encode()).hexdigest()[:16]
        held = os.path.join(tempfile.gettempdir(), f"vae_jax-{name}.lock")
    else:
        held = os.path.join(workdir, "lock")
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise UserError(f"workdir={workdir}: is a file; want a folder")
    try:
        os.makedirs(os.path.dirname(held), exist_ok=True)
        lock = os.open(held, os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the system when the process ends
    except BlockingIOError:
        raise UserError(f"workdir={workdir}: another run is using it") from None
    except OSError as error:
        raise UserError(f"workdir={workdir}: cannot write: {error.strerror}") from None
    path = os.path.join(workdir, "config.json")
    if epath.Path(path).exists():
        changed = config_lib.differences(read_config(workdir), c, FREE)
        if changed:
            raise UserError(
                f"workdir={workdir}: holds a run of another config ({'; '.join(changed)}); want another workdir"
            )
    checkpoint.write_json(path, config_lib.to_json(c))  # with what is free to change as it is now
    return lock


def members(c, workdir):
    """[(config, folder)] of each replica: a folder like that of a run alone; of a run alone, itself."""
    count = config_lib.replica_count(c)
    if not count:
        return [(c, workdir)]
    return [(config_lib.replica(c, r), os.path.join(workdir, f"replica_{r}")) for r in range(count)]


def siblings(workdir):
    """The folders of all replicas of the run that this folder is a replica of, if only their seeds differ; else []."""
    folder = store.absolute(workdir)
    above = os.path.dirname(folder)
    if not epath.Path(above, "config.json").is_file():
        return []
    c = read_config(above)
    folders = [path for _, path in members(c, above)]
    return folders if folder in folders and list(config_lib.flatten(c.replicas)) == ["seed"] else []


def read_config(workdir):
    """The config of the run in a workdir."""
    store.check(workdir)
    path = epath.Path(workdir, "config.json")
    try:
        return config_lib.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"workdir={workdir}: no run in it (no config.json)") from None
    except NotADirectoryError:
        raise UserError(f"workdir={workdir}: is a file; want a folder") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def restore(workdir, which="best", *, data_dir="", mesh=(), say=print):
    """(Setup, state, meta) of a good checkpoint: 'best' by validation, 'latest' or a step.

    The mesh has all devices there are on ``data``, unless ``mesh`` has [(field, value)], such as ("mesh.model", "2").
    ``meta["latest"]`` is the meta of the latest step: how long the whole run has taken.

    Raises:
      UserError: there is no run, or no good checkpoint in it.
    """
    c = read_config(workdir)
    if config_lib.replica_count(c):
        raise UserError(f"workdir={workdir}: holds {config_lib.replica_count(c)} replicas; want {workdir}/replica_0, …")
    c.mesh.data, c.mesh.fsdp, c.mesh.model, c.mesh.samples = -1, 1, 1, 1  # of this machine, not of the one that trained
    c = flags.apply(c, mesh)
    if data_dir:
        c.data.dir = data_dir
    s = setup(c)
    shapes, places = compile_lib.shapes(c, s.model, s.mesh)
    if not checkpoint.steps(workdir):
        raise UserError(f"workdir={workdir}: no checkpoint in it; run train.py first")
    saved = checkpoint.Checkpoints(workdir, say, write=False)
    found = saved.restore(checkpoint.abstract(shapes, places), which)
    if found is None:
        raise UserError(f"workdir={workdir}: no good checkpoint in it")
    state, meta = found
    meta["latest"] = saved.meta()
    saved.close()
    return s, state, meta


def begin_from(folder, state, places):
    """A fresh ``state`` with the parameters of the last checkpoint in ``folder`` (their moving average, where it has
    one) in every part of the model that has the same name and shapes.

    Raises:
      UserError: there is no such run, or it has no such part.
    """
    _, other, _ = restore(folder, "latest")
    theirs, ours = step.averaged(other), state.params
    same = lambda a, b: jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)  # noqa: E731
    taken = {part: p for part, p in theirs.items() if part in ours and jax.tree.leaves(p) and same(p, ours[part])}
    if not taken:
        raise UserError(f"init_from={folder}: no part of its model has the names and shapes of this one's")
    begun = lambda tree, at: jax.device_put({**tree, **taken}, at)  # noqa: E731
    ema = state.ema if state.ema == () else jax.tree.map(jnp.copy, begun(state.ema, places.ema))
    return state._replace(params=jax.tree.map(jnp.copy, begun(ours, places.params)), ema=ema)
