"""Orbax checkpoints with a checksum manifest: latest and best kept apart, damage named, never restored.

A workdir holds ``checkpoints/STEP/`` (Orbax: the state and its meta) and ``manifests/STEP.json`` (the
SHA-256 of every file of that step, written after Orbax has committed it). A step is good if it has a
manifest and every file matches. Anything else is named in one line and passed over.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import jax
from etils import epath

from vae_jax.config import UserError
from vae_jax.mesh import hosts, store

PATIENCE = 20  # seconds for a save under way to end after an error


@functools.cache
def orbax():
    """``orbax.checkpoint``. A quarter of the package's imports, and no first step needs it."""
    import orbax.checkpoint

    # It and its event loop log every save, and tracebacks beside every error that they raise as well.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return orbax.checkpoint


def write_json(path, value):
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


def digests(folder):
    """{relative path: SHA-256} of every file under a folder."""
    found = {}
    for path in sorted(store.files(folder), key=lambda p: (p.parent, p.name)):
        with path.open("rb") as f:
            found[str(path.relative_to(folder))] = hashlib.file_digest(f, "sha256").hexdigest()
    return found


def steps(workdir):
    """The steps that are there in rising order, good or not."""
    return sorted(int(n) for n in store.names(os.path.join(workdir, "checkpoints")) if n.isdigit())


def digest(workdir, step):
    """The hash of a whole checkpoint: SHA-256 of its manifest."""
    manifest = epath.Path(workdir, "manifests", f"{step}.json")
    return hashlib.sha256(manifest.read_bytes()).hexdigest()


def fault(workdir, step):
    """None for a good step, else what is wrong with it."""
    manifest = epath.Path(workdir, "manifests", f"{step}.json")
    if not manifest.is_file():
        return "was not finished (no manifest)"
    try:
        wanted = json.loads(manifest.read_bytes())
    except ValueError:
        return f"{manifest} is damaged"
    found = digests(os.path.join(workdir, "checkpoints", str(step)))
    for name, digest in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} is damaged (checksum differs)"
    return None


