"""Arrays on disk that are either whole or not there: decoded images, kept between runs.

An array is a .npy file with the CRC-32 of its values in four more bytes at its end. It is written
under a name of the writer's own and renamed, so a killed writer leaves no array and two writers at
once leave a whole one. An array that is short or altered is built again. The arrays of one version
of a data set are one folder; a folder of an older version, or one that nothing has read for 30
days, is removed when another is written.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import paths

DAY = 86400  # seconds
UNUSED_DAYS = 30
# NAME-KEY-VERSION, and NAME-KEY as earlier releases wrote it. The compiler's cache has other names.
_ENTRY = re.compile(r".*-[0-9a-f]{16}(-[0-9a-f]{16})?")


def folder(name: str, *key: object, version: str) -> pathlib.Path:
    """The cache folder of a ``version`` (a hash) of the data set that ``name`` and ``key`` say."""
    label = re.sub(r"[^\w-]", "_", name, flags=re.ASCII)[-40:]
    digest = hashlib.sha256(repr((name, *key)).encode()).hexdigest()
    return paths.cache_root() / f"{label}-{digest[:16]}-{version[:16]}"


def size(root: pathlib.Path) -> int:
    """Bytes of all cache folders below ``root``."""
    total = 0
    for entry in _entries(root):
        for file in entry.glob("*.npy"):
            total += file.stat().st_size
    return total


def fingerprint(path: str | os.PathLike) -> str:
    """A hash of the names, sizes and times of all files below ``path``; links are followed."""
    root = pathlib.Path(path)
    files = []
    for parent, _, names in os.walk(root, followlinks=True):
        for name in names:
            files.append(pathlib.Path(parent, name))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(os.fsencode(file.relative_to(root)) + b"\n" + stamp(file))
    return digest.hexdigest()


def stamp(file: pathlib.Path) -> bytes:
    """Size and time of a file, and where it leads if it is a link, so that a new target shows."""
    target = b""
    if file.is_symlink():
        target = os.fsencode(os.readlink(file))
    try:
        status = file.stat()
    except OSError:  # a link that leads nowhere
        status = file.lstat()
    return f"{status.st_size}\n{status.st_mtime_ns}\n".encode() + target + b"\n"


def load(
    path: pathlib.Path,
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    chunks: Callable[[], Iterable],
) -> np.ndarray:
    """The array at ``path``, memory-mapped; if need be built from ``chunks()``, along axis 0.

    Raises :class:`UserError` where the disk is full or cannot be written.
    """
    array = _read(path, shape, dtype)
    if array is None:
        _write(path, shape, dtype, chunks())
        array = _read(path, shape, dtype)
    with contextlib.suppress(OSError):
        os.utime(path.parent)  # the time of the last use
    return array


def _read(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray | None:
    """The array, or None where there is none or it is not what was written."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            crc = int.from_bytes(file.read(), "little")
    except (OSError, ValueError, EOFError):
        return None
    if array.shape != tuple(shape) or array.dtype != dtype:
        return None
    if path.stat().st_size != array.offset + array.nbytes + 4 or zlib.crc32(array) != crc:
        return None
    return array


def _write(
    path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype | type, chunks: Iterable
) -> None:
    # Plain writes, not a memory map: on a full disk a map dies with SIGBUS, a write raises.
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean(path.parent)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        with open(temporary, "xb") as file:
            header = {
                "descr": np.dtype(dtype).str,
                "fortran_order": False,
                "shape": tuple(shape),
            }
            np.lib.format.write_array_header_1_0(file, header)
            crc = 0
            for chunk in chunks:
                values = np.ascontiguousarray(chunk, dtype).tobytes()
                crc = zlib.crc32(values, crc)
                file.write(values)
            file.write(crc.to_bytes(4, "little"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        mebibytes = int(np.prod(shape)) * np.dtype(dtype).itemsize / 2**20
        raise UserError(
            f"VAE_JAX_CACHE={path.parent.parent}: cannot write there ({error.strerror}); "
            f"want a folder with {max(mebibytes, 1):.0f} MiB free"
        ) from None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def clean(entry: pathlib.Path) -> None:
    """Remove what ``entry`` replaces, what nothing has read for 30 days, and killed writers' files.

    An array that a running program has mapped stays readable for it.
    """
    for file in entry.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > DAY:
                file.unlink()
    for other in _entries(entry.parent):
        if other.name == entry.name:
            continue
        with contextlib.suppress(OSError):
            replaced = other.name.rpartition("-")[0] == entry.name.rpartition("-")[0]
            if replaced or time.time() - other.stat().st_mtime > UNUSED_DAYS * DAY:
                shutil.rmtree(other)


def _entries(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders below ``root`` that :func:`folder` named and that hold arrays alone."""
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if _ENTRY.fullmatch(path.name) and _holds_arrays(path)]


def _holds_arrays(path: pathlib.Path) -> bool:
    try:
        return all(file.suffix in (".npy", ".tmp") for file in path.iterdir())
    except OSError:  # no folder, or another program has just removed it
        return False
