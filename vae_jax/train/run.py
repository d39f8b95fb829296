"""A run's folder: the parts that a config builds, the lock on the folder, and its checkpoints."""

import dataclasses
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags as absl_flags
from etils import epath
from ml_collections import ConfigDict

from vae_jax import cli as flags
from vae_jax import config as config_lib
from vae_jax import data, models, nets
from vae_jax.config import UserError
from vae_jax.mesh import rules as sharding
from vae_jax.mesh import store
from vae_jax.train import checkpoint, contract, identity, log, step
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
    """The parts that a config builds on a machine, which training and evaluation share."""

    c: ConfigDict
    dataset: Any
    model: Any
    mesh: jax.sharding.Mesh


def setup(c: ConfigDict) -> Setup:
    """Build a config's data set, model and mesh, and check that they fit each other.

    Raises:
      UserError: they do not.
    """
    c = config_lib.absolute(c)
    config_lib.validate(c)
    mesh = sharding.make_mesh(c.mesh)
    convolutional = {c.encoder.name, c.decoder.name} & nets.CONVOLUTIONAL
    if not c.unroll and convolutional and jax.default_backend() == "cpu":
        # A loop around convolutions is ten times slower on CPU, and 50 steps written out compile
        # for minutes.
        c = c.copy_and_resolve_references()
        c.unroll = True
        c.steps_per_call = 1
    dataset = data.load(c.data)
    s = Setup(c, dataset, models.build_for(c, dataset), mesh)
    sharding.check_replicas(config_lib.replica_count(c), mesh)
    alone = config_lib.override(c, {})
    params = compile_lib.shapes(alone, s.model, mesh)[0].params
    contract.check_signature(
        config_lib.resolve("objective", c.objective.name), f"objective.name={c.objective.name}"
    )
    names = step.check(alone, s.model, dataset, params)
    objective = c.objective.name
    if c.eval.select not in names:
        has = ", ".join(sorted(names))
        raise UserError(f"eval.select={c.eval.select}: objective {objective} gives {has}")
    resolved = config_lib.resolve("objective", objective)
    changes = hasattr(resolved, "init") and not getattr(resolved, "stationary", False)
    if c.eval.select == "loss" and changes:
        raise UserError(f"eval.select=loss: that of {objective} changes as it learns; want elbo")
    return s


