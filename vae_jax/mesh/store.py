"""Runs in an object store (``--workdir=gs://BUCKET/FOLDER``) for hosts without a shared disk.

Files go through etils and gcsfs, the arrays of a checkpoint through Orbax and tensorstore. A disk
has these things, and a store does not:

- A lock. Two runs in one folder are kept apart on one machine only; elsewhere nothing but their
  config.json is.
- Appending. ``metrics.jsonl`` is written whole, before each checkpoint and at the end: a kill takes
  the rows since, whose steps are done again.
- Renaming. An object is there whole or not at all; a checkpoint is good once its manifest is there,
  as on a disk.
- TensorBoard's files, which are left out. A profile is copied when it ends.
"""

import importlib.util
import os
from collections.abc import Iterator

from etils import epath

from vae_jax.config import UserError


def remote(path: str | os.PathLike[str]) -> bool:
    return "://" in str(path)


def absolute(path: str | os.PathLike[str]) -> str:
    return str(path).rstrip("/") if remote(path) else os.path.abspath(path)


def check(workdir: str | os.PathLike[str]) -> None:
    """Look at a store before anything is asked of it; nothing for a folder of this machine.

    Raises:
      UserError: Orbax cannot write there, gcsfs is not installed, or the bucket cannot be reached.
    """
    if not remote(workdir):
        return
    if not str(workdir).startswith("gs://"):
        want = "want a folder, or gs://BUCKET/FOLDER"
        raise UserError(f"workdir={workdir}: Orbax writes to no such store; {want}")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"workdir={workdir}: wants the package gcsfs: pip install '.[store]'")
    import fsspec

    fsspec.config.conf["gcs"] = {
        "use_listings_cache": False
    }  # tensorstore and other hosts write without it
    try:
        there = epath.Path("/".join(str(workdir).split("/")[:3])).exists()
    except Exception as error:  # gcsfs', aiohttp's and google's own
        raise UserError(f"workdir={workdir}: cannot be reached: {_line(error)}") from None
    if not there:
        raise UserError(f"workdir={workdir}: no such bucket, or no right to it")


def write(path: str, data: bytes) -> None:
    """Bytes as an object: a reader sees the old one or the new one, never half of it."""
    try:
        epath.Path(path).write_bytes(data)
    except Exception as error:
        raise UserError(f"{path}: cannot write: {_line(error)}") from None


def names(folder: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, here or in a store; [] where there is none."""
    try:
        return sorted(path.name for path in epath.Path(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def files(folder: str | os.PathLike[str]) -> Iterator[epath.Path]:
    """The path of every file under a folder."""
    for path in (epath.Path(folder) / name for name in names(folder)):
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def copy(folder: str, target: str) -> None:
    """Copy every file under a folder to one in a store."""
    for path in files(folder):
        path.copy(epath.Path(target) / path.relative_to(folder), overwrite=True)


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0]
