"""Images, labels and splits of a named data set; batches are a pure function of (seed, step)."""

import gzip
import importlib.util
import math
import os
from typing import Any, NamedTuple

import numpy as np

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import cache, predict, sources
from vae_jax.data.batches import batch_indices, eval_batches, host_batches, labelled_indices, shuffle, to_input

__all__ = [
    "Dataset",
    "Split",
    "Stream",
    "batch_indices",
    "carve",
    "check",
    "described",
    "eval_batches",
    "foreign",
    "host_batches",
    "labelled",
    "labelled_indices",
    "load",
    "pick",
    "some",
    "to_input",
]

# What is carved off never depends on the run's seed: runs of different seeds share their splits.
VALIDATION_SEED, TEST_SEED, LABELS_SEED = 1, 2, 3
TEST_SHARE = 0.2


class Split(NamedTuple):
    image: Any  # uint8 [N, H, W, C]: an array, a memory map, or a Stream
    label: np.ndarray | None  # int32 [N]; −1: unlabelled; None where there are no labels


class Dataset(NamedTuple):
    name: str
    shape: tuple[int, int, int]  # H, W, C
    levels: int  # pixel values are 0 .. levels - 1
    classes: tuple[str, ...]  # () where there are no labels
    train: Split
    validation: Split
    test: Split
    unseen: Split | None = None  # test images of the classes of data.hold_out, labels counted anew from 0


class Stream:
    """Images [N, H, W, C] that are decoded when they are asked for, by index array or slice."""

    dtype = np.dtype(np.uint8)

    def __init__(self, images, index_N, shape):
        self.images, self.index_N, self.shape = images, index_N, (len(index_N), *shape)

    def __len__(self):
        return len(self.index_N)

    def __getitem__(self, index):
        return np.stack(self.images(self.index_N[index].tolist()))

    def take(self, index):
        """The Stream of some of the examples."""
        return Stream(self.images, self.index_N[index], self.shape[1:])


def check(c):
    """Raise :class:`UserError` for a field of ``config.data`` whose value cannot be meant."""
    for field, (test, right) in config.LIMITS.items():
        section, _, name = field.rpartition(".")
        if section == "data" and name in c:
            try:
                good = test(c[name])
            except TypeError:
                good = False
            if not good:
                raise UserError(f"{field}={c[name]}: want {right}")
    if (c.name.startswith("folder:") or c.name == "synthetic") and c.size < 1:
        raise UserError(f"data.size={c.size}: want the side of the images, in pixels")


def load(c):
    """The :class:`Dataset` that ``config.data`` names, decoded (or streamed beyond ``memory_mb``).

    A missing test split (20 %) or validation split (``c.validation``) is carved from the training
    images, stratified by label, by constant seeds. Raises :class:`UserError`.

    ``c.labels`` = N > 0 leaves N labels in training and validation together, as many of each class as of
    another; every other label of the two is −1, and nothing reads it. Of the N, round(``c.validation`` · N)
    are validation labels, but one of each class at least; below two for each class none are, and then
    validation has no accuracy. The validation *images* are ``c.validation`` of all, and are then carved
    without a look at their labels. ``c.labels_seed`` draws other examples; the run's seed does not.

    ``c.hold_out`` takes classes out of all three splits, so to every objective the data has fewer classes; the
    test images of these are ``unseen``. The other images stay in the split in which they were.
    """
    check(c)
    levels = 256
    if c.name == "digits":
        shape, classes, splits, levels = *_digits(), 17
    elif c.name == "synthetic":
        shape, classes, splits = _synthetic(c.size, c.channels)
    else:
        if c.name.startswith("folder:"):
            found = sources.folder(c.name, c.size, c.channels)
        else:
            found = sources.tfds(c.name, c.dir)
            levels = 2 if c.name == "binarized_mnist" else 256
        shape, classes = found.shape, found.classes
        where = cache.folder(c.name, *found.key)
        limit = c.get("memory_mb", 4096) * 2**20
        splits = {s: _decode(source, shape, where / s, limit) for s, source in found.splits.items()}
    if c.shift >= min(shape[:2]):
        raise UserError(f"data.shift={c.shift}: want less than the images' side, {min(shape[:2])}")
    if "test" not in splits:
        splits["train"], splits["test"] = carve(splits["train"], TEST_SHARE, TEST_SEED)
    if "validation" not in splits:
        rest, part = carve(splits["train"], c.validation, VALIDATION_SEED, stratified=not c.get("labels"))
        splits["train"], splits["validation"] = rest, part
    unseen = None
    if c.get("hold_out"):
        classes, unseen = _hold_out(splits, c, classes)
    names = ("train", "validation", "test")
    for split in names:
        if not len(splits[split].image):
            raise UserError(f"data.name={c.name}: no images are left for {split}; want more images")
    if c.get("labelled_batch") and not classes:
        raise UserError(f"data.labelled_batch={c.labelled_batch}: data.name={c.name} has no labels; want 0")
    if c.get("labels"):
        spend(splits, c, len(classes))
    return Dataset(c.name, shape, levels, classes, *(splits[s] for s in names), unseen)