def claim(workdir: str, c: ConfigDict, say: Callable[[str], Any] = print) -> int:
    """Make or reopen a workdir for this config; the lock's descriptor, to be closed at the end.

    A run that saved nothing has nothing to lose: another config begins anew in its folder.

    Raises:
      UserError: it is a file, cannot be written, is in use, or holds checkpoints of another config.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise UserError(f"workdir={workdir}: is a file; want a folder")
    lock = _lock(workdir)
    try:
        _check_config(workdir, c, say)
        # With the fields that are free to change as they are now.
        checkpoint.write_json(os.path.join(workdir, "config.json"), config_lib.to_json(c))
    except BaseException:
        os.close(lock)
        raise
    return lock


def opening(s: Setup) -> list[str]:
    """The first lines of a run: its data, what was noticed while reading them, loss, program."""
    sizes = [
        f"{len(getattr(s.dataset, name).image):,} {name}"
        for name in ("train", "validation", "test")
    ]
    height, width, channels = s.dataset.shape
    line = f"data: {s.dataset.name}, {', '.join(sizes)} images of {height}x{width}x{channels}"
    if s.dataset.classes:
        line += f", {len(s.dataset.classes)} classes"
    weights = [f"{name}={value}" for name, value in s.c.objective.items() if name != "name"]
    loss = f"loss: {', '.join([s.c.objective.name, *weights])}"
    return [line, *s.dataset.notes, loss, _program(s)]


def _program(s: Setup) -> str:
    """The kind of the program, the devices and the mesh that it is for, and its dtype."""
    program = config_lib.program_name(s.c, s.mesh.shape["fsdp"])
    axes = [f"{axis}={size}" for axis, size in s.mesh.shape.items() if size > 1]
    kind = s.mesh.devices.flat[0].platform
    devices = f"{s.mesh.size} {kind} device{'s' * (s.mesh.size > 1)}"
    return ", ".join([f"program: {program} on {devices}", *axes, s.c.dtype])


def _lock(workdir: str) -> int:
    """A store locks nothing: there, runs of one machine are kept apart."""
    path = os.path.join(workdir, "lock")
    if store.remote(workdir):
        name = hashlib.sha256(store.absolute(workdir).encode()).hexdigest()[:16]
        path = os.path.join(tempfile.gettempdir(), f"vae_jax-{name}.lock")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed when the process ends
    except BlockingIOError:
        raise UserError(f"workdir={workdir}: another run is using it") from None
    except OSError as error:
        raise UserError(f"workdir={workdir:.200}: cannot write: {error.strerror}") from None
    except RecursionError:  # os.makedirs goes up a folder a call
        raise UserError(f"workdir={workdir:.200}: cannot write: too many folders") from None
    return lock


def _check_config(workdir: str, c: ConfigDict, say: Callable[[str], Any]) -> None:
    """Raise where the run in a workdir is another config's and has saved something."""
    path = epath.Path(workdir, "config.json")
    saved = checkpoint.has_saved(workdir)
    if path.exists():
        try:
            before = config_lib.absolute(read_config(workdir))
            movable = epath.Path(workdir, "data.json").exists()
            changed = _config_changes(before, c, movable)
        except UserError:
            if saved:
                raise
            changed = ["config.json is damaged"]
        if changed and saved:
            what = f"holds a run of another config ({'; '.join(changed)})"
            want = "want another workdir"
            if len(changed) == 1 and changed[0].startswith("steps:") and c.steps > before.steps:
                schedule = f"optim.schedule={c.optim.schedule} ends with a run's steps"
                want += f" with --config.init_from of this one; {schedule}"
            raise UserError(f"workdir={workdir}: {what}; {want}")
        if changed:
            say(f"workdir={workdir}: the run in it saved nothing; begins anew")
    check_manifests(workdir, c)
    known = [checkpoint.config_fields(workdir, step) for step in checkpoint.steps(workdir)]
    if known and not path.exists() and None in known:
        raise UserError(
            f"workdir={workdir}: holds checkpoints but no config.json; want another workdir"
        )


def _config_changes(before: ConfigDict, now: ConfigDict, movable: bool) -> list[str]:
    """The fields that differ and must not; ``movable``: own files may lie elsewhere."""
    fields = [config_lib.flatten(config_lib.to_json(c)) for c in (before, now)]
    if movable:
        fields = [config_lib.without_places(one) for one in fields]
    return config_lib.differences(*fields, _free(before, now))


def _free(before: ConfigDict, now: ConfigDict) -> tuple[str, ...]:
    """The fields that may differ: of a constant learning rate also ``steps``, which may be more.

    Each step of it is what it is in a longer run; other schedules end at ``steps``.
    """
    if now.steps > before.steps and before.optim.schedule == now.optim.schedule == "constant":
        return (*FREE, "steps")
    return FREE


def manifest_fields(c: ConfigDict) -> dict[str, Any]:
    """The fields of a config that a manifest keeps: those that may not change."""
    fields = config_lib.without_places(config_lib.flatten(config_lib.to_json(c)))
    return {name: value for name, value in fields.items() if not name.startswith(FREE)}


def check_manifests(workdir: str, c: ConfigDict) -> None:
    """Raise where checkpoints were saved with another config than ``c``.

    Fields that are in one of both only are newer or older than the other, and are not compared.
    Nor are the steps of a constant schedule, which may have become more.
    """
    fields = manifest_fields(c)
    if c.optim.schedule == "constant":
        del fields["steps"]
    for at in checkpoint.steps(workdir):
        saved = checkpoint.config_fields(workdir, at) or {}
        changed = [
            f"{name}: {value} -> {fields[name]}"
            for name, value in saved.items()
            if fields.get(name, value) != value
        ]
        if changed:
            why = f"checkpoint {at} was saved with another config ({'; '.join(changed)})"
            raise UserError(
                f"workdir={workdir}: {why}; want config.json as it was, or another workdir"
            )


