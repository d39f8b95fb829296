"""What an objective must return, checked while it is traced: one line before the first step."""

from typing import Any

import jax
import numpy as np

from vae_jax.config import UserError
from vae_jax.objectives import Terms

WANT = "want vae_jax.objectives.Terms(loss=..., elbo=...), one number per example each"


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
    named = {"loss": result.loss, "elbo": result.elbo, "log_px": result.log_px, "kl": result.kl}
    for name, value in (named | result.extra).items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float | None):
            raise UserError(f"{objective}: Terms.{name} is {_kind(value)}; want an array")
    if result.labelled is not None:
        check_terms(result.labelled, f"{objective}, labelled")


def _kind(value: Any) -> str:
    """'an array of shape (3,)', or the name of any other type."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__}"
