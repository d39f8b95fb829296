"""Optimisers from optax, the learning rate as f(step), and the moving average of parameters."""

import jax
import jax.numpy as jnp
import optax


def learning_rate(c, steps):
    """f(step): linear warm-up over ``c.warmup`` steps, then one of

    - constant; cosine, to 0 at ``steps``;
    - stages: lr · 10^(−i/7) in stage i = 0 … 7, of 3^i parts each, 3,280 parts in all (Burda et al. 2016,
      arXiv:1509.00519, section 5, where a part is an epoch; here ``steps`` / 3,280 steps). No warm-up.
    """
    shape = _shape(c, steps)
    return lambda step: c.lr * shape(step)  # c.lr may be a traced number


def _shape(c, steps):
    """The schedule for a peak of 1."""
    if c.schedule == "stages":
        ends = {round(steps * (3 ** (i + 1) - 1) / 2 / 3280): 10 ** (-1 / 7) for i in range(7)}
        return optax.piecewise_constant_schedule(1.0, ends)
    if c.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if c.warmup else 1.0, 1.0, c.warmup, steps)
    if c.warmup:
        return optax.linear_schedule(0.0, 1.0, c.warmup)
    return optax.constant_schedule(1.0)


def optimizer(c, steps):
    """The optax chain of ``config.optim``: clip by global norm, then Adam or AdamW.

    Weight decay (AdamW; Loshchilov & Hutter 2019) is kept off biases, norms and all other vectors and
    scalars: it shrinks weights, not offsets.
    """
    lr = learning_rate(c, steps)
    if c.name == "adam":
        tx = optax.adam(lr, c.b1, c.b2, c.eps)
    else:
        tx = optax.adamw(lr, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=is_weight)
    return optax.chain(optax.clip_by_global_norm(c.clip), tx) if c.clip else tx


def is_weight(params):
    """True for each leaf of two or more dimensions."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def ema(average, params, step, decay):
    """a ← d·a + (1 − d)·p with d = min(decay, (1 + step)/(10 + step)): short runs are not held back
    by their first steps."""
    step = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, 1 - d)