def described(c):
    """:func:`load`, or a stand-in where the data are not on this disk: the TFDS catalogue's shape and classes, and
    2^20 images that take no memory. For what is compiled and never run."""
    try:
        return load(c)
    except sources.NotPrepared:
        shape, classes = sources.catalogued(c.name)
    image, label = np.broadcast_to(np.uint8(0), (2**20, *shape)), np.broadcast_to(np.int32(0), 2**20)
    return Dataset(c.name, shape, 256, classes, *[Split(image, label if classes else None)] * 3)


def foreign(name, c, dataset, n):
    """``n`` test images of the data set ``name``, an even stride apart, made images of ``dataset``'s kind.

    Of another size, mode or number of grey levels, each is converted as a file in ``predict`` and in a folder of
    training images is. ``c`` is the config of ``dataset``: binarisation is evaluation's, so it is the same.
    """
    c = c.copy_and_resolve_references()
    c.name, c.labels, c.labelled_batch, c.hold_out, c.shift = name, 0, 0, (), 0
    c.size, c.channels = max(dataset.shape[:2]), 1 if dataset.shape[2] == 1 else 3
    found = load(c)
    part = some(found.test, n)
    if (found.shape, found.levels) == (dataset.shape, dataset.levels):
        return part
    import PIL.Image

    def one(image):
        image = np.rint(image * (255 / (found.levels - 1))).astype(np.uint8)
        image = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return predict.convert(image, dataset.shape, dataset.levels)

    return Split(np.stack([one(image) for image in part.image[:]]), part.label)


