"""vae_jax: variational autoencoders for image classification and recognition, in JAX.

A trained run in two lines (``vae_jax.tools.library`` documents the rest)::

    run = vae_jax.load("runs/digits")
    z = run.encode(images)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_jax.tools.library import Exported, Run, UserError, fit, load

__version__ = "0.1.0"

__all__ = ["Exported", "Run", "UserError", "fit", "load"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: ``import vae_jax`` imports no JAX."""
    if name in __all__:
        return getattr(importlib.import_module("vae_jax.tools.library"), name)
    if name == "evaluate":  # a package; the library makes vae_jax.evaluate(run) a call as well
        return importlib.import_module("vae_jax.evaluate")
    raise AttributeError(f"module 'vae_jax' has no attribute {name!r}")
