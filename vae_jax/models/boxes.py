"""Boxes x, y, w, h in pixels: what a model that finds objects returns, and their code on a grid."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.models.core import Array

SMALLEST = 1e-3  # pixels: sides are at least so long where a logarithm or a quotient is taken


class Detections(NamedTuple):
    """M candidates of each image."""

    boxes: Array  # BxMx4: x, y, w, h in pixels
    logit: Array  # BxM: log-odds that there is an object
    class_logits: Array  # BxMxY; Y = 1 where classes are not told apart
    windows: Array | None = None  # BxMx4: where the model looked, if it is not the box
    what: Array | None = None  # BxMxD: the code of each object, of a model that has them


def corners(boxes: Array) -> tuple[Array, Array]:
    """(low, high) corners x, y of boxes …x4; shape …x2 each."""
    return boxes[..., :2], boxes[..., :2] + boxes[..., 2:]


def area(boxes: Array) -> Array:
    """w h of boxes …x4."""
    return boxes[..., 2] * boxes[..., 3]


def overlap(a: Array, b: Array) -> tuple[Array, Array]:
    """(intersection, union) of boxes …x4 that broadcast, in square pixels."""
    low_a, high_a = corners(a)
    low_b, high_b = corners(b)
    sides = jnp.maximum(jnp.minimum(high_a, high_b) - jnp.maximum(low_a, low_b), 0)
    common = sides[..., 0] * sides[..., 1]
    return common, area(a) + area(b) - common


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes …x4 that broadcast."""
    common, union = overlap(a, b)
    return common / jnp.maximum(union, SMALLEST**2)


def generalised_iou(a: Array, b: Array) -> Array:
    r"""IoU minus the share of the smallest enclosing box that neither covers; in (−1, 1].

    .. math:: \mathrm{GIoU} = \mathrm{IoU} - \frac{|C \setminus (A \cup B)|}{|C|}

    It has a gradient where A and B are apart. Rezatofighi et al. 2019 (arXiv:1902.09630), eq. 1.
    """
    common, union = overlap(a, b)
    low_a, high_a = corners(a)
    low_b, high_b = corners(b)
    sides = jnp.maximum(high_a, high_b) - jnp.minimum(low_a, low_b)
    hull = jnp.maximum(sides[..., 0] * sides[..., 1], SMALLEST**2)
    return common / jnp.maximum(union, SMALLEST**2) - (hull - union) / hull


def encode(boxes: Array, grid: int, size: int) -> tuple[Array, Array]:
    """(cell, code) of boxes …x4 on a canvas of ``size`` pixels with ``grid`` x ``grid`` cells.

    The cell, counted row by row, holds the box's centre. The code is the centre's distance from the
    middle of the cell and the logarithms of w and h, in units of a cell's side.
    """
    side = size / grid
    low, high = corners(boxes)
    centre = (low + high) / (2 * side)
    place = jnp.clip(jnp.floor(centre), 0, grid - 1)
    cell = (place[..., 1] * grid + place[..., 0]).astype(jnp.int32)
    sides = jnp.log(jnp.maximum(boxes[..., 2:], SMALLEST) / side)
    return cell, jnp.concatenate([centre - place - 0.5, sides], axis=-1)


def decode(code: Array, cell: Array, grid: int, size: int) -> Array:
    """The boxes …x4 of codes in these cells; the inverse of :func:`encode`."""
    side = size / grid
    place = jnp.stack([cell % grid, cell // grid], axis=-1)
    centre = (place + 0.5 + code[..., :2]) * side
    sides = jnp.exp(code[..., 2:]) * side
    return jnp.concatenate([centre - sides / 2, sides], axis=-1)


def suppress(boxes_Mx4: Array, score_M: Array, label_M: Array, limit: float = 0.5) -> Array:
    """Non-maximum suppression of one image: which of M boxes stay, bool, shape M.

    From the highest score on, a box stays where no box of its class that stays has an IoU above
    ``limit`` with it. Equal scores go in order.
    """
    order = jnp.argsort(-score_M, stable=True)
    boxes = boxes_Mx4[order]
    label = label_M[order]
    near_MxM = iou(boxes[:, None], boxes[None]) > limit
    rival_MxM = near_MxM & (label[:, None] == label[None])

    def visit(i: int, keep: Array) -> Array:
        earlier = jnp.arange(len(keep)) < i
        return keep.at[i].set(~jnp.any(rival_MxM[i] & keep & earlier))

    keep = jax.lax.fori_loop(0, len(order), visit, jnp.ones(len(order), bool))
    return jnp.zeros(len(order), bool).at[order].set(keep)
