"""Where images come from: one :class:`Source` per split, read some examples at a time."""

import concurrent.futures
import functools
import io
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import cache, predict, prepare


class NotPrepared(UserError):
    """A data set of the TFDS catalogue that is not on this disk."""


class Source(NamedTuple):
    """A split that is not yet decoded."""

    n: int
    images: Callable  # list of indices -> list of uint8 [H, W, C]
    labels: Callable | None  # list of indices -> list of ints; None where there are no labels


class Sources(NamedTuple):
    """A data set that is not yet decoded."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    splits: dict[str, Source]  # 'train', and of 'validation' and 'test' those that exist
    key: tuple  # changes whenever what is decoded does


def tfds(name, data_dir):
    """A prepared TFDS data set, ``name`` as in the catalogue: NAME, NAME/CONFIG or NAME:VERSION."""
    path = _prepared(name, data_dir)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if image is None or None in image.shape or image.np_dtype != np.uint8:
        what = "no images" if image is None else f"{image.np_dtype} images of shape {image.shape}"
        raise UserError(f"data.name={name}: has {what}; want uint8 of one size, or use folder:PATH")
    labelled = isinstance(label, tfds.features.ClassLabel)
    if "train" not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"data.name={name}: has no split 'train', only {splits}")

    def source(split):
        try:
            # Many records at a time, images as stored: 7 times the speed of one decoded row each.
            stored = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError:
            raise UserError(
                f"data.name={name}: {path} has {builder.info.file_format.value} files, which need "
                f"TensorFlow; want array_record, as python -m vae_jax.data prepare {name} writes"
            ) from None
        return Source(
            builder.info.splits[split].num_examples,
            lambda index: _parallel(decode, [row["image"] for row in stored.__getitems__(index)]),
            (lambda index: [row["label"] for row in stored.__getitems__(index)]) if labelled else None,
        )

    def decode(data):
        import PIL.Image

        mode = {1: "L", 3: "RGB", 4: "RGBA"}[image.shape[-1]]
        with PIL.Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert(mode)).reshape(image.shape)

    splits = {s: source(s) for s in ("train", "validation", "test") if s in builder.info.splits}
    classes = tuple(label.names) if labelled else ()
    key = (str(builder.version), str(path.resolve()), cache.fingerprint(path))
    return Sources(tuple(image.shape), classes, splits, key)


def catalogued(name):
    """(shape, classes) that the TFDS catalogue gives for a data set, with nothing on disk."""
    import tensorflow_datasets as tfds

    features = dict(tfds.builder(name).info.features)
    image, label = features.get("image"), features.get("label")
    if image is None or None in image.shape:
        raise UserError(f"data.name={name}: the catalogue gives no size of its images; want it prepared")
    return tuple(image.shape), tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()


def _prepared(name, data_dir):
    """The folder of the newest version of ``name`` below ``data_dir``, by file names alone."""
    root = prepare.default_data_dir(data_dir)
    base, _, version = name.partition(":")
    found = [
        p
        for p in (root / base).glob(version or "*")
        if re.fullmatch(r"\d+\.\d+\.\d+", p.name) and (p / "dataset_info.json").is_file()
    ]
    if found:
        return max(found, key=lambda p: [int(v) for v in p.name.split(".")])
    configs = sorted({p.parent.parent.name for p in (root / base).glob("*/*/dataset_info.json")})
    if configs:
        configs = ", ".join(f"{base}/{c}" for c in configs)
        raise UserError(f"data.name={name}: want one of its configs, {configs}")
    prepare.check_known(name, "data.name")
    raise NotPrepared(
        f"data.name={name}: not prepared in {root}; run: python -m vae_jax.data prepare {name} --data_dir={root}"
    )


def folder(name, size, channels):
    """``folder:PATH`` with images PATH/CLASS/*, or PATH/train/CLASS/* and PATH/test/CLASS/*.

    Images of any size and mode are made what ``predict.convert`` says.
    """
    root = pathlib.Path(name.removeprefix("folder:")).expanduser()
    if not root.is_dir():
        raise UserError(f"data.name={name}: no such folder")
    parts = ("train", "test") if (root / "train").is_dir() and (root / "test").is_dir() else ("",)
    classes = _folders(root / parts[0])
    if not classes:
        raise UserError(f"data.name={name}: no classes; want a sub-folder of images for each class")
    files = {part or "train": _images(name, root / part, classes) for part in parts}
    least = 2 if "test" in files else 3  # at least one for each split
    counts = np.bincount([label for _, label in files["train"]], minlength=len(classes))
    for label, count in zip(classes, counts, strict=True):
        if count < least:
            images = "1 image" if count == 1 else f"{count} images"
            raise UserError(f"data.name={name}: class {label} has {images}; want at least {least}")
    if len(parts) == 2 and not files["test"]:
        raise UserError(f"data.name={name}: no images in test/; want some, or no test/ at all")

    def source(rows):
        def images(index):
            return _parallel(lambda i: read_image(rows[i][0], size, channels), index)

        return Source(len(rows), images, lambda index: [rows[i][1] for i in index])

    splits = {split: source(rows) for split, rows in files.items()}
    key = (str(root.resolve()), size, channels, cache.fingerprint(root))
    return Sources((size, size, channels), tuple(classes), splits, key)


def _folders(root):
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")


def _images(name, root, classes):
    """[(file, class index)] below root/CLASS, in a fixed order."""
    extra = set(_folders(root)) - set(classes)
    if extra:
        raise UserError(f"data.name={name}: class {min(extra)} is in {root.name}/, not in train/")
    return [
        (file, label)
        for label, c in enumerate(classes)
        for file in sorted((root / c).rglob("*"))
        if file.suffix.lower() in predict.IMAGE_FILES and file.name[0] != "."
    ]


def read_image(path, size, channels):
    """uint8 [size, size, channels] of any image file."""
    try:
        return predict.read(path, (size, size, channels))
    except ValueError as error:
        raise UserError(str(error)) from None


def _parallel(function, items):
    pieces = [items[i : i + 16] for i in range(0, len(items), 16)]
    done = _threads().map(lambda piece: [function(item) for item in piece], pieces)
    return [value for piece in done for value in piece]


@functools.cache
def _threads():
    return concurrent.futures.ThreadPoolExecutor(8, "decode")
