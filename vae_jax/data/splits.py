"""A split of a data set, and how splits, classes and labels are taken from one another."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vae_jax.config import UserError, nearest
from vae_jax.data.batches import shuffle

# Splits never depend on the run's seed: runs of different seeds share them.
VALIDATION_SEED = 1
TEST_SEED = 2
LABELS_SEED = 3
TEST_SHARE = 0.2


class Stream:
    """Images [N, H, W, C] that are decoded when they are asked for, by index array or slice.

    ``images``: list of places in the source → list of uint8 [H, W, C].
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, images: Callable, index_N: np.ndarray, shape: tuple[int, int, int]):
        self.images = images
        self.index_N = index_N
        self.shape = (len(index_N), *shape)

    def __len__(self) -> int:
        return len(self.index_N)

    def __getitem__(self, index: np.ndarray | slice | range) -> np.ndarray:
        return np.stack(self.images(self.index_N[index].tolist()))

    def take(self, index: np.ndarray) -> "Stream":
        """The Stream of some of the examples."""
        return Stream(self.images, self.index_N[index], self.shape[1:])


class Split(NamedTuple):
    image: np.ndarray | Stream  # uint8 [N, H, W, C]: an array, a memory map, or a Stream
    label: np.ndarray | None  # int32 [N]; −1: unlabelled; None where there are no labels
    objects: np.ndarray | None = None  # int32 [N, M, 5] of scenes: x, y, w, h, class (−1: none)


def pick(split: Split, index: np.ndarray) -> Split:
    """The examples of a split at these places."""
    label = None if split.label is None else split.label[index]
    objects = None if split.objects is None else split.objects[index]
    if isinstance(split.image, Stream):
        return Split(split.image.take(index), label, objects)
    return Split(split.image[index], label, objects)


