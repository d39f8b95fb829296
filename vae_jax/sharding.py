"""The device mesh and an ordered table of partition rules."""

import re

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vae_jax.config import UserError

# First match wins; paths look like 'params/decoder/Dense_0/kernel'. A dimension that its axis does not
# divide stays whole.
RULES = (
    (r"(Dense_\d+|dense|gated)/kernel$", P(None, "model")),
    (r".*", P()),
)
BATCH = P("data")


def make_mesh(c, devices=None):
    """The mesh ``data x model`` of ``config.mesh`` over ``devices`` (default: all).

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    n, sizes = len(devices), {"data": c.data, "model": c.model}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError("mesh.model=-1: want at most one -1 in mesh")
    known = 1
    for size in sizes.values():
        known *= size if size != -1 else 1
    if free:
        if n % known:
            axis = next(a for a in sizes if a not in free)
            near = max(d for d in range(1, min(known, n) + 1) if n % d == 0)
            raise UserError(f"mesh.{axis}={known}: does not divide {n} devices; nearest that does: {near}")
        sizes[free[0]] = n // known
    elif known > n:
        raise UserError(f"mesh.data={c.data}: {c.data} x {c.model} devices asked for, {n} are there; want mesh.data=-1")
    total = sizes["data"] * sizes["model"]
    return jax.make_mesh(
        (sizes["data"], sizes["model"]),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices[:total],
    )


def check_batch(batch, mesh, field="batch"):
    """Raise where the mesh's data axis does not divide the batch."""
    n = mesh.shape["data"]
    if batch % n:
        near = max(n, round(batch / n) * n)
        raise UserError(f"{field}={batch}: does not divide over {n} devices (mesh.data); nearest that does: {near}")


def check_replicas(replicas, mesh):
    """Raise where the replicas cannot be dealt out over the mesh's data axis, each whole on one device."""
    n = mesh.shape["data"]
    if replicas and mesh.shape["model"] > 1:
        raise UserError(f"mesh.model={mesh.shape['model']}: replicas are not split; want 1")
    if replicas and replicas % n:
        near = max(d for d in range(1, n + 1) if replicas % d == 0)
        raise UserError(f"mesh.data={n}: {replicas} replicas do not divide over {n} devices; want mesh.data={near}")


def spec(path, shape, mesh, rules=RULES):
    """The first rule's PartitionSpec for a leaf, axes that do not divide its dimensions left out."""
    wanted = next(s for pattern, s in rules if re.search(pattern, path))
    fits = [
        axis if axis is None or (d < len(shape) and shape[d] % mesh.shape[axis] == 0) else None
        for d, axis in enumerate(wanted)
    ]
    while fits and fits[-1] is None:
        fits.pop()
    return P(*fits) if len(fits) <= len(shape) else P()


def shardings(tree, mesh, rules=RULES):
    """A NamedSharding for each leaf of a tree of arrays or shapes."""

    def leaf(path, x):
        return NamedSharding(mesh, spec(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def replicated(mesh):
    return NamedSharding(mesh, P())


def over_batch(mesh, leading=0):
    """Arrays split over the data axis, after ``leading`` whole dimensions."""
    return NamedSharding(mesh, P(*(None,) * leading, "data"))
