"""Scenes: canvases with several objects of a labelled data set, and the boxes of these objects.

``scenes:BASE[+LAW][+FIELD=NUMBER…]`` is a data set, such as ``scenes:mnist``,
``scenes:digits+counts+most=4`` or ``scenes:fashion_mnist+boxes+train=1000``. BASE is any data set
with labels. A canvas is a pure function of (seed, split, index): of the splits of BASE, test
canvases hold test images only. G is the side of BASE's images, S that of a canvas.

- ``counts``: 0 to 2 objects, as many canvases of each count; an image of side G / N(1.3, 0.1) at a
  uniform position; the objects are added up, and all of them are drawn anew where a pixel exceeds
  white. S = 50 G / 28. This is the law of the published data for Eslami et al. 2016.
- ``boxes``: 1 to 3 objects whose longer side is uniform in 14 G / 28 to G pixels, at uniform
  positions, drawn anew where two boxes have an IoU above 0.25; the brightest object is seen.
  S = 64 G / 28.

``scale=P`` draws objects of P % of these sizes. The label of a canvas is its number of objects.
``Split.objects`` [N, M, 5] has x, y, w, h in pixels and the class of each of at most M objects: the
smallest box of the object's own pixels above 0. Rows beyond the count are (0, 0, 0, 0, −1).
"""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vae_jax.config import UserError, nearest
from vae_jax.data import cache, sources
from vae_jax.data.arrays import Arrays
from vae_jax.data.splits import Split

if TYPE_CHECKING:  # it imports this module
    from vae_jax.data import Dataset

PREFIX = "scenes:"
SPLITS = ("train", "validation", "test")
TRIES = 1000  # of one canvas: a law whose canvases are rarer than this is refused
MAX_IOU = 0.25
VERSION = "1"  # of the laws: cached canvases of another version are not read


@dataclasses.dataclass(frozen=True)
class Law:
    """How a canvas is composed."""

    kind: str  # counts or boxes
    size: int  # S
    least: int = 0  # objects
    most: int = 2
    train: int = 60_000  # canvases
    validation: int = 2_000
    test: int = 10_000
    seed: int = 0
    scale: int = 100  # % of an object's usual side


DEFAULTS = {
    "counts": {"least": 0, "most": 2, "train": 60_000, "validation": 2_000, "test": 10_000},
    "boxes": {"least": 1, "most": 3, "train": 10_000, "validation": 1_000, "test": 5_000},
}
SIDES = {"counts": 50 / 28, "boxes": 64 / 28}  # S / G


class Canvas(NamedTuple):
    image: np.ndarray  # uint8 [S, S, C]
    objects: np.ndarray  # int32 [M, 5]: x, y, w, h, class
    owner: np.ndarray  # uint8 [S, S]: the brightest object (from 1) of each pixel, 0: none


class Placed(NamedTuple):
    """One object on a canvas of its own."""

    image: np.ndarray  # uint8 [S, S, C]
    box: np.ndarray  # int32 [4]: x, y, w, h


def parse(name: str) -> tuple[str, str, dict[str, int]]:
    """(BASE, kind of law, fields that the name sets) of ``scenes:BASE[+LAW][+FIELD=NUMBER…]``."""
    base, *words = name.removeprefix(PREFIX).split("+")
    kind = "counts"
    fields = {}
    known = [field.name for field in dataclasses.fields(Law) if field.name != "kind"]
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            kind = word
        elif key not in known:
            raise UserError(f"data.name={name}: {key} is no field; {nearest(key, known)}")
        elif not re.fullmatch(r"\d{1,9}", value):
            raise UserError(f"data.name={name}: {word}: want a whole number >= 0")
        else:
            fields[key] = int(value)
    if kind not in DEFAULTS:
        raise UserError(f"data.name={name}: {kind} is no law; {nearest(kind, DEFAULTS)}")
    if not base or base.startswith(PREFIX):
        raise UserError(f"data.name={name}: want scenes:BASE, such as scenes:mnist")
    return base, kind, fields


def law_of(name: str, side: int) -> Law:
    """The law of a name for images of this side; :class:`UserError` where it cannot be met."""
    _, kind, fields = parse(name)
    values = {"size": round(SIDES[kind] * side), **DEFAULTS[kind], **fields}
    law = Law(kind, **values)
    for field in ("most", "scale", *SPLITS):
        number = getattr(law, field)
        if number < 1:
            raise UserError(f"data.name={name}: {field}={number}: want a number > 0")
    if law.least > law.most:
        raise UserError(f"data.name={name}: least={law.least}: want no more than most={law.most}")
    if law.most > law.size**2:
        pixels = law.size**2
        raise UserError(f"data.name={name}: most={law.most}: want at most {pixels}, one a pixel")
    largest = math.ceil(side * law.scale / 100)
    if law.size < largest:
        raise UserError(
            f"data.name={name}: size={law.size}: objects of up to {largest} pixels do not fit; "
            f"want at least {largest}"
        )
    return law


