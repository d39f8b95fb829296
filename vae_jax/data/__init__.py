"""Images, labels and splits of a data set by its name; batches are a function of (seed, step)."""

import gzip
import importlib.util
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import annotations, arrays, cache, folders, predict, scenes, sources, sprites
from vae_jax.data.batches import (
    batch_indices,
    eval_batches,
    host_batches,
    labelled_indices,
    shuffle,
    to_input,
)
from vae_jax.data.hub import huggingface
from vae_jax.data.splits import (
    LABELS_SEED,
    TEST_SEED,
    TEST_SHARE,
    VALIDATION_SEED,
    Split,
    Stream,
    balanced,
    carve,
    carve_by_draw,
    hold_out,
    labelled,
    pick,
    some,
    spend,
)

__all__ = [
    "LABELS_SEED",
    "VALIDATION_SEED",
    "Dataset",
    "Split",
    "Stream",
    "balanced",
    "batch_indices",
    "carve",
    "carve_by_draw",
    "check",
    "described",
    "eval_batches",
    "foreign",
    "host_batches",
    "identity",
    "labelled",
    "labelled_indices",
    "load",
    "pick",
    "shuffle",
    "some",
    "to_input",
]

NAMES = ("train", "validation", "test")


class Dataset(NamedTuple):
    name: str
    shape: tuple[int, int, int]  # H, W, C
    levels: int  # pixel values are 0 .. levels - 1
    classes: tuple[str, ...]  # () where there are no labels
    train: Split
    validation: Split
    test: Split
    unseen: Split | None = None  # all images of the classes of data.hold_out, labels anew from 0
    release: str = ""  # the version of a TFDS data set
    notes: tuple[str, ...] = ()  # what a user should know of how it was read, a line each

    @property
    def object_shape(self) -> tuple[int, ...]:
        """(M, 5) of the objects of scenes, () where the images have none."""
        objects = self.train.objects
        return () if objects is None else objects.shape[1:]


def check(c: ConfigDict) -> None:
    """Raise :class:`UserError` for a field of ``config.data`` whose value cannot be meant."""
    if c.name in ("folder:", "npz:", "hf:"):
        raise UserError(f"data.name={c.name}: want a path, as in {c.name}my_images")
    for field, (test, right) in config.LIMITS.items():
        section, _, name = field.rpartition(".")
        if section != "data" or name not in c:
            continue
        try:
            good = test(c[name]) or (name == "channels" and c[name] == 0)
        except TypeError:
            good = False
        if not good:
            raise UserError(f"{field}={c[name]}: want {right}")
    if (c.name.startswith("folder:") or c.name == "synthetic") and not c.size:
        raise UserError(f"data.size={c.size}: want {config.LIMITS['data.size'].words}")


def load(c: ConfigDict) -> Dataset:
    """The :class:`Dataset` that ``config.data`` names; images beyond ``memory_mb`` are streamed.

    ``c.name`` is ``digits``, ``synthetic``, ``folder:PATH``, ``npz:PATH``, ``file:function``,
    ``scenes:BASE`` or a data set of TFDS. A missing test split (20 %) or validation split
    (``c.validation``) is carved from the training images, stratified by label: by constant seeds,
    or for folders and arrays of a user's own by each image's name or pixels, so that images that
    are added move no others. Raises :class:`UserError`.

    ``c.labels`` = N > 0 leaves N labels in training and validation together, as many of each class
    as of another; every other label of the two is −1, and nothing reads it. Of the N,
    round(``c.validation`` · N) are validation labels, but one of each class at least; below two for
    each class none are, and then validation has no accuracy. The validation *images* are
    ``c.validation`` of all, and are then carved without a look at their labels. ``c.labels_seed``
    draws other examples; the run's seed does not.

    ``c.hold_out`` takes classes, by place or by name, out of all three splits, so to every
    objective the data has fewer classes; all images of these are ``unseen``. The other images stay
    in their split.

    A data set of one class has nothing to tell apart: it is one without labels.
    """
    check(c)
    data, splits = _read(c)
    if len(data.classes) == 1:
        note = f"one class only ({data.classes[0]}): the images are taken as unlabelled"
        data = data._replace(classes=(), notes=(*data.notes, note))
        splits = {name: split._replace(label=None) for name, split in splits.items()}
    if c.shift >= min(data.shape[:2]):
        side = min(data.shape[:2])
        raise UserError(f"data.shift={c.shift}: want less than the images' side, {side}")
    _carve_missing(splits, c, data.draws)
    classes = data.classes
    unseen = None
    if c.get("hold_out"):
        classes, unseen = hold_out(splits, c, classes)
    for split in NAMES:
        if not len(splits[split].image):
            raise UserError(f"data.name={c.name}: no images are left for {split}; want more images")
    if c.get("labelled_batch") and not classes:
        raise UserError(
            f"data.labelled_batch={c.labelled_batch}: data.name={c.name} has no labels; want 0"
        )
    if c.get("labels"):
        spend(splits, c, len(classes))
    return Dataset(
        name=c.name,
        shape=data.shape,
        levels=data.levels,
        classes=classes,
        unseen=unseen,
        release=data.release,
        notes=data.notes,
        **{split: splits[split] for split in NAMES},
    )


