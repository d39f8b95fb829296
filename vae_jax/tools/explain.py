"""``train.py --explain``: a card of a config's objective, from its docstring and the config."""

import inspect
import os
from collections.abc import Callable

from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax.train import optim, step


def _latents(c: ConfigDict) -> str:
    if hasattr(config_lib.resolve("decoder", c.decoder.name), "groups"):
        return f"q(z|x) and p(z) Gaussian level by level, {c.decoder.name}"
    return f"q(z|x) {c.posterior.name}    p(z) {c.prior.name}    D = {c.latent}"


def source(function: Callable[..., object]) -> str:
    """file:line of a function, the file relative to the working directory where that is shorter."""
    path = inspect.getsourcefile(function)
    _, line = inspect.getsourcelines(function)
    return f"{min(os.path.relpath(path), path, key=len)}:{line}"


def _row(name: str, start: object, peak: object, end: object) -> str:
    cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (start, peak, end)]
    return f"{name:<24}" + "".join(f"{cell:>16}" for cell in cells)


def _weights(c: ConfigDict) -> list[str]:
    """A row for each number of the objective: at the first step, its greatest value, at the end."""
    rows = []
    for name, value in c.objective.items():
        if name == "name":
            continue
        start = value
        end = value
        if name == c.warmup.of and isinstance(value, float):
            start = float(value * step.weight_at(c.warmup, 0))
            end = float(value * step.weight_at(c.warmup, c.steps))
        rows.append(_row(name, start, value, end))
    return rows


def _schedule(c: ConfigDict) -> list[str]:
    """The learning rate at the first, the highest and the last step that is taken."""
    rate = optim.learning_rate(c.optim, c.steps)
    peak = min(c.optim.warmup, c.steps - 1)
    numbers = [float(rate(t)) for t in (0, peak, c.steps - 1)]
    warmup = "no warm-up"
    if c.optim.warmup:
        warmup = f"warm-up to step {c.optim.warmup}"
    kind = f"{c.optim.name}, {c.optim.schedule}, {warmup}"
    rows = [_row("learning rate", *numbers), f"schedule      {kind}"]
    if c.warmup.steps:
        warmup = f"{c.warmup.of} rises over {c.warmup.steps} steps"
        if c.warmup.cycles > 1:
            warmup = f"{warmup} in {c.warmup.cycles} cycles"
        rows.append(f"              {warmup}")
    return rows


def card(c: ConfigDict) -> str:
    """The equation, its source, what is summed and averaged, units, weights and schedules."""
    config_lib.validate(c)
    function = config_lib.resolve("objective", c.objective.name)
    batch = f"the {c.batch} examples of the batch, once, at the end"
    lines = [
        f"objective.name = {c.objective.name}",
        "",
        inspect.getdoc(function) or "(no docstring)",
        "",
        f"source        {source(function)}",
        "summed over   pixels and channels; latent dimensions and levels",
        f"averaged over samples of z within the equation; {batch}",
        "units         nats per example; the elbo beside the loss has beta = 1 and no other weight",
        f"p(x|z)        {c.likelihood.name}    {_latents(c)}",
        "",
        _row("weight", "step 0", "at its peak", f"step {c.steps}"),
        *_weights(c),
        *_schedule(c),
    ]
    return "\n".join(lines)
