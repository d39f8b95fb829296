"""All that pure functions learn of the mesh they are compiled for: which rows of the batch they hold, and over how
many devices their samples are spread. Outside :func:`part` and :func:`over` a function holds the whole batch.

The noise of an example depends on its place in the global batch alone, so that one device, eight, ``shard_map``,
``pmap`` and microbatches make the same update. Its price: a part draws the noise of the whole batch, K·B·D normals,
and keeps its rows; beside a decoder's work on B rows that is little, and nothing is drawn twice in the global view.
"""

import contextlib
import contextvars

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # the mesh axes that split a batch

_part = contextvars.ContextVar("part", default=None)


@contextlib.contextmanager
def part(axis=None, micro=0, micros=1):
    """Rows in here are those of one shard (``axis``: its named device axes) and microbatch; numbers may be traced.

    Shards are blocks of the global batch; microbatch i of A holds every A-th row of a shard, from i on, so that a
    batch that is split over devices is cut into microbatches where it lies.
    """
    shard, shards = (0, 1) if axis is None else (jax.lax.axis_index(axis), jax.lax.axis_size(axis))
    token = _part.set(None if shards * micros == 1 else (shard, shards, micro, micros))
    try:
        yield
    finally:
        _part.reset(token)


def rows(n):
    """The places in the global batch of the n rows held here."""
    if _part.get() is None:
        return jnp.arange(n)
    shard, _, micro, micros = _part.get()
    return (shard * n + jnp.arange(n)) * micros + micro


def normal(key, shape, dtype):
    """ε ~ N(0, I) of shape (…, B, D): the rows held here of what the key gives for the whole batch."""
    if _part.get() is None or len(shape) < 2:
        return jax.random.normal(key, shape, dtype)
    shard, shards, micro, micros = _part.get()
    *lead, b, d = shape
    whole = jax.random.normal(key, (*lead, shards * b * micros, d), dtype)
    blocks = jax.lax.dynamic_index_in_dim(whole.reshape(*lead, shards, b, micros, d), shard, len(lead), False)
    return jax.lax.dynamic_index_in_dim(blocks, micro, len(lead) + 1, False)


def microbatches(batch, micros):
    """Leaves B x … → A x B/A x …, row j of microbatch i being row j·A + i."""
    return jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, micros, *a.shape[1:]), 0, 1), batch)


def over(mesh):
    """Within it, samples are spread over the axis ``samples`` of a mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def ways(n):
    """Over how many devices n samples (or labels) are spread: 1, or the size of the mesh axis ``samples``."""
    size = dict(jax.sharding.get_abstract_mesh().shape).get("samples", 1)
    return 1 if n % size else size


def spread(tree, n, batch=False):
    """Leaves n x …, or (with ``batch``) n·B x … sample by sample, laid over ``samples`` and what splits the batch."""
    if ways(n) == 1:
        return tree
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(axis for axis in BATCH if axis not in mesh.manual_axes)
    place = P(("samples", *free)) if batch else P("samples", free)
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, P("samples") if a.ndim == 1 else place), tree)
