"""``metrics.jsonl``, a strict JSON object per line: ``{"step": 100, "split": "train", "loss": 1.5}``; and files
written whole: beside their place, then moved there, so that a reader never sees half of one.
"""

import importlib
import io
import json
import math
import os
import tempfile
import threading

from etils import epath

from vae_jax.config import UserError
from vae_jax.mesh import store

METRICS_FILE = "metrics.jsonl"


def disk_error(path, error):
    want = "want a folder that can be written, on a disk with room"
    return UserError(f"{path}: {error.strerror or error}; {want}")


def replace(path, data):
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
            os.fchmod(file.fileno(), 0o666 & ~umask)  # mkstemp's 0600 would hide a report from a web server
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise disk_error(path, error) from None


def _history_lines(path):
    """(line, row) of each whole line. A torn last line (the writer was killed) is left out."""
    try:
        lines = epath.Path(path).read_bytes().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return []
    pairs = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is '' or torn
        try:
            row = json.loads(line)
            row["step"], row["split"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines) - 1:
                break
            raise UserError(f"{path}: line {number} is no row of metrics; mend or remove it") from None
        pairs.append((line, row))
    return pairs


def read_history(folder):
    """The rows of ``folder/metrics.jsonl``, oldest first; [] where there is none."""
    return [row for _, row in _history_lines(os.path.join(folder, METRICS_FILE))]


class MetricsLog:
    """Rows of metrics as JSON lines, mirrored to TensorBoard in ``folder/tensorboard/SPLIT`` where it is on a disk.

    Args:
      folder: made where missing.
      resume_step: the step that training goes on from. Rows of later steps are dropped (those steps
        are run again), and so is a torn last line. None begins a new file.
    """

    def __init__(self, folder, resume_step=None):
        self._folder, self._resume_step, self._writers = folder, resume_step, {}
        self._path = os.path.join(folder, METRICS_FILE)
        kept = [] if resume_step is None else _history_lines(self._path)
        kept = [line + "\n" for line, row in kept if row["step"] <= resume_step]
        replace(self._path, "".join(kept).encode())
        if store.remote(folder):
            self._file = io.StringIO("".join(kept))
            self._file.seek(0, io.SEEK_END)
            return
        # Its import takes as long as some small runs: meanwhile the program is compiled.
        threading.Thread(target=importlib.import_module, args=("tensorboardX",), daemon=True).start()
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, step, split, values):
        """Append one row; a number that is not finite becomes null. A later kill -9 keeps the row."""
        values = {k: float(v) for k, v in values.items()}
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        row = {"step": int(step), "split": split} | {k: finite.get(k) for k in values}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            if store.remote(self._folder):
                return
            for key, value in finite.items():
                self._writer(split).add_scalar(key, value, int(step))
        except OSError as error:
            raise disk_error(self._path, error) from None

    def _writer(self, split):
        """A writer per split: TensorBoard then draws train and validation in one chart."""
        if split not in self._writers:
            from tensorboardX import SummaryWriter

            # TensorBoard hides the events from purge_step on that an earlier process wrote.
            purge = None if self._resume_step is None else self._resume_step + 1
            where = os.path.join(self._folder, "tensorboard", split)
            self._writers[split] = SummaryWriter(where, purge_step=purge, flush_secs=30)
        return self._writers[split]

    def flush(self):
        """Write what a store has not yet, before the checkpoint after it; a disk has every row already."""
        if store.remote(self._folder):
            replace(self._path, self._file.getvalue().encode())

    def close(self):
        self.flush()
        self._file.close()
        for writer in self._writers.values():
            writer.close()
