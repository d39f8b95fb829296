"""Every test has eight virtual CPU devices, a compilation cache of the suite, real data."""

import importlib.metadata
import os
import pathlib
import tempfile

import pytest

# Before jax is imported. Child processes inherit these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is what the suite spends its time on: LLVM's optimisations off, a program in one piece,
# and XLA's lighter emitters where it still has them (an unknown flag would end the process).
_FAST = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib") < "0.11":
    _FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_FAST, os.environ.get("XLA_FLAGS", "")]).strip()

# All workers, and the scripts that they start, share compiled programs; the user's own cache stays
# as it is.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="vae_jax_cache_", ignore_cleanup_errors=True)
    os.environ["VAE_JAX_CACHE"] = _CACHE.name

import jax  # noqa: E402

from vae_jax.train import program  # noqa: E402

program.use_cache()

jax.config.update("jax_num_cpu_devices", 8)  # in this process; those that it starts have one


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of original data files (mnist/, cifar10/, ...); skips where it is not named."""
    folder = os.environ.get("VAE_JAX_DATA")
    if not folder:
        pytest.skip("needs real data: set VAE_JAX_DATA to a folder with mnist/, cifar10/, ...")
    if not pathlib.Path(folder).is_dir():
        pytest.fail(f"VAE_JAX_DATA={folder}: no such folder")
    return pathlib.Path(folder)


# Files that start processes or compile much, the slowest first: one worker runs all of a file.
SLOW = (
    *("test_hosts", "test_launch", "test_loop", "test_checkpoint", "test_bad_flags"),
    *("test_replicas", "test_readme", "test_bad_input", "test_faults", "test_script"),
    *("test_cells", "test_program", "test_study"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first, so that no worker is left with one of them at the end."""

    def rank(item: pytest.Item) -> int:
        name = item.module.__name__.rpartition(".")[2]
        if name in SLOW:
            return SLOW.index(name)
        return len(SLOW)

    items.sort(key=rank)