class _Data(NamedTuple):
    """What all kinds of data sets have in common, but for their splits."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    levels: int = 256
    draws: np.ndarray | None = None  # [N] in [0, 1) of the training images
    release: str = ""
    notes: tuple[str, ...] = ()


def _read(c: ConfigDict) -> tuple[_Data, dict[str, Split]]:
    """A data set and the splits that it has, before any is carved."""
    if c.name == "digits":
        shape, classes, splits = _digits()
        return _Data(shape, classes, levels=17), splits
    if c.name.startswith(scenes.PREFIX):
        return _of_arrays(scenes.read(c, load))
    if c.name == "synthetic":
        return _of_arrays(arrays.synthetic(c.size, c.channels or 3))
    if c.name.startswith("npz:"):
        return _of_arrays(arrays.npz(c.name))
    if c.name.startswith("folder:") and annotations.is_annotated(c.name):
        scenes.check_fields(c)
        return _of_sources(c, annotations.folder(c.name, c.size, c.channels))
    if c.name.startswith("folder:"):
        return _of_sources(c, folders.folder(c.name, c.size, c.channels))
    if c.name.startswith("hf:"):
        return _of_sources(c, huggingface(c.name, c.size, c.channels))
    if arrays.is_own_function(c.name):
        return _of_arrays(arrays.own_function(c.name))
    if c.name == sprites.NAME:
        data, splits = _of_sources(c, sprites.sources(c.size))
    else:
        data, splits = _of_sources(c, sources.tfds(c.name, c.dir))
    if c.name in ("binarized_mnist", sprites.NAME):
        data = data._replace(levels=2)
    return data, splits


def _digits() -> tuple[tuple[int, int, int], tuple[str, ...], dict[str, Split]]:
    """(shape, classes, splits) of the file that ``sklearn.datasets.load_digits`` reads.

    Importing scikit-learn for it takes more than a second.
    """
    (folder,) = importlib.util.find_spec("sklearn").submodule_search_locations
    with gzip.open(Path(folder, "datasets", "data", "digits.csv.gz")) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 64 pixels, 0 .. 16, and the label
    image = rows[:, :-1].reshape(-1, 8, 8, 1)
    split = Split(image, rows[:, -1].astype(np.int32))
    return (8, 8, 1), tuple("0123456789"), {"train": split}


def _of_arrays(a: arrays.Arrays) -> tuple[_Data, dict[str, Split]]:
    return _Data(a.shape, a.classes, a.levels, a.draws), dict(a.splits)


def _of_sources(c: ConfigDict, s: sources.Sources) -> tuple[_Data, dict[str, Split]]:
    """The decoded splits of ``s``; ``notes`` says how much the cache holds where it grew."""
    entry = cache.folder(c.name, *s.key, version=s.version)
    new = not entry.exists()
    limit = c.get("memory_mb", 4096) * 2**20
    splits = {}
    for split, source in s.splits.items():
        splits[split] = _decode(source, s.shape, entry / split, limit)
    notes = s.notes
    if new and entry.exists():
        mebibytes = cache.size(entry.parent) / 2**20
        notes += (f"decoded images are kept in {entry.parent}, {mebibytes:.1f} MiB in all",)
    draws = s.splits["train"].draws
    return _Data(s.shape, s.classes, draws=draws, release=s.release, notes=notes), splits


def _carve_missing(splits: dict[str, Split], c: ConfigDict, draw_N: np.ndarray | None) -> None:
    """Carve the test and validation splits that are missing from train, in place."""
    stratified = not c.get("labels")
    if draw_N is not None:
        test = 0.0 if "test" in splits else TEST_SHARE
        validation = 0.0 if "validation" in splits else c.validation
        train = splits["train"]
        splits |= carve_by_draw(train, draw_N, test, validation, stratified=stratified)
        return
    if "test" not in splits:
        splits["train"], splits["test"] = carve(splits["train"], TEST_SHARE, TEST_SEED)
    if "validation" not in splits:
        splits["train"], splits["validation"] = carve(
            splits["train"], c.validation, VALIDATION_SEED, stratified=stratified
        )


def described(c: ConfigDict) -> Dataset:
    """:func:`load`, or a stand-in where the data are not on this disk.

    It has the TFDS catalogue's shape and classes, and 2^20 images that take no memory: for programs
    that are compiled and never run.
    """
    try:
        return load(c)
    except sources.NotPrepared:
        shape, classes = sources.catalogued(c.name)
    image = np.broadcast_to(np.uint8(0), (2**20, *shape))
    label = np.broadcast_to(np.int32(0), 2**20) if classes else None
    split = Split(image, label)
    return Dataset(c.name, shape, 256, classes, split, split, split)


def identity(dataset: Dataset) -> dict:
    """What a run must find again to go on with the same data, as plain JSON.

    Classes by name, the TFDS version, and for each split the number of its examples and a CRC-32 of
    its pixels and labels, in order; of a Stream, of its labels and of 64 images of even stride.
    ``objects``: the CRC-32 of the objects of each split of scenes.
    """
    splits = {}
    objects = {}
    for name in NAMES:
        split = getattr(dataset, name)
        image = split.image
        if isinstance(image, Stream):
            image = some(split, 64).image[:]
        crc = zlib.crc32(np.ascontiguousarray(image))
        if split.label is not None:
            crc = zlib.crc32(np.ascontiguousarray(split.label), crc)
        splits[name] = {"count": len(split.image), "crc32": f"{crc:08x}"}
        if split.objects is not None:
            objects[name] = f"{zlib.crc32(np.ascontiguousarray(split.objects)):08x}"
    return {
        "name": dataset.name,
        "release": dataset.release,
        "shape": list(dataset.shape),
        "levels": dataset.levels,
        "classes": list(dataset.classes),
        "splits": splits,
        "objects": objects,
    }


def foreign(name: str, c: ConfigDict, dataset: Dataset, n: int) -> Split:
    """``n`` test images of the data set ``name``, converted to the shape and levels of ``dataset``.

    They are an even stride apart. Images of another size, mode or number of grey levels are
    converted as ``predict`` converts files. ``c`` is the config of ``dataset``: binarisation is
    evaluation's, so it is the same.
    """
    c = c.copy_and_resolve_references()
    c.update(name=name, labels=0, labelled_batch=0, hold_out=(), shift=0)
    with c.ignore_type():
        c.size = dataset.shape[:2]
    c.channels = 1 if dataset.shape[2] == 1 else 3
    ood = load(c)
    part = some(ood.test, n)
    if (ood.shape, ood.levels) == (dataset.shape, dataset.levels):
        return part
    import PIL.Image

    def convert(image: np.ndarray) -> np.ndarray:
        image = np.rint(image * (255 / (ood.levels - 1))).astype(np.uint8)
        if image.shape[-1] == 1:
            image = image[..., 0]
        return predict.convert(PIL.Image.fromarray(image), dataset.shape, dataset.levels)

    return Split(np.stack([convert(image) for image in part.image[:]]), part.label)


def _decode(source: sources.Source, shape: tuple[int, int, int], path: Path, limit: int) -> Split:
    """The :class:`Split` of a source, cached; a Stream where it is larger than ``limit`` bytes."""
    stream = Stream(source.images, np.arange(source.n), shape)
    chunk = max(1, 2**24 // math.prod(shape))
    parts = [range(i, min(i + chunk, source.n)) for i in range(0, source.n, chunk)]
    label = None
    if source.labels:
        label = cache.load(
            path.with_suffix(".label.npy"),
            (source.n,),
            np.int32,
            lambda: map(source.labels, parts),
        )
    if source.n * math.prod(shape) > limit:
        return Split(stream, label, source.objects)
    image = cache.load(
        path.with_suffix(".image.npy"),
        stream.shape,
        np.uint8,
        lambda: map(stream.__getitem__, parts),
    )
    return Split(image, label, source.objects)