def some(split: Split, n: int) -> Split:
    """``n`` examples of a split, an even stride apart; all of a smaller one."""
    size = len(split.image)
    n = min(n, size)
    return pick(split, np.arange(n) * size // n)


def joined(splits: Sequence[Split]) -> Split:
    """The labelled examples of several splits as one, in order; a Stream where any is."""
    label = np.concatenate([split.label for split in splits])
    images = [split.image for split in splits]
    if not any(isinstance(image, Stream) for image in images):
        return Split(np.concatenate(images), label)
    starts = np.cumsum([0, *map(len, images)])

    def decode(places: list[int]) -> list[np.ndarray]:
        place_N = np.array(places)
        rows = {}
        for start, image in zip(starts, images, strict=False):
            mine = place_N[(place_N >= start) & (place_N < start + len(image))]
            if len(mine):
                rows |= zip(mine.tolist(), image[mine - start], strict=True)
        return [rows[place] for place in places]

    return Split(Stream(decode, np.arange(len(label)), images[0].shape[1:]), label)


def labelled(split: Split) -> Split:
    """The examples of a split that have a label."""
    if split.label is None or split.label.min() >= 0:
        return split
    return pick(split, np.flatnonzero(split.label >= 0))


def carve(split: Split, share: float, seed: int, *, stratified: bool = True) -> tuple[Split, Split]:
    """(the rest, a part): ``share`` of the examples, of each class if ``stratified``, in old order.

    The part has round(share * N) examples, spread over the classes by largest remainder; but a
    class of two or more examples is in both.
    """
    n = len(split.image)
    label = _strata(split, stratified)
    classes, count = np.unique(label, return_counts=True)
    target = share * count
    take = np.floor(target).astype(int)
    spare = round(share * n) - take.sum()
    take[np.argsort(take - target, kind="stable")[:spare]] += 1
    take = np.clip(take, np.minimum(1, count - 1), count - 1)
    order = shuffle(np.arange(n, dtype=np.uint32), np.zeros(n, np.uint32), n=n, seed=seed)
    part = np.zeros(n, bool)
    for y, k in zip(classes, take, strict=True):
        part[order[label[order] == y][:k]] = True
    return pick(split, np.flatnonzero(~part)), pick(split, np.flatnonzero(part))


def carve_by_draw(
    split: Split,
    draw_N: np.ndarray,
    test: float,
    validation: float,
    *,
    stratified: bool = True,
) -> dict[str, Split]:
    """{'train', 'validation', 'test'}: where an example goes, its own draw u in [0, 1) says.

    .. math:: u < t: \\text{test}; \\quad u < t + (1 - t) v: \\text{validation}

    with t and v the shares; else it is a training example. A share of 0 makes no such split. So
    other examples that come or go move nothing, but where a class (all examples, unless
    ``stratified``) would be missing in a split: then its lowest draws stand in, and examples that
    come later cannot make a test example of one that has been trained on.
    """
    label = _strata(split, stratified)
    parts = {"train": [], "validation": [], "test": []}
    for y in np.unique(label):
        index = np.flatnonzero(label == y)
        index = index[np.argsort(draw_N[index], kind="stable")]
        tests = 0
        judging = 0
        if test:
            tests = np.searchsorted(draw_N[index], test)
            tests = int(np.clip(tests, 1, max(len(index) - 1 - bool(validation), 0)))
        if validation:
            judging = np.searchsorted(draw_N[index], test + (1 - test) * validation) - tests
            judging = int(np.clip(judging, 1, max(len(index) - tests - 1, 0)))
        parts["test"].append(index[:tests])
        parts["validation"].append(index[tests : tests + judging])
        parts["train"].append(index[tests + judging :])
    splits = {}
    for name, share in (("train", 1.0), ("validation", validation), ("test", test)):
        if share:
            splits[name] = pick(split, np.sort(np.concatenate(parts[name])))
    return splits


def _strata(split: Split, stratified: bool) -> np.ndarray:
    if stratified and split.label is not None:
        return split.label
    return np.zeros(len(split.image), np.int32)


def hold_out(
    splits: dict[str, Split], c: ConfigDict, classes: Sequence[str]
) -> tuple[tuple[str, ...], Split]:
    """(names of the classes that stay, all examples of the others).

    Takes the classes ``c.hold_out``, by place or by name, out of ``splits``, in place. Labels count
    anew from 0.
    """
    if not classes:
        raise UserError(f"data.hold_out={c.hold_out}: data.name={c.name} has no labels; want ()")
    places = {_place(c, classes, one) for one in c.hold_out}
    if max(places) >= len(classes) or len(classes) - len(places) < 2:
        right = f"places 0 to {len(classes) - 1} or names, and two classes to stay"
        raise UserError(
            f"data.hold_out={c.hold_out}: data.name={c.name} has {len(classes)} classes; "
            f"want {right}"
        )
    out_Y = np.isin(np.arange(len(classes)), sorted(places))
    place_Y = np.where(out_Y, np.cumsum(out_Y), np.cumsum(~out_Y)).astype(np.int32) - 1

    def of_classes(split: Split, which_Y: np.ndarray) -> Split:
        part = pick(split, np.flatnonzero(which_Y[split.label]))
        return Split(part.image, place_Y[part.label])

    names = ("train", "validation", "test")
    unseen = joined([of_classes(splits[name], out_Y) for name in names])
    for name, split in splits.items():
        splits[name] = of_classes(split, ~out_Y)
    stay = tuple(classes[y] for y in np.flatnonzero(~out_Y))
    return stay, unseen


def _place(c: ConfigDict, classes: Sequence[str], name: int | str) -> int:
    """The place of a class that ``data.hold_out`` names, or gives by its place."""
    if isinstance(name, int):
        return name
    if name not in classes:
        why = f"data.name={c.name} has no class {name}; {nearest(name, classes)}"
        raise UserError(f"data.hold_out={c.hold_out}: {why}")
    return list(classes).index(name)


def spend(splits: dict[str, Split], c: ConfigDict, classes: int) -> None:
    """Leave ``c.labels`` labels in training and validation together, in place; see ``load``."""
    if not classes:
        raise UserError(f"data.labels={c.labels}: data.name={c.name} has no labels; want 0")
    if c.labels < classes:
        raise UserError(
            f"data.labels={c.labels}: want 0 (all) or at least {classes}, one of each class"
        )
    judging = 0
    if c.labels >= 2 * classes:
        judging = max(round(c.validation * c.labels), classes)
    for name, count in (("train", c.labels - judging), ("validation", judging)):
        split = splits[name]
        chosen = balanced(split.label, count, classes, c.labels_seed)
        if len(chosen) < count:
            raise UserError(
                f"data.labels={c.labels}: want no more than {name} has, "
                f"{len(chosen)} of {count}; 0 is all"
            )
        label = np.full(len(split.label), -1, np.int32)
        label[chosen] = split.label[chosen]
        splits[name] = Split(split.image, label)


def balanced(label_N: np.ndarray, count: int, classes: int, seed: int) -> np.ndarray:
    """Indices, in rising order, of ``count`` examples: as many of each class as of another.

    The first of each class in one shuffled order, so the examples of a smaller ``count`` are among
    those of a larger one. What does not divide goes to the first classes; what a small class lacks,
    to the others.
    """
    n = len(label_N)
    epoch = np.full(n, seed, np.uint32)
    order = shuffle(np.arange(n, dtype=np.uint32), epoch, n=n, seed=LABELS_SEED)
    size_Y = np.bincount(label_N, minlength=classes)
    take_Y = np.zeros(classes, int)
    while (left := count - take_Y.sum()) > 0:
        free = np.flatnonzero(take_Y < size_Y)[:left]
        if not len(free):
            break
        share = max(left // np.count_nonzero(take_Y < size_Y), 1)
        take_Y[free] += np.minimum(share, (size_Y - take_Y)[free])
    index = [order[label_N[order] == y][:k] for y, k in enumerate(take_Y)]
    return np.sort(np.concatenate(index)).astype(np.int32)
