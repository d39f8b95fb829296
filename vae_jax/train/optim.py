"""Optimisers of optax, the learning rate as f(step), and the moving average of parameters."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

# Their learning rate takes no schedule, their update needs more than gradients, or deprecated.
EXCLUDED = ("fromage", "lbfgs", "noisy_sgd", "optimistic_adam", "rprop", "sm3")
DECAY = ("weight_decay", "weight_decay_rate")
MASK = ("mask", "weight_decay_mask")


class Optimizer(NamedTuple):
    """A constructor of optax, and its arguments."""

    create: Callable[..., optax.GradientTransformation]
    arguments: dict[str, float | bool | None]  # name → default; fields of ``config.optim``
    decay: str  # the argument for weight decay; '' where there is none
    mask: str  # the argument for the parameters that decay; '' where there is none


def _optimizers() -> dict[str, Optimizer]:
    """Every optimiser of optax that takes a schedule, by its name there."""
    table = {}
    for name, create in vars(optax).items():
        if name.startswith(("_", "scale_by_")) or name in EXCLUDED:
            continue
        if not isinstance(create, types.FunctionType | functools.partial):
            continue
        parameters = dict(inspect.signature(create).parameters)
        if next(iter(parameters), "") != "learning_rate":
            continue
        del parameters["learning_rate"]
        decay = next((p for p in DECAY if p in parameters), "")
        mask = next((p for p in MASK if p in parameters), "")
        if not mask:
            parameters.pop(decay, None)  # it would shrink biases too
            decay = ""
        numbers = {}
        for parameter in parameters.values():
            ours = parameter.name == decay or "mask" in parameter.name or "dtype" in parameter.name
            if not ours:
                numbers[parameter.name] = parameter.default
        table[name] = Optimizer(create, numbers, decay, mask)
    return table


OPTIMIZERS = _optimizers()


def learning_rate(c: ConfigDict, steps: int) -> optax.Schedule:
    """f(step): linear warm-up over ``c.warmup`` steps, then one of

    - constant; cosine, to 0 at ``steps``;
    - stages: lr · 10^(−i/7) in stage i = 0 … 7, of 3^i parts each, 3,280 parts in all (Burda
      et al. 2016, arXiv:1509.00519, section 5, where a part is an epoch; here ``steps`` / 3,280
      steps). No warm-up.
    """
    shape = _shape(c, steps)

    def rate(step: jax.Array | int) -> jax.Array:
        return c.lr * shape(step)  # c.lr may be a traced number

    return rate


def _shape(c: ConfigDict, steps: int) -> optax.Schedule:
    """The schedule for a peak of 1."""
    if c.schedule == "stages":
        ends = {round(steps * (3 ** (i + 1) - 1) / 2 / 3280): 10 ** (-1 / 7) for i in range(7)}
        return optax.piecewise_constant_schedule(1.0, ends)
    if c.schedule == "cosine":
        start = 0.0 if c.warmup else 1.0
        return optax.warmup_cosine_decay_schedule(start, 1.0, c.warmup, steps)
    if c.warmup:
        return optax.linear_schedule(0.0, 1.0, c.warmup)
    return optax.constant_schedule(1.0)


def optimizer(c: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optax chain of ``config.optim``: clip by global norm, then the optimiser that it names.

    Weight decay (as of AdamW; Loshchilov & Hutter 2019) is kept off biases, norms and all other
    vectors and scalars: it shrinks weights, not offsets.
    """
    chosen = OPTIMIZERS[c.name]
    options = {name: c[name] for name in chosen.arguments}
    if chosen.decay:
        options[chosen.decay] = c.weight_decay
    if chosen.mask:
        options[chosen.mask] = is_weight
    tx = chosen.create(learning_rate(c, steps), **options)
    if c.clip:
        return optax.chain(optax.clip_by_global_norm(c.clip), tx)
    return tx


def is_weight(params: optax.Params) -> optax.Params:
    """True for each leaf of two or more dimensions."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def ema(average: optax.Params, params: optax.Params, step: jax.Array, decay: float) -> optax.Params:
    """a ← d·a + (1 − d)·p with d = min(decay, (1 + step)/(10 + step)), so that the first steps
    do not weigh on short runs."""
    step = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, 1 - d)
