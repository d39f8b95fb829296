"""What earlier calls of ``eval.py --tasks`` have measured, so that a later one adds to it.

    WORKDIR/tasks/NAME/result.json   metrics, why some are missing, the checkpoint, the pictures' tree
                       arrays.npz    the arrays of the pictures (no pickle)

A record counts only for the checkpoint that it names by its step and checksum.
"""

import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np
from etils import epath

from vae_jax.config import UserError
from vae_jax.evaluate.run import Result
from vae_jax.train import checkpoint, log

FOLDER = "tasks"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError)
OWN = "metrics"  # the record of the user's own metrics


def mark(workdir: str, step: int) -> dict[str, Any]:
    """What identifies a checkpoint: its step and the checksum of its files."""
    return {"step": step, "sha256": checkpoint.digest(workdir, step)}


def save(workdir: str, task: str, which: dict[str, Any], result: Result, options: dict) -> Result:
    """Write a task's result; returns it.

    What an earlier call found for the same checkpoint stays where this one has nothing of its name,
    such as the metrics and panels of another OOD set.
    """
    metrics, why, pictures = result
    folder = epath.Path(workdir, FOLDER, task)
    before = _load(folder, which)
    if before is not None:
        metrics = before[0] | metrics
        for name, panels in before[2].items():
            if isinstance(panels, dict):
                pictures = pictures | {name: panels | pictures.get(name, {})}
    arrays: list[np.ndarray] = []
    tree = _packed(pictures, arrays)
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    blob = file.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    log.replace(str(folder / "arrays.npz"), blob)
    record = {
        "checkpoint": which,
        "options": options,
        "metrics": metrics,
        "why": why,
        "pictures": tree,
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    checkpoint.write_json(str(folder / "result.json"), record)
    return metrics, why, pictures


def load(workdir: str, which: dict[str, Any]) -> dict[str, Result]:
    """{task: result} of all records of this checkpoint.

    Raises:
      UserError: a record is damaged.
    """
    results = {}
    folder = epath.Path(workdir, FOLDER)
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            result = _load(path, which)
            if result is not None:
                results[path.name] = result
    return results


def _load(folder: epath.Path, which: dict[str, Any]) -> Result | None:
    """The result in this folder; None where there is none or it is another checkpoint's."""
    if not (folder / "result.json").is_file():
        return None
    try:
        record = json.loads((folder / "result.json").read_text())
        if record["checkpoint"] != which:
            return None
        blob = (folder / "arrays.npz").read_bytes()
        if hashlib.sha256(blob).hexdigest() != record["sha256"]:
            raise ValueError("arrays of another call")
        with np.load(io.BytesIO(blob), allow_pickle=False) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
        return record["metrics"], record["why"], _unpacked(record["pictures"], arrays)
    except (*_DAMAGE, zipfile.BadZipFile):
        raise UserError(f"{folder}: damaged; remove it, and evaluate this task again") from None


def _packed(tree: Any, arrays: list[np.ndarray]) -> Any:
    """``tree`` as JSON has it; arrays go to the list, in their place stands {"array": number}."""
    if isinstance(tree, dict):
        return {"dict": [[key, _packed(value, arrays)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"tuple": [_packed(value, arrays) for value in tree]}
    arrays.append(np.asarray(tree))
    return {"array": len(arrays) - 1}


def _unpacked(tree: Any, arrays: list[np.ndarray]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "array":
        array = arrays[value]
        return array if array.ndim else array.item()
    if kind == "tuple":
        return tuple(_unpacked(part, arrays) for part in value)
    return {key: _unpacked(part, arrays) for key, part in value}
