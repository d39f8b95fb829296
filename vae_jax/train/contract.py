"""What an objective must return, checked while it is traced: one line before the first step."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.config import UserError
from vae_jax.objectives import Terms

WANT = "want vae_jax.objectives.Terms(loss=..., elbo=...), one number per example each"


TAKEN = ("loss", "elbo", "log_px", "kl", "step", "split")  # names in a row of metrics.jsonl


def check_signature(function: Callable[..., Any], objective: str) -> None:
    """Raise :class:`UserError` where an objective does not take (model, params, batch, keys)."""
    try:
        inspect.signature(function).bind("model", "params", "batch", "keys")
    except TypeError as error:
        want = "want def loss(model, params, batch, keys, *, weight=1.0)"
        raise UserError(f"{objective}: called with four arguments, but {error}; {want}") from None
    except ValueError:  # Python does not know the signature
        return


def check_terms(result: Any, objective: str) -> None:
    """Raise :class:`UserError` where an objective returned something else than Terms of arrays.

    ``objective`` names it in the message. The shapes are checked by ``step.check``.
    """
    if not isinstance(result, Terms):
        raise UserError(f"{objective}: returned {_kind(result)}; {WANT}")
    if result.loss is None:
        raise UserError(f"{objective}: returned Terms without a loss; {WANT}")
    if not isinstance(result.extra, dict):
        raise UserError(f"{objective}: Terms.extra is {_kind(result.extra)}; want a dict of arrays")
    for name in result.extra:
        if not isinstance(name, str) or not name.isidentifier() or name in TAKEN:
            raise UserError(
                f"{objective}: Terms.extra has {name!r}; want a word that is none of "
                f"{', '.join(TAKEN)}"
            )
    named = {"loss": result.loss, "elbo": result.elbo, "log_px": result.log_px, "kl": result.kl}
    for name, value in (named | result.extra).items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float | None):
            raise UserError(f"{objective}: Terms.{name} is {_kind(value)}; want an array")
    dtype = jnp.result_type(result.loss)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{objective}: Terms.loss is {dtype}; want floating point numbers")
    if result.labelled is not None:
        check_terms(result.labelled, f"{objective}, labelled")


def _kind(value: Any) -> str:
    """'an array of shape (3,)', or the name of any other type."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__}"
