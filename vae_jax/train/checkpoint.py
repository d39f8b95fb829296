"""Orbax checkpoints with checksums: the latest and the best are kept, damage is named.

A workdir holds ``checkpoints/STEP/`` (Orbax: the state and its meta) and ``manifests/STEP.json``,
written after Orbax has committed the step: the SHA-256 of each of its files, and the fields of the
config that it was trained with. A step is good if it has a manifest and every file matches. Any
other is named in one line and passed over.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from etils import epath

from vae_jax.config import UserError, without_places
from vae_jax.mesh import hosts, store

PATIENCE = 20  # seconds for a save under way to end after an error
CONFIG = "config.json"  # the entry of a manifest that is no file of the step


@functools.cache
def orbax() -> Any:
    """``orbax.checkpoint``. A quarter of the package's imports, and no first step needs it."""
    import orbax.checkpoint

    # They log every save, and a traceback beside every error that they raise as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return orbax.checkpoint


def write_json(path: str, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    if store.remote(path):
        return store.write(path, json.dumps(value, indent=1).encode())
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w") as f:
            json.dump(value, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise UserError(f"{path}: cannot write: {error.strerror}") from None


def digests(folder: str) -> dict[str, str]:
    """{relative path: SHA-256} of every file under a folder."""
    checksums = {}
    for path in sorted(store.files(folder), key=lambda p: (p.parent, p.name)):
        with path.open("rb") as f:
            checksums[str(path.relative_to(folder))] = hashlib.file_digest(f, "sha256").hexdigest()
    return checksums


def steps(workdir: str) -> list[int]:
    """The steps of a workdir in rising order, good or not."""
    folder = os.path.join(workdir, "checkpoints")
    try:
        names = store.names(folder)
    except OSError as error:  # a link to itself, or without the right to it
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from None
    return sorted(int(name) for name in names if name.isdecimal())


def has_saved(workdir: str) -> bool:
    """Whether a run, or a replica of it, has a checkpoint, good or not."""
    replicas = [n for n in store.names(workdir) if n.startswith("replica_")]
    for folder in [workdir, *(os.path.join(workdir, name) for name in replicas)]:
        if steps(folder) or store.names(os.path.join(folder, "damaged")):
            return True
    return False


def _manifest_path(workdir: str, step: int) -> epath.Path:
    return epath.Path(workdir, "manifests", f"{step}.json")


def digest(workdir: str, step: int) -> str:
    """The hash of a whole checkpoint: SHA-256 of its manifest."""
    return hashlib.sha256(_manifest_path(workdir, step).read_bytes()).hexdigest()


def _manifest(workdir: str, step: int) -> dict[str, Any] | None:
    """The manifest of a step; None where it is damaged: no JSON, or it names no file."""
    try:
        manifest = json.loads(_manifest_path(workdir, step).read_bytes())
    except (ValueError, OSError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not manifest.keys() - {CONFIG}:
        return None
    return manifest


def config_fields(workdir: str, step: int) -> dict[str, Any] | None:
    """The config's fields that a step was saved with; None: its manifest has none.

    Of the user's own files the folder is left out: files may move, and data.json knows them.
    """
    fields = (_manifest(workdir, step) or {}).get(CONFIG)
    return without_places(fields) if isinstance(fields, dict) else None


def fault(workdir: str, step: int) -> str | None:
    """None for a good step, else what is wrong with it."""
    path = _manifest_path(workdir, step)
    if not path.exists():
        return "was not finished (no manifest)"
    manifest = _manifest(workdir, step)
    if manifest is None:
        return f"{path} is damaged"
    try:
        checksums = digests(os.path.join(workdir, "checkpoints", str(step)))
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    for name, checksum in manifest.items():
        if name == CONFIG:
            continue
        if name not in checksums:
            return f"{name} is missing"
        if checksums[name] != checksum:
            return f"{name} is damaged (checksum differs)"
    return None


@functools.cache
def _alias(workdir: str) -> str:
    r"""Another path of a workdir, for Orbax and tensorstore.

    Orbax takes ``[`` and ``]`` in a path for a pattern, and tensorstore takes a backslash for a
    slash; both then lose the arrays without a word. Such a folder is reached through a link in the
    temporary folder.
    """
    if store.remote(workdir) or not set(workdir) & set("[]\\"):
        return workdir
    if hosts.several():
        raise UserError(
            f"workdir={workdir}: several processes want a path without [, ] and backslash"
        )
    folder = tempfile.mkdtemp(prefix="vae_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the link, not what it leads to
    link = os.path.join(folder, "run")
    os.symlink(workdir, link)
    return link


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      say: is called with one line for each step that is passed over.
      write: False only reads: it can stand beside a training run, and moves and deletes nothing.
      config: fields of the run's config, which each manifest is to keep.
    """

    def __init__(
        self,
        workdir: str,
        say: Callable[[str], Any] = print,
        write: bool = True,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.workdir = store.absolute(workdir)
        self.say = say
        self.write = write
        self._config = config
        self._folder_for_orbax = os.path.join(_alias(self.workdir), "checkpoints")
        if write:
            hosts.agree(self._set_aside)
        self._unsealed = []
        self._sealing = None
        self._thread = ThreadPoolExecutor(1)

    @functools.cached_property
    def _manager(self) -> Any:
        """Orbax's manager, for a run that writes; it keeps the latest two steps and the best."""
        ocp = orbax()
        policies = ocp.checkpoint_managers

        def select(metrics: dict[str, float]) -> float:
            return metrics["select"]

        keep = [
            policies.LatestN(2),
            # A step saved on request has no figure: it is kept while it is the latest, no longer.
            policies.BestN(
                get_metric_fn=select, reverse=True, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=select,
            best_mode="min",
            create=True,
        )
        try:
            return ocp.CheckpointManager(self._folder_for_orbax, options=options)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(f"workdir={self.workdir}: cannot write: {error.strerror}")

    def _set_aside(self) -> None:
        """Move steps that are not good out of Orbax's way; nothing is deleted."""
        self._make_folder("manifests")
        for step in steps(self.workdir):
            why = fault(self.workdir, step)
            if why is not None:
                self.say(f"checkpoint {step}: {why}; set aside")
                self._move(step)

    def _make_folder(self, name: str) -> None:
        if store.remote(self.workdir):
            return  # an object's name makes its folders
        try:
            os.makedirs(os.path.join(self.workdir, name), exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _move(self, step: int) -> None:
        """Move a step from ``checkpoints`` to ``damaged``, in the place of what is there."""
        target = os.path.join(self.workdir, "damaged", str(step))
        source = os.path.join(self.workdir, "checkpoints", str(step))
        if store.remote(self.workdir):
            store.copy(source, target)
            epath.Path(source).rmtree()
            return
        self._make_folder("damaged")
        try:
            if os.path.islink(target) or os.path.isfile(target):
                os.unlink(target)
            else:
                shutil.rmtree(target, ignore_errors=True)
            os.replace(source, target)
        except OSError as error:
            raise self._cannot_write(error) from None

    def save(
        self, step: int, state: Any, meta: dict[str, Any], select: float | None = None
    ) -> None:
        """Start saving; ``select`` (lower is better) makes the step a candidate for the best.

        Raises:
          UserError: the disk has no room, the folder is gone, or a save before this one failed.
        """
        self.seal()
        self._check_room(2 * sum(x.nbytes for x in jax.tree.leaves(state)) + 2**20)
        ocp = orbax()
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        metrics = None if select is None else {"select": float(select)}
        with self._disk():
            self._manager.save(step, args=args, metrics=metrics, force=True)
        self._unsealed.append(step)

    def _check_room(self, need: int) -> None:
        if store.remote(self.workdir):
            return
        if not os.path.isdir(os.path.join(self.workdir, "manifests")):
            why = "the folder was moved or deleted under the run"
            raise UserError(
                f"workdir={self.workdir}: {why}; want the same command with its new place"
            )
        free = shutil.disk_usage(self.workdir).free
        if free < need:
            raise UserError(
                f"workdir={self.workdir}: disk full: a checkpoint needs {need >> 20} MiB, "
                f"{free >> 20} MiB are free; older ones are intact"
            )

    def poll(self) -> None:
        """Begin the manifest of a save that has ended, beside the training; never waits."""
        if self._sealing and self._sealing.done():
            self._finish_sealing()
        if self._unsealed and not self._sealing and not self._manager.is_saving_in_progress():
            self._sealing = self._thread.submit(self._write_manifests)

    def seal(self) -> None:
        """Wait for saves under way and write their manifests."""
        with self._disk():
            self._manager.wait_until_finished()
        self._finish_sealing()
        with self._disk():
            self._write_manifests()

    def _finish_sealing(self) -> None:
        if self._sealing:
            sealing = self._sealing
            self._sealing = None
            with self._disk():
                sealing.result()  # raises what it raised

    def _write_manifests(self) -> None:
        """Process 0 hashes the committed steps, which every process has written by then."""
        if not hosts.first():
            self._unsealed = []
            return
        present = set(steps(self.workdir))
        while self._unsealed:
            step = self._unsealed.pop()
            if step in present:
                manifest = digests(os.path.join(self.workdir, "checkpoints", str(step)))
                if self._config is not None:
                    manifest[CONFIG] = self._config
                write_json(str(_manifest_path(self.workdir, step)), manifest)
        manifests = epath.Path(self.workdir, "manifests")
        for name in store.names(manifests):
            step = name.split(".")[0]
            if step.isdecimal() and int(step) not in present:
                (manifests / name).unlink()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Errors of the disk under a save as one line."""
        try:
            yield
        except OSError as error:
            self._unsealed = []
            raise self._not_written(error.strerror or str(error)) from None
        except ValueError as error:  # tensorstore's message is a ValueError of many lines
            self._unsealed = []
            if "os_error_code" not in str(error) and not store.remote(self.workdir):
                raise
            why = str(error).splitlines()[0].partition(" [os_error_code")[0].rpartition(": ")[2]
            raise self._not_written(why) from None

    def _not_written(self, why: str) -> UserError:
        what = f"workdir={self.workdir}: checkpoint not written: {why}"
        return UserError(f"{what}; older ones are intact")

    def latest(self) -> int | None:
        """The latest step, one that is being saved too."""
        if self.write:
            return self._manager.latest_step()
        return max(steps(self.workdir), default=None)

    def best(self) -> int | None:
        """The step with the lowest ``select``; None where no step has one."""
        selects = {step: self._select(step) for step in steps(self.workdir)}
        step = min(selects, key=selects.get, default=None)
        return step if step is not None and math.isfinite(selects[step]) else None

    def steps(self) -> list[int]:
        """The steps of a run that writes; those that were not good have been set aside."""
        return list(self._manager.all_steps())

    def drop_after(self, step: int) -> None:
        """Delete later steps, which only some replicas of a killed sweep had saved."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)
        self.seal()  # their manifests

    def _item(self, step: int, *path: str) -> dict[str, Any] | None:
        """A JSON object within a step; None where it is missing or damaged."""
        try:
            tree = json.loads(
                epath.Path(self.workdir, "checkpoints", str(step), *path).read_bytes()
            )
        except (OSError, ValueError):
            return None
        return tree if isinstance(tree, dict) else None

    def _select(self, step: int) -> float:
        """The figure of a step, lower is better; infinity where it has none."""
        figure = (self._item(step, "metrics", "metrics") or {}).get("select")
        return figure if isinstance(figure, int | float) else math.inf

    def meta(self) -> dict[str, Any] | None:
        """What was saved beside the state of the latest step that can be read."""
        for step in sorted(steps(self.workdir), reverse=True):
            tree = self._item(step, "meta", "metadata")
            if tree is not None:
                return tree
        return None

    def _candidates(self, which: str | int) -> list[int]:
        """The steps to try, in order."""
        present = sorted(steps(self.workdir), reverse=True)
        if which == "latest":
            return present
        if which != "best":
            if which not in present:
                there = sorted(present)
                raise UserError(f"checkpoint={which}: no such step; there are {there}")
            return [which]
        order = sorted(present, key=self._select)
        # A step whose figure is damaged may be the best: it is looked at first, and named.
        torn = []
        for step in order:
            names = _manifest(self.workdir, step) or {}
            if "metrics/metrics" in names and not math.isfinite(self._select(step)):
                torn.append(step)
        return torn + [step for step in order if step not in torn]

    def restore(
        self, abstract: Any, which: str | int = "latest"
    ) -> tuple[Any, dict[str, Any]] | None:
        """(state, meta) of the 'latest' or 'best' good step or of a number, or None.

        ``abstract``: ShapeDtypeStructs with shardings. A step that fails to restore is named, and
        the next one is tried. Nothing but the steps that are tried is looked at.
        """
        if not hosts.agree(lambda: steps(self.workdir)):
            return None
        ocp = orbax()
        reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        )
        failed = []
        for step in hosts.agree(lambda: self._candidates(which)):
            if not self.write:
                why = hosts.agree(functools.partial(fault, self.workdir, step))
                if why:
                    self.say(f"checkpoint {step}: {why}; not used")
                    continue
            folder = epath.Path(self._folder_for_orbax, str(step))
            try:
                restored = reader.restore(folder, args=args)
            except Exception as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                self.say(f"checkpoint {step}: cannot be restored ({why}); trying another")
                failed.append(step)
                continue
            if self.write and failed:  # so that training can save these steps again
                self._move_all(failed)
            return restored["state"], restored["meta"]
        return None

    def _move_all(self, failed: list[int]) -> None:
        hosts.agree(lambda: [self._move(step) for step in failed])
        if "_manager" in vars(self):
            self._manager.reload()

    def close(self, failure: BaseException | None = None) -> None:
        """Finish saves under way; after an error only what can still be finished."""
        self._thread.shutdown(wait=False)
        if "_manager" not in vars(self):
            return  # nothing was saved
        if failure is None:
            self.seal()
            self._manager.close()
        elif hosts.several():  # the others may be gone, and what needs them never ends
            self._wait(PATIENCE if isinstance(failure, UserError) else 0)
        else:
            with contextlib.suppress(Exception):
                self.seal()
            with contextlib.suppress(Exception):
                self._manager.close()

    def _wait(self, patience: float) -> None:
        """Write the manifest of a save that ends within some seconds."""
        limit = time.monotonic() + patience
        while self._manager.is_saving_in_progress() and time.monotonic() < limit:
            time.sleep(0.05)
        with contextlib.suppress(Exception):
            self._finish_sealing()
            if not self._manager.is_saving_in_progress():
                self._write_manifests()


def abstract(state: Any, places: Any) -> Any:
    """Shapes, dtypes and shardings of a state, for :meth:`Checkpoints.restore`."""

    def leaf(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, state, places)
