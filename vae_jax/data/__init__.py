"""Images, labels and splits of a named data set; batches are a pure function of (seed, step)."""

import math
from typing import Any, NamedTuple

import numpy as np

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import cache, sources
from vae_jax.data.batches import batch_indices, eval_batches, host_batches, shuffle, to_input

__all__ = [
    "Dataset",
    "Split",
    "Stream",
    "batch_indices",
    "carve",
    "check",
    "eval_batches",
    "host_batches",
    "load",
    "to_input",
]

# What is carved off never depends on the run's seed: runs of different seeds share their splits.
VALIDATION_SEED, TEST_SEED = 1, 2
TEST_SHARE = 0.2


class Split(NamedTuple):
    image: Any  # uint8 [N, H, W, C]: an array, a memory map, or a Stream
    label: np.ndarray | None  # int32 [N]; None where there are no labels


class Dataset(NamedTuple):
    name: str
    shape: tuple[int, int, int]  # H, W, C
    levels: int  # pixel values are 0 .. levels - 1
    classes: tuple[str, ...]  # () where there are no labels
    train: Split
    validation: Split
    test: Split


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
    if c.name.startswith("folder:") and c.size < 1:
        raise UserError(f"data.size={c.size}: want the side, in pixels, to crop the images to")


def load(c):
    """The :class:`Dataset` that ``config.data`` names, decoded (or streamed beyond ``memory_mb``).

    A missing test split (20 %) or validation split (``c.validation``) is carved from the training
    images, stratified by label, by constant seeds. Raises :class:`UserError`.
    """
    check(c)
    levels = 256
    if c.name == "digits":
        shape, classes, splits, levels = *_digits(), 17
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
        rest, part = carve(splits["train"], c.validation, VALIDATION_SEED)
        splits["train"], splits["validation"] = rest, part
    for split in Dataset._fields[4:]:
        if not len(splits[split].image):
            raise UserError(f"data.name={c.name}: no images are left for {split}; want more images")
    return Dataset(c.name, shape, levels, classes, *(splits[s] for s in Dataset._fields[4:]))


def carve(split, share, seed):
    """(the rest, a part): ``share`` of the examples of each class, in their old order.

    The part has round(share * N) examples, spread over the classes by largest remainder; but a
    class of two or more examples is in both.
    """
    n = len(split.image)
    label = np.zeros(n, np.int32) if split.label is None else split.label
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
    return _take(split, np.flatnonzero(~part)), _take(split, np.flatnonzero(part))


def _take(split, index):
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


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = digits.images.astype(np.uint8)[..., None]  # 0 .. 16
    split = Split(image, digits.target.astype(np.int32))
    return image.shape[1:], tuple("0123456789"), {"train": split}
