"""How arrays lie on the mesh that a program is compiled for, for pure functions that care about it.

Importance samples, or the labels that M2 enumerates, can be laid over the mesh axis ``samples``. A
function asks JAX's own abstract mesh for it, so one program text serves one device and many, and no
number depends on it.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # the mesh axes that split a batch


def places(n: int, axis: str | tuple[str, ...] | None = None) -> jax.Array:
    """The places in the global batch of the n rows held here, int32, shape n.

    ``axis``: the named device axis that splits the batch into blocks; None where all rows are here.
    """
    first = 0 if axis is None else jax.lax.axis_index(axis) * n
    return first + jnp.arange(n, dtype=jnp.int32)


def microbatches(batch: Any, micros: int) -> Any:
    """Leaves B x … → A x B/A x …; row j of microbatch i is row j·A + i.

    So a batch that is split over devices is cut into microbatches where it lies.
    """
    return jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, micros, *a.shape[1:]), 0, 1), batch)


def over(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Within it, samples are laid over the axis ``samples`` of a mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def num_shards(n: int) -> int:
    """How many devices share n samples (or labels): the mesh axis ``samples``, or 1."""
    size = dict(jax.sharding.get_abstract_mesh().shape).get("samples", 1)
    return 1 if n % size else size


def constrain(tree: Any, n: int, batch: bool = False) -> Any:
    """Leaves n x …, or (with ``batch``) n·B x …, over ``samples`` and what splits the batch."""
    if num_shards(n) == 1:
        return tree
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(axis for axis in BATCH if axis not in mesh.manual_axes)
    spec = P(("samples", *free)) if batch else P("samples", free)

    def place(leaf: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(leaf, P("samples") if leaf.ndim == 1 else spec)

    return jax.tree.map(place, tree)
