"""FLOPs counted by hand: the dense and convolutional layers of a traced function, exactly."""

import math

import jax
import numpy as np
from jax.interpreters import partial_eval

from vae_jax import config as config_lib
from vae_jax.train import optim, step
from vae_jax.train import program as compile_lib


def flops(jaxpr):
    """FLOPs of every ``dot_general`` and ``conv_general_dilated`` in a jaxpr; a multiply-add is two.

    A scan counts its length times, a conditional its most expensive branch, what has a form for each platform
    its plain one, a ``while`` loop, whose length nobody knows, once. Elementwise work, reductions and random bits
    are not counted: they are why XLA's own count is higher.
    """
    return _total(jaxpr, _products)


def repeats(jaxpr):
    """(FLOPs, bytes) of a jaxpr, each over what it would be if every scan ran once, as XLA counts a loop.

    Here FLOPs are :func:`flops` and one for each number that another operation gives, bytes those of all operands and
    results: not XLA's after its fusions, but the same on both sides, inside loops and outside.
    """
    return tuple(_total(jaxpr, cost) / max(1, _total(jaxpr, cost, once=True)) for cost in (_work, _bytes))


def _total(jaxpr, cost, once=False):
    """The sum of ``cost(eqn)`` over the equations that run; ``once``: of a scan's steps the first alone."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for eqn in jaxpr.eqns:
        parts = [_total(j, cost, once) for j in inner(eqn)]
        if not parts:
            total += cost(eqn)
        elif platforms := eqn.params.get("branches_platforms"):
            total += parts[platforms.index(None)]
        else:
            length = 1 if once else eqn.params.get("length", 1)
            total += length * (max(parts) if eqn.primitive.name == "cond" else sum(parts))
    return total


def _products(eqn):
    return {"dot_general": _dot, "conv_general_dilated": _conv}.get(eqn.primitive.name, lambda _: 0)(eqn)


def _work(eqn):
    return _products(eqn) or sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)


def _bytes(eqn):
    arrays = [v.aval for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "dtype")]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)


def inner(eqn):
    """The jaxprs that an equation runs, whatever its parameters call them."""
    for value in eqn.params.values():
        for v in value if isinstance(value, list | tuple) else (value,):
            if hasattr(v := getattr(v, "jaxpr", v), "eqns"):
                yield v


def _dot(eqn):
    """2 x (elements of the result) x (length of the contraction)."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)


def _conv(eqn):
    r"""2 x images x features out x features in x \prod_d (pairs of output and kernel position that meet a pixel).

    Products with padding, or with the holes of a dilated input, are none: so the two gradients of a
    convolution cost what it costs itself, and a transposed one what its mirror image does.
    """
    p, (x, w) = eqn.params, (v.aval.shape for v in eqn.invars[:2])
    dims = p["dimension_numbers"]
    out = eqn.outvars[0].aval.shape
    pairs = 1
    for d, (low, _) in enumerate(p["padding"]):
        pixel = (
            np.arange(out[dims.out_spec[2 + d]])[:, None] * p["window_strides"][d]
            + np.arange(w[dims.rhs_spec[2 + d]])[None] * p["rhs_dilation"][d]
            - low
        )
        hole = p["lhs_dilation"][d]
        meets = (pixel >= 0) & (pixel % hole == 0) & (pixel < (x[dims.lhs_spec[2 + d]] - 1) * hole + 1)
        pairs *= int(meets.sum())
    images = x[dims.lhs_spec[0]] // p["batch_group_count"]
    return 2 * images * w[dims.rhs_spec[0]] * w[dims.rhs_spec[1]] * pairs


def traced(c, model, mesh, dataset):
    """The jaxpr of one training step of one replica, without what nobody reads; nothing is computed or compiled."""
    c = config_lib.override(c, {})
    terms, tx = step.make_terms(c, model, dataset), optim.optimizer(c.optim, c.steps)
    state, _ = compile_lib.shapes(c, model, mesh)
    batch = step.raw_batch(dataset.shape, c.batch, labelled=c.data.labelled_batch)
    how = {"terms": terms, "tx": tx, "decay": c.optim.ema, "micros": c.accumulate}
    one = lambda s, b, k: step.train_step(s, b, k, **how)  # noqa: E731
    jaxpr = jax.make_jaxpr(one)(state, batch, jax.random.key(0)).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def dtypes(jaxpr):
    """The dtypes of all values in a jaxpr, by name."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    found = {str(v.aval.dtype) for e in jaxpr.eqns for v in (*e.invars, *e.outvars) if hasattr(v.aval, "dtype")}
    return found.union(*(dtypes(j) for e in jaxpr.eqns for j in inner(e)))