def read(c: ConfigDict, load: Callable[[ConfigDict], "Dataset"]) -> Arrays:
    """The canvases of ``config.data``; ``load`` reads BASE."""
    base, law = _base(c, load)
    splits = {}
    for split in SPLITS:
        splits[split] = _canvases(c.name, law, split, getattr(base, split), base.levels)
    shape = (law.size, law.size, base.shape[2])
    counts = tuple(map(str, range(law.most + 1)))
    return Arrays(shape, counts, splits, base.levels)


def owners_of_test(
    c: ConfigDict, load: Callable[[ConfigDict], "Dataset"], count: int
) -> np.ndarray:
    """uint8 [N, S, S] of the first ``count`` test canvases: the object that each pixel shows.

    The number, from 1, of the brightest one, in the order of ``Split.objects``; 0 where none is.
    The canvases are composed again, as their index says; masks are not stored.
    """
    base, law = _base(c, load)
    image = np.asarray(base.test.image[:])
    rows = []
    for index in range(min(count, law.test)):
        seed = (law.seed, SPLITS.index("test"), index)
        rows.append(compose(law, image, base.test.label, base.levels, seed, c.name).owner)
    return np.stack(rows)


def check_fields(c: ConfigDict) -> None:
    """Raise where ``config.data`` would move images without their boxes, or take labels away."""
    for field in ("shift", "flip", "labels", "labelled_batch", "hold_out"):
        if c.get(field):
            raise UserError(f"data.{field}={c[field]}: scenes keep their boxes; want it unset")


def _base(c: ConfigDict, load: Callable[[ConfigDict], "Dataset"]) -> tuple["Dataset", Law]:
    """BASE and the law of a name."""
    base_name, _, _ = parse(c.name)
    check_fields(c)
    own = c.copy_and_resolve_references()
    own.name = base_name
    try:
        base = load(own)
    except sources.NotPrepared as error:  # the catalogue has no stand-in for scenes
        raise UserError(str(error)) from None
    if not base.classes:
        raise UserError(f"data.name={c.name}: {base_name} has no labels; want a base with classes")
    law = law_of(c.name, max(base.shape[:2]))
    return base, law


def _canvases(name: str, law: Law, split: str, objects: Split, levels: int) -> Split:
    """All canvases of a split, kept in the cache of decoded images."""
    image = np.ascontiguousarray(objects.image[:])
    digest = hashlib.sha256(VERSION.encode() + image.tobytes() + objects.label.tobytes())
    entry = cache.folder(name, split, dataclasses.astuple(law), version=digest.hexdigest())
    count = getattr(law, split)
    number = SPLITS.index(split)

    @functools.cache
    def composed() -> tuple[np.ndarray, np.ndarray]:
        canvases = []
        for index in range(count):
            seed = (law.seed, number, index)
            canvas = compose(law, image, objects.label, levels, seed, name)
            canvases.append((canvas.image, canvas.objects))
        images, boxes = zip(*canvases, strict=True)
        return np.stack(images), np.stack(boxes)

    shape = (count, law.size, law.size, image.shape[-1])
    canvas = cache.load(entry / "image.npy", shape, np.uint8, lambda: [composed()[0]])
    shape = (count, law.most, 5)
    boxes = cache.load(entry / "objects.npy", shape, np.int32, lambda: [composed()[1]])
    boxes = np.array(boxes)
    label = (boxes[..., 4] >= 0).sum(1).astype(np.int32)
    return Split(canvas, label, boxes)