class Checkpoints:
    """The checkpoints of one workdir.

    ``say`` is called with one line for each step that is passed over. ``write=False`` only reads: it can
    stand beside a training run, and moves and deletes nothing.
    """

    def __init__(self, workdir, say=print, write=True):
        self.workdir, self.say, self.write = store.absolute(workdir), say, write
        if write:
            hosts.agree(self._set_aside)
        self._unsealed, self._sealing, self._beside = [], None, ThreadPoolExecutor(1)

    @functools.cached_property
    def _manager(self):
        ocp, best = orbax(), lambda m: m["select"]
        policies = ocp.checkpoint_managers
        keep = [
            policies.LatestN(2),
            # A step saved on request has no figure: it is kept while it is the latest, no longer.
            policies.BestN(get_metric_fn=best, reverse=True, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=best,
            best_mode="min",
            create=self.write,
            read_only=not self.write,
        )
        try:
            return ocp.CheckpointManager(os.path.join(self.workdir, "checkpoints"), options=options)
        except OSError as error:
            raise UserError(f"workdir={self.workdir}: cannot write: {error.strerror}") from None

    def _set_aside(self):
        """Move steps that are not good out of Orbax's way; nothing is deleted."""
        self._folder("manifests")
        for step in steps(self.workdir):
            why = fault(self.workdir, step)
            if why is not None:
                self.say(f"checkpoint {step}: {why}; set aside")
                self._move(step)

    def _folder(self, name):
        if store.remote(self.workdir):
            return  # an object's name makes its folders
        try:
            os.makedirs(os.path.join(self.workdir, name), exist_ok=True)
        except OSError as error:
            raise UserError(f"workdir={self.workdir}: cannot write: {error.strerror}") from None

    def _move(self, step):
        aside = os.path.join(self.workdir, "damaged", str(step))
        there = os.path.join(self.workdir, "checkpoints", str(step))
        if store.remote(self.workdir):
            store.copy(there, aside)
            epath.Path(there).rmtree()
            return
        self._folder("damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(there, aside)

    def save(self, step, state, meta, select=None):
        """Start saving; ``select`` (lower is better) makes the step a candidate for the best."""
        self.seal()
        need = 2 * sum(x.nbytes for x in jax.tree.leaves(state)) + 2**20
        free = need if store.remote(self.workdir) else shutil.disk_usage(self.workdir).free
        if free < need:
            raise UserError(
                f"workdir={self.workdir}: disk full: a checkpoint needs {need >> 20} MiB, {free >> 20} MiB are free; "
                "older ones are intact"
            )
        ocp = orbax()
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        metrics = None if select is None else {"select": float(select)}
        with self._disk():
            self._manager.save(step, args=args, metrics=metrics, force=True)
        self._unsealed.append(step)

    def poll(self):
        """Begin the manifest of a save that has ended meanwhile, beside the training; never waits."""
        if self._sealing and self._sealing.done():
            self._sealed()
        if self._unsealed and not self._sealing and not self._manager.is_saving_in_progress():
            self._sealing = self._beside.submit(self._manifests)

    def seal(self):
        """Wait for saves under way and write their manifests."""
        with self._disk():
            self._manager.wait_until_finished()
        self._sealed()
        self._manifests()

    def _sealed(self):
        if self._sealing:
            sealing, self._sealing = self._sealing, None
            sealing.result()  # raises what it raised

    def _manifests(self):
        """Process 0 hashes what is committed, which every process has written its part of by then."""
        if not hosts.first():
            self._unsealed = []
            return
        there = set(steps(self.workdir))
        while self._unsealed:
            step = self._unsealed.pop()
            if step in there:
                folder = os.path.join(self.workdir, "checkpoints", str(step))
                write_json(os.path.join(self.workdir, "manifests", f"{step}.json"), digests(folder))
        manifests = epath.Path(self.workdir, "manifests")
        for name in store.names(manifests):
            if name.split(".")[0].isdigit() and int(name.split(".")[0]) not in there:
                (manifests / name).unlink()

    @contextlib.contextmanager
    def _disk(self):
        """Errors of the disk under a save as one line."""
        try:
            yield
        except OSError as error:
            self._unsealed = []
            raise UserError(
                f"workdir={self.workdir}: checkpoint not written: {error.strerror}; older ones are intact"
            ) from None
        except ValueError as error:  # tensorstore says it in many lines of a ValueError
            self._unsealed = []
            if "os_error_code" not in str(error) and not store.remote(self.workdir):
                raise
            why = str(error).splitlines()[0].partition(" [os_error_code")[0].rpartition(": ")[2]
            raise UserError(f"workdir={self.workdir}: checkpoint not written: {why}; older ones are intact") from None

    def latest(self):
        return self._manager.latest_step()

    def best(self):
        return self._manager.best_step()

    def steps(self):
        """The steps that are there; those that were not good have been set aside."""
        return list(self._manager.all_steps())

    def drop_after(self, step):
        """Delete later steps: a sweep was killed when some of its replicas had saved and others had not."""
        for later in (s for s in self.steps() if s > step):
            self._manager.delete(later)
        self.seal()  # their manifests

    def meta(self):
        """What was saved beside the state of the latest step."""
        ocp = orbax()
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(self.latest(), args=args)["meta"]

    def restore(self, abstract, which="latest"):
        """(state, meta) of the 'latest' or 'best' good step or of a number; None where there is none.

        ``abstract``: ShapeDtypeStructs with shardings. A step that fails to restore is named, and the
        one before it is tried.
        """
        if not hosts.agree(lambda: steps(self.workdir)):
            return None
        there = sorted(self._manager.all_steps(), reverse=True)
        if not self.write:
            faults = dict(hosts.agree(lambda: [(step, fault(self.workdir, step)) for step in there]))
            for step in (s for s in there if faults[s]):
                self.say(f"checkpoint {step}: {faults[step]}; not used")
            there = [step for step in there if not faults[step]]
        if which == "best":
            wanted = sorted(there, key=lambda step: step != self.best())
        elif which == "latest":
            wanted = there
        else:
            if which not in there:
                raise UserError(f"checkpoint={which}: no such step; there are {sorted(there)}")
            wanted = [which]
        ocp = orbax()
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
        failed = []
        for step in wanted:
            try:
                found = self._manager.restore(step, args=args)
            except Exception as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                self.say(f"checkpoint {step}: cannot be restored ({why}); trying another")
                failed.append(step)
                continue
            if self.write and failed:  # so that training can save these steps again
                hosts.agree(lambda: [self._move(bad) for bad in failed])
                self._manager.reload()
            return found["state"], found["meta"]
        return None

    def close(self, failed=None):
        """Finish saves under way; after an error only what can still be finished."""
        if "_manager" not in vars(self):
            return  # nothing was saved or read
        if failed is not None and hosts.several():  # the others may be gone, and what needs them never ends
            limit = time.monotonic() + (PATIENCE if isinstance(failed, UserError) else 0)
            while self._manager.is_saving_in_progress() and time.monotonic() < limit:
                time.sleep(0.05)
            with contextlib.suppress(Exception):
                self.poll()
                self._sealed()
            return
        with contextlib.suppress(Exception) if failed else contextlib.nullcontext():
            if self.write:
                self.seal()
            self._manager.close()


def abstract(state, places):
    """Shapes, dtypes and shardings of a state, for :meth:`Checkpoints.restore`."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places)
