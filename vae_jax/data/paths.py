"""Paths that people write: ``~`` is expanded, and a home folder may be missing or read-only."""

import os
import pathlib
import tempfile

from vae_jax.config import UserError


def expand(path: str | os.PathLike, field: str) -> pathlib.Path:
    """``path`` with ``~`` expanded; :class:`UserError` names ``field`` where there is no home."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{field}={path}: no home folder here; want the path without ~") from None


def cache_root() -> pathlib.Path:
    """Where decoded images are kept: VAE_JAX_CACHE, else ~/.cache/vae_jax, else below /tmp.

    The last is for containers whose user has no home folder, or one that cannot be written.
    """
    if os.environ.get("VAE_JAX_CACHE"):
        return expand(os.environ["VAE_JAX_CACHE"], "VAE_JAX_CACHE")
    try:
        root = pathlib.Path("~/.cache/vae_jax").expanduser()
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK):
            return root
    except (OSError, RuntimeError):
        pass
    return pathlib.Path(tempfile.gettempdir()) / f"vae_jax-{os.getuid()}"
