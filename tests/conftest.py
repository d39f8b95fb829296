"""What every test stands on: eight virtual CPU devices, its own compilation cache, real data."""

import os
import pathlib
import tempfile

import pytest

# Before jax is imported. Child processes inherit all of it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

# Scripts that the tests start share compiled programs; the user's own cache stays as it is.
_CACHE = tempfile.TemporaryDirectory(prefix="vae_jax_cache_", ignore_cleanup_errors=True)
os.environ["VAE_JAX_CACHE"] = _CACHE.name


@pytest.fixture(scope="session")
def data_dir():
    """The folder of original data files (mnist/, cifar10/, ...); skips where it is not named."""
    folder = os.environ.get("VAE_JAX_DATA")
    if not folder:
        pytest.skip("needs real data: set VAE_JAX_DATA to a folder with mnist/, cifar10/, ...")
    if not pathlib.Path(folder).is_dir():
        pytest.fail(f"VAE_JAX_DATA={folder}: no such folder")
    return pathlib.Path(folder)
