"""``metrics.jsonl``, one strict JSON object a line, and files that are written whole.

A row is ``{"step": 100, "split": "train", "loss": 1.5}``. A file is written beside its place, then
moved there, so that a reader never sees half of one.
"""

import contextlib
import errno
import importlib
import io
import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from etils import epath

from vae_jax.config import UserError
from vae_jax.mesh import store
from vae_jax.train import writers

METRICS_FILE = "metrics.jsonl"


def disk_error(path: str, error: OSError) -> UserError:
    """The error of a disk as one line."""
    want = "want a folder that can be written, on a disk with room"
    return UserError(f"{path}: {error.strerror or error}; {want}")


def check_writable(path: str | os.PathLike) -> None:
    """Raise where a file could not be written: long work asks before it begins.

    Folders that are not there yet are those that :func:`replace` would make.
    """
    if store.remote(path):
        return
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise disk_error(str(path), error) from None


def replace(path: str, data: bytes) -> None:
    """Write bytes beside ``path``, then move them there: the old file or the new one, not half."""
    if store.remote(path):
        return store.write(path, data)
    temporary = None
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            umask = os.umask(0)
            os.umask(umask)
            # mkstemp's 0600 would hide a report from a web server.
            os.fchmod(file.fileno(), 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise disk_error(path, error) from None


def _history_lines(path: str) -> list[tuple[str, dict[str, Any]]]:
    """(line, row) of each whole line. A torn last line (the writer was killed) is left out."""
    try:
        text = epath.Path(path).read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError as error:  # a folder, or without the right to it
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; want a file") from None
    pairs = []
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is '' or torn
        try:
            row = json.loads(line)
            row["step"], row["split"]
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines) - 1:
                break
            raise UserError(
                f"{path}: line {number} is no row of metrics; mend or remove it"
            ) from None
        pairs.append((line, row))
    return pairs


def read_history(folder: str) -> list[dict[str, Any]]:
    """The rows of ``folder/metrics.jsonl``, oldest first; [] where there is none."""
    return [row for _, row in _history_lines(os.path.join(folder, METRICS_FILE))]


class MetricsLog:
    """Rows of metrics as JSON lines, mirrored to what :mod:`vae_jax.train.writers` names.

    A run that begins also has its config and its equation written there.

    Args:
      folder: is created where missing.
      resume_step: the step that training goes on from. Rows of later steps are dropped (those steps
        are run again), and so is a torn last line. None begins a new file.
    """

    def __init__(self, folder: str, resume_step: int | None = None) -> None:
        self._folder = folder
        self._new = not resume_step
        self._path = os.path.join(folder, METRICS_FILE)
        pairs = [] if resume_step is None else _history_lines(self._path)
        kept = "".join(line + "\n" for line, row in pairs if row["step"] <= resume_step)
        replace(self._path, kept.encode())
        self._writers = writers.create(folder, resume_step)
        if store.remote(folder):
            self._file = io.StringIO(kept)
            self._file.seek(0, io.SEEK_END)
            return
        # Its import takes as long as some small runs: meanwhile the program is compiled.
        name = "tensorboardX.event_file_writer"
        threading.Thread(target=importlib.import_module, args=(name,), daemon=True).start()
        try:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise disk_error(self._path, error) from None

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Append one row; a number that is not finite becomes null. kill -9 keeps the row."""
        row: dict[str, Any] = {"step": int(step), "split": split}
        finite = {}
        for name, value in values.items():
            row[name] = None
            if math.isfinite(value):
                row[name] = finite[name] = float(value)
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            for writer in self._writers:
                if self._new:
                    writers.describe(writer, self._folder)
                writer.scalars(split, int(step), finite)
            self._new = False
        except OSError as error:
            raise disk_error(self._path, error) from None

    def flush(self) -> None:
        """Write the rows that a store lacks, before a checkpoint; a disk has them already."""
        if store.remote(self._folder):
            replace(self._path, self._file.getvalue().encode())

    def close(self) -> None:
        self.flush()
        try:
            self._file.close()
            for writer in self._writers:
                writer.close()
        except OSError as error:
            raise disk_error(self._path, error) from None


def write_evaluation(folder: str, step: int, metrics: dict[str, Any]) -> None:
    """:func:`vae_jax.train.writers.evaluation`; a full disk is one line."""
    try:
        writers.evaluation(folder, step, metrics)
    except OSError as error:
        raise disk_error(folder, error) from None


class _Droppable:
    """A stream of text that drops what cannot be written, with one line elsewhere."""

    def __init__(self, stream: Any, other: Any) -> None:
        self._stream = stream
        self._other = other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Let the stream lead nowhere from now on, also what is still in its buffer."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        with contextlib.suppress(OSError, ValueError):
            why = error.strerror or error
            self._other.write(f"output cannot be written ({why}) and is dropped; the run goes on\n")
            self._other.flush()


@contextlib.contextmanager
def output_may_close() -> Iterator[None]:
    """Inside, a closed pipe or a lost terminal does not end the run."""
    out = sys.stdout
    err = sys.stderr
    sys.stdout = _Droppable(out, err)
    sys.stderr = _Droppable(err, out)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = out
        sys.stderr = err
