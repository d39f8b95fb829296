"""Arrays on disk that are either whole or not there: decoded images, kept between runs.

An entry is a .npy file with the CRC-32 of its values in four more bytes at its end. It is written
under a name of the writer's own and renamed, so a killed writer leaves no entry and two writers at
once leave a whole one. An entry that is short or altered is built again.
"""

import contextlib
import hashlib
import os
import pathlib
import time
import uuid
import zlib

import numpy as np

from vae_jax.config import UserError


def folder(name, *key):
    """The cache folder of what ``name`` and ``key`` say: VAE_JAX_CACHE, else ~/.cache/vae_jax."""
    root = pathlib.Path(os.environ.get("VAE_JAX_CACHE") or "~/.cache/vae_jax").expanduser()
    label = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[-40:]
    return root / f"{label}-{hashlib.sha256(repr((name, *key)).encode()).hexdigest()[:16]}"


def fingerprint(path):
    """A hash of the names, sizes and times of all files below ``path``."""
    found = hashlib.sha256()
    for file in sorted(pathlib.Path(path).rglob("*")):
        stat = file.lstat()
        found.update(f"{file.relative_to(path)}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return found.hexdigest()


def load(path, shape, dtype, chunks):
    """The array at ``path``, memory-mapped; if need be built from ``chunks()``, along axis 0.

    Raises :class:`UserError` where the disk is full or cannot be written.
    """
    array = _read(path, shape, dtype)
    if array is None:
        _write(path, shape, dtype, chunks())
        array = _read(path, shape, dtype)
    return array


def _read(path, shape, dtype):
    """The entry, or None where there is none or it is not what was written."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            crc = int.from_bytes(file.read(), "little")
    except (OSError, ValueError, EOFError):
        return None
    whole = array.shape == tuple(shape) and array.dtype == dtype
    whole = whole and path.stat().st_size == array.offset + array.nbytes + 4
    return array if whole and zlib.crc32(array) == crc else None


def _write(path, shape, dtype, chunks):
    # Plain writes, not a memory map: on a full disk a map dies with SIGBUS, a write raises.
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        with open(temporary, "xb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
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
        raise UserError(
            f"VAE_JAX_CACHE={path.parent.parent}: cannot write there ({error.strerror}); "
            f"want a folder with {np.prod(shape) * np.dtype(dtype).itemsize / 2**20:.0f} MiB free"
        ) from None
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _sweep(path):
    """Remove what killed writers left more than a day ago."""
    for file in path.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > 86400:
                file.unlink()
