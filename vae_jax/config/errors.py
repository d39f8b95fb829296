"""Bad input is one line that names the field, the value and what would be right."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, in one line: the field, its value, and what would be right."""


UserError.__module__ = "vae_jax.config"  # as users import it


def nearest(name: str, known: Iterable[str]) -> str:
    """'nearest: a, b' for a mistyped name, or the whole list where no known name is near."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    return f"one of {', '.join(names)}"
