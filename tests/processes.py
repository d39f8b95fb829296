"""What tests that start processes share."""

import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from ml_collections import ConfigDict

from vae_jax.config import UserError
from vae_jax.train import clock
from vae_jax.train import run as run_lib

ROOT = pathlib.Path(__file__).parents[1]


def python(*argv: Any, timeout: float = 280, **options: Any) -> subprocess.CompletedProcess:
    """``python ARGV...`` from the project's folder, with its output as text."""
    command = [sys.executable, *map(str, argv)]
    options = {"cwd": ROOT, "timeout": timeout} | options
    return subprocess.run(command, capture_output=True, text=True, **options)


def silent(line: str) -> None:
    """The opposite of print."""


def one_line(run: Callable[[list[str]], Any], argv: list[str], pattern: str) -> None:
    """``run(argv)`` must raise a :class:`UserError` of one line in which ``pattern`` occurs."""
    with pytest.raises(UserError) as error:
        run(argv)
    message = str(error.value)
    assert "\n" not in message
    assert re.search(pattern, message), message


def free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def rows(workdir: Any) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def untimed_rows(workdir: Any) -> list[dict[str, Any]]:
    """The rows without what depends on the clock."""
    kept = []
    for row in rows(workdir):
        kept.append({name: value for name, value in row.items() if name not in clock.ROW})
    return kept


def cut(source: pathlib.Path, target: pathlib.Path, step: int) -> None:
    """A copy of a run as if it had ended after ``step``."""
    shutil.copytree(source, target)
    for later in (target / "checkpoints").iterdir():
        if later.name.isdigit() and int(later.name) > step:
            shutil.rmtree(later)
            (target / "manifests" / f"{later.name}.json").unlink()


def on_one_device(workdir: Any) -> ConfigDict:
    """The config of a run, on one device of this process as in a process of its own."""
    c = run_lib.read_config(str(workdir))
    c.mesh.data = 1
    return c


def state_bytes(workdir: Any, step: int = 200) -> dict[str, bytes]:
    """Every array of a saved state by its path, to compare runs bit for bit."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    with ocp.CheckpointManager(folder) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    leaves = jax.tree_util.tree_leaves_with_path(restored["state"])
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
