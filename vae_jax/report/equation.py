"""The loss of a run as an equation, from the objective's docstring, with its weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.report import pictures, words

MATHS = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 {3,}\S.*)*)", re.MULTILINE)
# What matplotlib's maths lacks, as what it has.
REPLACED = (
    (r"\\underbrace\{((?:[^{}]|\{[^{}]*\})*)\}_\{([^{}]*)\}", r"\2\\,[\1]"),
    (r"\\tfrac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}"),
    (r"\\tfrac", r"\\frac"),
    (r"\\textstyle", ""),
    (r"\\[bB]igg?[lr]?(?![A-Za-z])", ""),
    (r"‖|\\[lr]Vert", r"\\|"),
    (r"[,.]$", ""),
)


def equations(docstring: str) -> list[str]:
    """The LaTeX of each ``.. math::`` of a docstring, on one line."""
    return [" ".join(text.split()) for _, text in MATHS.findall(docstring)]


def view(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"lines", "weights"} for the page; None where the config names no objective of a docstring.

    A line is {"light", "dark", "alt"}, or {"alt"} where the equation cannot be drawn.
    """
    objective = config.get("objective")
    if not isinstance(objective, Mapping) or "name" not in objective:
        return None
    try:
        function = config_lib.resolve("objective", objective["name"])
    except UserError:  # the user's own file is elsewhere now
        return None
    lines = [_line(latex) for latex in equations(inspect.getdoc(function) or "")]
    if not lines:
        return None
    return {"lines": lines, "weights": _weights(objective, config.get("warmup") or {})}


def _weights(objective: Mapping[str, Any], warmup: Mapping[str, Any]) -> list[str]:
    """``"beta = 1"`` of each field of the objective, and which of them rises, and how long."""
    texts = []
    for name, value in objective.items():
        if name == "name":
            continue
        text = f"{name} = {words.setting(value)}"
        if warmup.get("steps") and name == warmup.get("of"):
            text += f", rising over {warmup['steps']:,} steps"
        texts.append(text)
    return texts


def _line(latex: str) -> dict[str, str]:
    drawn = latex
    for pattern, replacement in REPLACED:
        drawn = re.sub(pattern, replacement, drawn)
    try:
        return {"alt": latex} | pictures.maths(drawn)
    except ValueError:  # a command that matplotlib lacks
        return {"alt": latex}