def members(c: ConfigDict, workdir: str) -> list[tuple[ConfigDict, str]]:
    """[(config, folder)] of each replica, or of the run itself where it is alone."""
    count = config_lib.replica_count(c)
    if not count:
        return [(c, workdir)]
    return [(config_lib.replica(c, r), os.path.join(workdir, f"replica_{r}")) for r in range(count)]


def siblings(workdir: str) -> list[str]:
    """The folders of this replica and its siblings if only their seeds differ; else []."""
    folder = store.absolute(workdir)
    above = os.path.dirname(folder)
    if not epath.Path(above, "config.json").is_file():
        return []
    c = read_config(above)
    folders = [path for _, path in members(c, above)]
    if folder not in folders or list(config_lib.flatten(c.replicas)) != ["seed"]:
        return []
    return folders


def replica_name(workdir: str) -> str:
    """'1 of 3 (objective.beta=4.0)' of a replica's folder, counted from 0; '' of any other."""
    folder = store.absolute(workdir)
    above = os.path.dirname(folder)
    if not epath.Path(above, "config.json").is_file():
        return ""
    c = read_config(above)
    folders = [path for _, path in members(c, above)]
    if folder not in folders[: config_lib.replica_count(c)]:
        return ""
    r = folders.index(folder)
    values = [f"{field}={v[r]}" for field, v in config_lib.flatten(c.replicas).items()]
    return f"{r} of {len(folders)} ({', '.join(values)})"


def read_config(workdir: str) -> ConfigDict:
    """The config of the run in a workdir.

    Raises:
      UserError: there is none, or it is damaged.
    """
    store.check(workdir)
    path = epath.Path(workdir, "config.json")
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"workdir={workdir}: no run in it (no config.json)") from None
    except NotADirectoryError:
        raise UserError(f"workdir={workdir}: is a file; want a folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: want an object with the fields of a config, not {tree!r:.40}")
    for name, value in config_lib.default().items():
        if isinstance(value, ConfigDict) and not isinstance(tree.get(name, {}), dict):
            raise UserError(
                f"{path}: {name}: want an object with its fields, not {tree[name]!r:.40}"
            )
    try:
        return config_lib.from_json(tree)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}") from None


def config_here(workdir: str) -> ConfigDict:
    """The config of the run in a workdir, for all devices of this machine.

    Raises:
      UserError: there is none, it is damaged, or not that of the checkpoints; or it has replicas.
    """
    c = read_config(workdir)
    count = config_lib.replica_count(c)
    if count:
        raise UserError(f"workdir={workdir}: holds {count} replicas; want {workdir}/replica_0, …")
    check_manifests(workdir, c)
    c.mesh.data = -1
    for axis in ("fsdp", "model", "samples"):
        c.mesh[axis] = 1
    return c


@dataclasses.dataclass(frozen=True)
class Files:
    """Where the files are now that a run was trained from, and whether they may have changed.

    Args:
      data_dir: TFDS's folder; '' where it was.
      data_path: the path that ``folder:``, ``npz:`` or an own function in ``data.name`` has.
      code_path: the folder of own losses and nets.
      accept_changed: data and own functions that changed since are one line, not an error.
    """

    data_dir: str = ""
    data_path: str = ""
    code_path: str = ""
    accept_changed: bool = False

    @classmethod
    def from_flags(cls, values: absl_flags.FlagValues) -> "Files":
        """What the flags of :func:`vae_jax.cli.define_files` say."""
        return cls(
            data_dir=values.data_dir,
            data_path=values.data_path,
            code_path=values.code_path,
            accept_changed=values.accept_changed_data,
        )


UNMOVED = Files()


class Restored(NamedTuple):
    """What :func:`restore` reads: the parts that its config builds, the state, and its meta."""

    setup: Setup
    state: Any
    meta: dict[str, Any]