def compose(
    law: Law,
    image_NxGxGxC: np.ndarray,
    label_N: np.ndarray,
    levels: int,
    seed: tuple[int, ...],
    name: str = "scenes",
) -> Canvas:
    """The canvas that ``seed``, such as (seed, split, index), names.

    Raises:
      UserError: none of :data:`TRIES` canvases keeps the law.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(law.least, law.most + 1))
    for _ in range(TRIES):
        chosen = rng.integers(len(label_N), size=count)
        placed = []
        for index in chosen:
            one = PLACE[law.kind](rng, image_NxGxGxC[index], law, levels - 1)
            if one is not None:
                placed.append(one)
        if len(placed) < count:
            continue
        image = JOIN[law.kind](placed, (law.size, law.size, image_NxGxGxC.shape[-1]), levels - 1)
        if image is not None:
            objects = np.zeros((law.most, 5), np.int32)
            objects[:, 4] = -1
            for row, one, index in zip(objects, placed, chosen, strict=False):
                row[:4] = one.box
                row[4] = label_N[index]
            return Canvas(image, objects, owners(placed, law.size))
    raise UserError(
        f"data.name={name}: no canvas of {count} objects on {law.size} pixels keeps the law "
        f"{law.kind} in {TRIES} tries; want fewer objects (most=) or a larger canvas (size=)"
    )


def owners(placed: list[Placed], size: int) -> np.ndarray:
    """uint8 [S, S]: the number, from 1, of the brightest object of each pixel; 0 where none is."""
    layers = np.zeros((len(placed) + 1, size, size), np.uint8)
    for layer, one in zip(layers[1:], placed, strict=True):
        layer[:] = one.image.max(-1)
    return layers.argmax(0).astype(np.uint8)


def resampling(size: int, pixels: int, start: float, length: float) -> np.ndarray:
    """W [size, pixels]: a row of ``pixels`` is drawn from ``start`` on, ``length`` long.

    A triangle filter, as wide as one pixel of the finer of both grids: W_y I W_xᵀ is an image that
    is moved and scaled bilinearly, without aliasing where it shrinks.
    """
    centre_S = (np.arange(size) + 0.5 - start) * (pixels / length) - 0.5
    width = max(pixels / length, 1.0)
    distance = np.abs(centre_S[:, None] - np.arange(pixels))
    return np.maximum(0, 1 - distance / width) / width


def paste(
    image: np.ndarray, size: int, corner: np.ndarray, shape: np.ndarray, white: int
) -> Placed | None:
    """An image drawn at ``corner`` (y, x) with the ``shape`` (h, w); None where nothing is seen."""
    rows = resampling(size, image.shape[0], corner[0], shape[0])
    columns = resampling(size, image.shape[1], corner[1], shape[1])
    layer_CxSxS = rows @ np.moveaxis(image, -1, 0) @ columns.T
    layer = np.rint(np.minimum(layer_CxSxS, white)).astype(np.uint8)
    layer = np.moveaxis(layer, 0, -1)
    box = tight_box(layer)
    return None if box is None else Placed(layer, box)


def tight_box(layer_SxSxC: np.ndarray) -> np.ndarray | None:
    """x, y, w, h of the smallest box of the pixels above 0; None where there are none."""
    lit = layer_SxSxC.max(-1) > 0
    y = np.flatnonzero(lit.any(1))
    x = np.flatnonzero(lit.any(0))
    if not len(y):
        return None
    return np.array([x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1], np.int32)


def iou(a_Nx4: np.ndarray, b_Mx4: np.ndarray) -> np.ndarray:
    """Intersection over union [N, M] of boxes x, y, w, h; 0 of two empty boxes."""
    a = np.asarray(a_Nx4, float)[:, None]
    b = np.asarray(b_Mx4, float)[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    union = np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - common
    return common / np.maximum(union, 1e-9)


def _place_scaled(
    rng: np.random.Generator, image: np.ndarray, law: Law, white: int
) -> Placed | None:
    """The law *counts*: the whole image, G / N(1.3, 0.1) pixels wide, anywhere on the canvas."""
    shape = np.array(image.shape[:2]) * (law.scale / 100) / max(rng.normal(1.3, 0.1), 1.0)
    corner = rng.uniform(0, law.size - shape)
    return paste(image, law.size, corner, shape, white)


def _place_sized(
    rng: np.random.Generator, image: np.ndarray, law: Law, white: int
) -> Placed | None:
    """The law *boxes*: what is seen of the image, with a longer side of G / 2 to G pixels."""
    box = tight_box(image)
    side = max(image.shape[:2])
    length = rng.uniform(side / 2, side) * (law.scale / 100)
    if box is None:
        return None
    x, y, w, h = box
    shape = np.array([h, w]) * length / max(h, w)
    corner = rng.uniform(0, law.size - shape)
    return paste(image[y : y + h, x : x + w], law.size, corner, shape, white)


def _add(placed: list[Placed], shape: tuple[int, ...], white: int) -> np.ndarray | None:
    """The sum of the objects; None where a pixel exceeds white."""
    total = np.zeros(shape, np.int32)
    for one in placed:
        total += one.image
    return None if total.max() > white else total.astype(np.uint8)


def _cover(placed: list[Placed], shape: tuple[int, ...], white: int) -> np.ndarray | None:
    """The brightest of the objects; None where two boxes have an IoU above :data:`MAX_IOU`."""
    boxes = np.array([one.box for one in placed]).reshape(-1, 4)
    overlap = iou(boxes, boxes)
    np.fill_diagonal(overlap, 0)
    if overlap.size and overlap.max() > MAX_IOU:
        return None
    image = np.zeros(shape, np.uint8)
    for one in placed:
        image = np.maximum(image, one.image)
    return image


PLACE = {"counts": _place_scaled, "boxes": _place_sized}
JOIN = {"counts": _add, "boxes": _cover}
