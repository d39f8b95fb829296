"""FLOPs counted by hand: the dense and convolutional layers of a traced function, exactly."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax.train import program as compile_lib
from vae_jax.train import step

AnyJaxpr = Jaxpr | ClosedJaxpr
Cost = Callable[[JaxprEqn], int]


def flops(jaxpr: AnyJaxpr) -> int:
    """FLOPs of every ``dot_general`` and ``conv_general_dilated``; a multiply-add is two.

    A scan counts its length times, a conditional its most expensive branch, an operation with a
    form for each platform the default form, a ``while`` loop, whose length is unknown, once.
    Elementwise work, reductions and random bits are not counted, so XLA's own count is higher.
    """
    return _total(jaxpr, _products)


def repeats(jaxpr: AnyJaxpr) -> tuple[float, float]:
    """(FLOPs, bytes) of a jaxpr, each relative to every scan running once, as XLA counts a loop.

    Here FLOPs are :func:`flops` and one for each number that another operation gives; bytes are
    those of all operands and results. They are not XLA's after its fusions, but they are counted
    alike inside loops and outside.
    """
    flops_ratio, bytes_ratio = (
        _total(jaxpr, cost) / max(1, _total(jaxpr, cost, once=True)) for cost in (_work, _bytes)
    )
    return flops_ratio, bytes_ratio


def _total(jaxpr: AnyJaxpr, cost: Cost, once: bool = False) -> int:
    """The sum of ``cost(eqn)`` over the equations that run; ``once``: each scan takes one step."""
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
            combine = max if eqn.primitive.name == "cond" else sum
            total += length * combine(parts)
    return total


def _products(eqn: JaxprEqn) -> int:
    if eqn.primitive.name == "dot_general":
        return _dot(eqn)
    if eqn.primitive.name == "conv_general_dilated":
        return _conv(eqn)
    return 0


def _work(eqn: JaxprEqn) -> int:
    return _products(eqn) or sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)


def _bytes(eqn: JaxprEqn) -> int:
    arrays = [v.aval for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "dtype")]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)


def inner(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs that an equation runs, whatever its parameters are named."""
    for value in eqn.params.values():
        for v in value if isinstance(value, list | tuple) else (value,):
            if hasattr(v := getattr(v, "jaxpr", v), "eqns"):
                yield v


def _dot(eqn: JaxprEqn) -> int:
    """2 x (elements of the result) x (length of the contraction)."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)


def _conv(eqn: JaxprEqn) -> int:
    r"""2 x images x features out x features in x \prod_d pairs_d.

    pairs_d is the number of pairs of an output and a kernel position that meet a pixel. Products
    with padding, or with the holes of a dilated input, do not count: so each of the two gradients
    of a convolution costs as much as the convolution, and a transposed one as much as its mirror
    image.
    """
    p = eqn.params
    x, w = (v.aval.shape for v in eqn.invars[:2])
    dims = p["dimension_numbers"]
    out = eqn.outvars[0].aval.shape
    pairs = 1
    for d, (low, _) in enumerate(p["padding"]):
        pixel = (
            np.arange(out[dims.out_spec[2 + d]])[:, None] * p["window_strides"][d]
            + np.arange(w[dims.rhs_spec[2 + d]])[None] * p["rhs_dilation"][d]
            - low
        )
        dilation = p["lhs_dilation"][d]
        side = (x[dims.lhs_spec[2 + d]] - 1) * dilation + 1
        meets = (pixel >= 0) & (pixel % dilation == 0) & (pixel < side)
        pairs *= int(meets.sum())
    images = x[dims.lhs_spec[0]] // p["batch_group_count"]
    return 2 * images * w[dims.rhs_spec[0]] * w[dims.rhs_spec[1]] * pairs


def traced(c: ConfigDict, model: Any, mesh: jax.sharding.Mesh, dataset: Any) -> Jaxpr:
    """The jaxpr of one training step of one replica, without dead code.

    Nothing is computed or compiled.
    """
    c = config_lib.override(c, {})
    update = step.make_update(c, model, dataset)
    state, _ = compile_lib.shapes(c, model, mesh)
    batch = step.raw_batch(
        dataset.shape, c.batch, labelled=c.data.labelled_batch, objects=dataset.object_shape
    )
    train_step = functools.partial(step.train_step, update=update)
    jaxpr = jax.make_jaxpr(train_step)(state, batch, jax.random.key(0)).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return live


def dtypes(jaxpr: AnyJaxpr) -> set[str]:
    """The dtypes of all values in a jaxpr, by name."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    names = set()
    for eqn in jaxpr.eqns:
        for v in (*eqn.invars, *eqn.outvars):
            if hasattr(v.aval, "dtype"):
                names.add(str(v.aval.dtype))
        for part in inner(eqn):
            names |= dtypes(part)
    return names
