"""The device mesh, an ordered table of partition rules, and a state's layout under both.

``python -m vae_jax.tools.partition`` prints them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vae_jax.config import UserError
from vae_jax.mesh.layout import BATCH

AXES = ("data", "fsdp", "model", "samples")
VIRTUAL = "--xla_force_host_platform_device_count"  # of a CPU, to try a mesh

# First match wins; paths look like 'params/decoder/Layer_0/dense/kernel'. A spec is that of the
# last dimensions: of a kernel (…, inputs, outputs). An axis that does not divide its dimension is
# left out, but `fsdp` then goes to the largest free dimension that it divides. Vectors stay whole:
# a few kilobytes, and each gather costs a latency.
RULES = (
    (r"bias$", P()),  # those of a scan's levels lie in one matrix
    # Pairs as in Megatron (Shoeybi et al. 2019, arXiv:1909.08053, section 3): the first layer is
    # split by columns, the second by rows, so that what lies between them stays split and one sum
    # over `model` serves both.
    (r"(Layer|Dense)_\d*[13579]/(dense/)?kernel$", P("model", "fsdp")),
    # By rows: its columns are two halves, multiplied with each other.
    (r"gated/kernel$", P("model", "fsdp")),
    (r"(Dense_\d+|dense|label)/kernel$", P("fsdp", "model")),
    # A likelihood sums over pixels; of a convolution see `spec`.
    (r"decoder/out/kernel$", P("fsdp", "model")),
    (r".*", P(None, "fsdp")),
)


def make_mesh(c: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of ``config.mesh``, axes :data:`AXES`, over ``devices`` (default: all).

    Where the devices are of several slices, ``data`` goes over the slices first: only the mean of
    the gradients crosses the network between them.

    Raises:
      UserError: the sizes do not fit the number of devices, or of slices.
    """
    if devices is None:
        devices = jax.devices()
    n = len(devices)
    sizes = {axis: c[axis] for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"mesh.{free[1]}=-1: want at most one -1 in mesh")
    fixed = {axis: size for axis, size in sizes.items() if size != -1}
    known = math.prod(fixed.values())
    if known > n or (free and n % known):
        # The largest of them is the one to blame; what fits beside the others is a divisor of what
        # they leave.
        axis = max(fixed, key=fixed.get)
        rest = n // (known // fixed[axis])
        fits = [d for d in range(1, rest + 1) if not free or n % (d * known // fixed[axis]) == 0]
        asked = " x ".join(str(s) for s in fixed.values() if s > 1)
        right = f"want axes whose product divides {n}"
        if fits:
            right = f"nearest that fits: {min(fits, key=lambda d: abs(d - fixed[axis]))}"
        if devices[0].platform == "cpu" and known > n:
            right += f"; XLA_FLAGS={VIRTUAL}={known} before the command gives virtual devices"
        raise UserError(
            f"mesh.{axis}={fixed[axis]}: {asked} does not fit {n} device{'s' * (n > 1)}; {right}"
        )
    if free:
        sizes[free[0]] = n // known
    shape = tuple(sizes.values())
    used = devices[: math.prod(shape)]
    types = (AxisType.Auto,) * len(AXES)
    slices = {getattr(d, "slice_index", 0) for d in used}
    if len(slices) == 1:
        return Mesh(_laid(shape, used), AXES, axis_types=types)
    if sizes["data"] % len(slices):
        near = max(len(slices), sizes["data"] // len(slices) * len(slices))
        want = f"want a multiple of the {len(slices)} slices; nearest: {near}"
        raise UserError(f"mesh.data={sizes['data']}: {want}")
    inside = (sizes["data"] // len(slices), *shape[1:])
    between = (len(slices), 1, 1, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(inside, between, used), AXES, axis_types=types)


def _laid(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices as an array of this shape, neighbours on the network side by side."""
    # A torus whose sides are no products of the axes, such as 32 x 8 on 16 x 16, is cut.
    for split in (False, True):
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
        except NotImplementedError:
            pass
        except AssertionError:
            # Both cores of a chip are devices: a v4 as libtpu describes it where there is none.
            break
    return np.array(devices).reshape(shape)


def ways(mesh: Mesh) -> int:
    """The number of devices that a batch is split over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch: int, mesh: Mesh, field: str = "batch", micros: int = 1) -> None:
    """Raise where the mesh (and ``config.accumulate``) do not divide the batch."""
    n = ways(mesh) * micros
    if batch % n:
        near = max(n, round(batch / n) * n)
        axes = "mesh.data"
        if mesh.shape["fsdp"] > 1:
            axes = "mesh.data x mesh.fsdp"
        what = f"does not divide over {ways(mesh)} devices ({axes})"
        if micros > 1:
            what += f" x {micros} microbatches"
        raise UserError(f"{field}={batch}: {what}; nearest that does: {near}")


def check_replicas(replicas: int, mesh: Mesh) -> None:
    """Raise where the mesh's data axis does not divide the replicas."""
    n = mesh.shape["data"]
    for axis in AXES[1:]:
        if replicas and mesh.shape[axis] > 1:
            raise UserError(f"mesh.{axis}={mesh.shape[axis]}: replicas are not split; want 1")
    if replicas and replicas % n:
        near = max(d for d in range(1, n + 1) if replicas % d == 0)
        what = f"{replicas} replicas do not divide over {n} devices"
        raise UserError(f"mesh.data={n}: {what}; want mesh.data={near}")


def check_samples(c: ConfigDict, mesh: Mesh, labels: int) -> None:
    """Raise where the mesh axis ``samples`` divides neither the K draws nor the labels."""
    n = mesh.shape["samples"]
    k = c.objective.get("samples", 1)
    if n > 1 and k % n and (not labels or labels % n):
        near = max(d for d in range(1, n) if max(k, labels) % d == 0)
        what = f"does not divide objective.samples={k}"
        if labels:
            what += f" or {labels} labels"
        raise UserError(f"mesh.samples={n}: {what}; nearest that does: {near}")


def spec(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES
) -> P:
    """The first rule's PartitionSpec for a leaf, without axes that do not divide it."""
    if len(shape) < 2:
        return P()
    wanted = next(s for pattern, s in rules if re.search(pattern, path))
    # With 3 dimensions it is (levels of a scan, or labels; inputs, outputs); with 4 a convolution,
    # whose channels are few and images many.
    if len(shape) > 3 and "model" in wanted:
        wanted = P(None, "fsdp")
    axes = [None] * (len(shape) - len(wanted)) + list(wanted)
    for d, axis in enumerate(axes):
        if axis and (mesh.shape[axis] == 1 or shape[d] % mesh.shape[axis]):
            axes[d] = None
    fsdp = mesh.shape["fsdp"]
    if fsdp > 1 and "fsdp" in wanted and "fsdp" not in axes:
        free = [d for d, axis in enumerate(axes) if axis is None and shape[d] % fsdp == 0]
        if free:
            axes[max(free, key=lambda d: shape[d])] = "fsdp"
    return P(*axes)


def shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES) -> Any:
    """A NamedSharding for each leaf of a tree of arrays or shapes."""

    def leaf(path: Any, x: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec(name, x.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Arrays split over the batch's axes of the mesh, after ``leading`` whole dimensions."""
    return NamedSharding(mesh, P(*(None,) * leading, BATCH))


def describe(tree: Any, places: Any, pictures: int = 2) -> str:
    """The table of a tree's shapes and shardings that tools/partition.py prints."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    rows = [("parameter", "shape", "spec", "bytes on a device")]
    on_device = 0
    total = 0
    params = []
    for (path, x), place in zip(leaves, jax.tree.leaves(places), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        count = math.prod(x.shape)
        size = math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
        on_device += size
        total += count * x.dtype.itemsize
        if name.startswith("params/"):
            shape = "x".join(map(str, x.shape)) or "1"
            rows.append((name, shape, _words(place), f"{size:,}"))
            params.append((count, name, x.shape, place))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.append(f"whole state: {total:,} bytes; on each device {on_device:,}")
    params.sort(key=lambda entry: -entry[0])
    for _, name, shape, place in params[:pictures]:
        sizes = "x".join(map(str, shape))
        lines += ["", f"{name}, {sizes}: which devices hold which block", *picture(shape, place)]
    return "\n".join(lines)


def _words(place: NamedSharding) -> str:
    """A sharding in words: 'whole', or the axis of each dimension."""
    if place.is_fully_replicated:
        return "whole"
    return ", ".join(str(axis or "–") for axis in place.spec)


def picture(shape: tuple[int, ...], place: NamedSharding) -> list[str]:
    """Lines with a cell for each block of an array's last two dimensions: its devices."""
    blocks = {}
    for device, index in place.devices_indices_map(shape).items():
        corner = tuple(s.start or 0 for s in index[-2:])
        blocks.setdefault(corner, set()).add(device.id)
    cells = {corner: runs(sorted(ids)) for corner, ids in blocks.items()}
    columns = sorted({column for _, column in cells})
    width = max(map(len, cells.values()))
    edge = "+" + ("-" * (width + 2) + "+") * len(columns)
    lines = [edge]
    for row in sorted({row for row, _ in cells}):
        words = [f" {cells.get((row, column), ''):^{width}} " for column in columns]
        lines += ["|" + "|".join(words) + "|", edge]
    return lines


def runs(ids: Sequence[int]) -> str:
    """[0, 1, 2, 5] → '0-2 5'."""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
    words = []
    for part in np.split(ids, starts[1:]):
        first = part[0]
        last = part[-1]
        words.append(str(first) if first == last else f"{first}-{last}")
    return " ".join(words)