def restore(
    workdir: str,
    which: str | int = "best",
    *,
    data_dir: str = "",
    files: Files = UNMOVED,
    mesh: Sequence[tuple[str, str]] = (),
    say: Callable[[str], Any] = print,
) -> Restored:
    """(Setup, state, meta) of a good checkpoint: 'best' by validation, 'latest' or a step.

    The mesh has all devices on ``data``. ``mesh`` has [(field, value)] of the config that change
    no figure, such as ("mesh.model", "2") and ("eval.batch", "50"). ``meta["latest"]`` is the meta
    of the latest step: how long the whole run has taken. ``files``: what has moved or changed;
    ``data_dir`` is short for ``Files(data_dir=…)``.

    Raises:
      UserError: there is no run, no good checkpoint in it, or a file of it is damaged.
    """
    c = config_here(workdir)
    log.read_history(workdir)  # a damaged one is named before the work, not after it
    c = config_lib.absolute(flags.apply(c, mesh))
    c.data.dir = files.data_dir or data_dir or c.data.dir
    config_lib.move(c, files.data_path, files.code_path)
    config_lib.check_places(c)
    s = setup(c)
    identity.check(workdir, c, s.dataset, accept_changed=files.accept_changed, say=say)
    shapes, places = compile_lib.shapes(c, s.model, s.mesh)
    return Restored(s, *read_checkpoint(workdir, shapes, places, which, say))


def read_checkpoint(
    workdir: str, shapes: Any, places: Any, which: str | int, say: Callable[[str], Any] = print
) -> tuple[Any, dict[str, Any]]:
    """(state, meta) of a good checkpoint; ``meta["latest"]`` is the meta of the latest step.

    Args:
      shapes, places: of the state, as :func:`vae_jax.train.program.shapes` gives them.
      which: 'best' by validation, 'latest' or a step.
    Raises:
      UserError: there is none.
    """
    if not checkpoint.steps(workdir):
        raise UserError(f"workdir={workdir}: no checkpoint in it; run train.py first")
    saved = checkpoint.Checkpoints(workdir, say, write=False)
    restored = saved.restore(checkpoint.abstract(shapes, places), which)
    if restored is None:
        raise UserError(f"workdir={workdir}: no good checkpoint in it")
    state, meta = restored
    meta["latest"] = saved.meta() or dict(meta)
    saved.close()
    return state, meta


def begin_from(folder: str, state: Any, places: Any, say: Callable[[str], Any] = print) -> Any:
    """A fresh ``state`` with parameters of the last checkpoint in ``folder``.

    They (their moving average, where it has one) go to every part of the model that has the same
    name and shapes; ``say`` is told which these are, and which begin anew.

    Raises:
      UserError: there is no such run, or it has no such part.
    """
    try:
        other = restore(folder, "latest", files=Files(accept_changed=True)).state
    except UserError as error:
        why = str(error).removeprefix(f"workdir={folder}: ")
        raise UserError(f"init_from={folder}: {why}") from None
    ours = state.params
    taken = {}
    for part, theirs in step.averaged(other).items():
        if part in ours and jax.tree.leaves(theirs) and _same_shapes(theirs, ours[part]):
            taken[part] = theirs
    if not taken:
        why = "no part of its model has the names and shapes of this one's"
        raise UserError(f"init_from={folder}: {why}")

    new = [part for part, own in ours.items() if part not in taken and jax.tree.leaves(own)]
    rest = f"; {', '.join(new)} as new" if new else ""
    say(f"init_from={folder}: {', '.join(taken)} as trained there{rest}")

    def replaced(tree: Any, place: Any) -> Any:
        return jax.tree.map(jnp.copy, jax.device_put({**tree, **taken}, place))

    ema = state.ema
    if ema != ():
        ema = replaced(ema, places.ema)
    return state._replace(params=replaced(ours, places.params), ema=ema)


def _same_shapes(a: Any, b: Any) -> bool:
    return jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