def some(split, n):
    """``n`` examples of a split, an even stride apart; all of a smaller one."""
    have = len(split.image)
    return pick(split, np.arange(min(n, have)) * have // min(n, have))


def carve(split, share, seed, *, stratified=True):
    """(the rest, a part): ``share`` of the examples (of each class, if ``stratified``), in their old order.

    The part has round(share * N) examples, spread over the classes by largest remainder; but a
    class of two or more examples is in both.
    """
    n = len(split.image)
    label = split.label if stratified and split.label is not None else np.zeros(n, np.int32)
    classes, count = np.unique(label, return_counts=True)
    want = share * count
    take = np.floor(want).astype(int)
    spare = round(share * n) - take.sum()
    take[np.argsort(take - want, kind="stable")[:spare]] += 1
    take = np.clip(take, np.minimum(1, count - 1), count - 1)
    order = shuffle(np.arange(n, dtype=np.uint32), np.zeros(n, np.uint32), n=n, seed=seed)
    part = np.zeros(n, bool)
    for c, k in zip(classes, take, strict=True):
        part[order[label[order] == c][:k]] = True
    return pick(split, np.flatnonzero(~part)), pick(split, np.flatnonzero(part))


def _hold_out(splits, c, classes):
    """(names of the classes that stay, the test examples of the others); takes these out of ``splits``, in place."""
    if not classes:
        raise UserError(f"data.hold_out={c.hold_out}: data.name={c.name} has no labels; want ()")
    if max(c.hold_out) >= len(classes) or len(classes) - len(c.hold_out) < 2:
        right = f"places 0 to {len(classes) - 1}, and two classes to stay"
        raise UserError(f"data.hold_out={c.hold_out}: data.name={c.name} has {len(classes)} classes; want {right}")
    out_Y = np.isin(np.arange(len(classes)), c.hold_out)
    place_Y = np.where(out_Y, np.cumsum(out_Y), np.cumsum(~out_Y)).astype(np.int32) - 1

    def those(split, which_Y):
        part = pick(split, np.flatnonzero(which_Y[split.label]))
        return Split(part.image, place_Y[part.label])

    unseen = those(splits["test"], out_Y)
    splits.update({name: those(split, ~out_Y) for name, split in splits.items()})
    return tuple(name for name, out in zip(classes, out_Y, strict=True) if not out), unseen


def spend(splits, c, classes):
    """Leave the label budget of :func:`load` in ``splits["train"]`` and ``splits["validation"]``, in place."""
    if not classes:
        raise UserError(f"data.labels={c.labels}: data.name={c.name} has no labels; want 0")
    if c.labels < classes:
        raise UserError(f"data.labels={c.labels}: want 0 (all) or at least {classes}, one of each class")
    judging = max(round(c.validation * c.labels), classes) if c.labels >= 2 * classes else 0
    for name, count in (("train", c.labels - judging), ("validation", judging)):
        split = splits[name]
        chosen = balanced(split.label, count, classes, c.labels_seed)
        if len(chosen) < count:
            raise UserError(f"data.labels={c.labels}: want no more than {name} has, {len(chosen)} of {count}; 0 is all")
        label = np.full(len(split.label), -1, np.int32)
        label[chosen] = split.label[chosen]
        splits[name] = Split(split.image, label)


def balanced(label_N, count, classes, seed):
    """Indices, in rising order, of ``count`` examples: as many of each class as of another.

    The first of each class in one shuffled order, so the examples of a smaller ``count`` are among those of a
    larger one. What does not divide goes to the first classes; what a small class lacks, to the others.
    """
    n = len(label_N)
    order = shuffle(np.arange(n, dtype=np.uint32), np.full(n, seed, np.uint32), n=n, seed=LABELS_SEED)
    have, take = np.bincount(label_N, minlength=classes), np.zeros(classes, int)
    while (left := count - take.sum()) > 0 and len(some := np.flatnonzero(take < have)):
        take[some[:left]] += np.minimum(max(left // len(some), 1), (have - take)[some[:left]])
    index = [order[label_N[order] == y][:k] for y, k in enumerate(take)]
    return np.sort(np.concatenate(index)).astype(np.int32)


def labelled(split):
    """The examples of a split that have a label."""
    return split if split.label is None or split.label.min() >= 0 else pick(split, np.flatnonzero(split.label >= 0))


def pick(split, index):
    """The examples of a split at these places."""
    image = split.image.take(index) if isinstance(split.image, Stream) else split.image[index]
    return Split(image, None if split.label is None else split.label[index])


def _decode(source, shape, path, limit):
    """The :class:`Split` of a source, cached; a Stream where it is larger than ``limit`` bytes."""
    stream = Stream(source.images, np.arange(source.n), shape)
    chunk = max(1, 2**24 // math.prod(shape))
    parts = [range(start, min(start + chunk, source.n)) for start in range(0, source.n, chunk)]
    label = None
    if source.labels:
        label = cache.load(path.with_suffix(".label.npy"), (source.n,), np.int32, lambda: map(source.labels, parts))
    if source.n * math.prod(shape) > limit:
        return Split(stream, label)
    chunks = (stream[part] for part in parts)
    image = cache.load(path.with_suffix(".image.npy"), stream.shape, np.uint8, lambda: chunks)
    return Split(image, label)


def _synthetic(size, channels, n=4096):
    """n images of ten coarse patterns under noise, always the same, for speed and for tests."""
    rng = np.random.default_rng(0)
    label = (np.arange(n) % 10).astype(np.int32)
    pattern = rng.integers(0, 192, (10, 4, 4, channels), np.uint8)
    at = np.arange(size) * 4 // size
    image = rng.integers(0, 64, (n, size, size, channels), np.uint8) + pattern[:, at][:, :, at][label]
    return image.shape[1:], tuple("0123456789"), {"train": Split(image, label)}


def _digits():
    # The file that sklearn.datasets.load_digits reads: importing scikit-learn for it takes more than a second.
    (folder,) = importlib.util.find_spec("sklearn").submodule_search_locations
    with gzip.open(os.path.join(folder, "datasets", "data", "digits.csv.gz")) as f:
        rows = np.loadtxt(f, delimiter=",", dtype=np.uint8)  # 64 pixels, 0 .. 16, and the label
    image = rows[:, :-1].reshape(-1, 8, 8, 1)
    split = Split(image, rows[:, -1].astype(np.int32))
    return image.shape[1:], tuple("0123456789"), {"train": split}
