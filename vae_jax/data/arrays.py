"""Data sets that are arrays: ``synthetic``, ``npz:PATH`` and ``file:function``.

The arrays of a data set of one's own, in an .npz file or in the dict that a function returns (an
.npy file has the images alone):

- ``images`` uint8 [N, H, W] or [N, H, W, C], and if there are ``labels`` [N], whole numbers from 0
  or names; ``splits`` [N] of 'train', 'validation' and 'test'; or
- the same for each split, as ``train_images``, ``train_labels``, ``test_images``, …
  (``val_…`` is ``validation_…``, ``x_train`` and ``y_train`` are Keras's names);
- ``classes`` [Y]: the names of the numbers 0 .. Y - 1.

A function may also return ``(images, labels)`` or ``(images, labels, splits)``.
"""

import hashlib
import inspect
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import paths
from vae_jax.data.predict import printable
from vae_jax.data.splits import Split

MOST_CLASSES = 2**16
_SPLITS = {"train": "train", "val": "validation", "valid": "validation"}
_SPLITS |= {"validation": "validation", "test": "test"}
_WANT = "want images (uint8 [N, H, W] or [N, H, W, C]), labels [N], splits [N] and classes [Y]"


class Arrays(NamedTuple):
    """A data set in memory."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    splits: dict[str, Split]
    levels: int = 256
    draws: np.ndarray | None = None  # [N] in [0, 1), of train: where an example is carved into


def synthetic(size: int | tuple[int, int], channels: int, n: int = 4096) -> Arrays:
    """n images of ten coarse patterns under noise, always the same, for speed and for tests."""
    height, width = sides(size)
    rng = np.random.default_rng(0)
    label = (np.arange(n) % 10).astype(np.int32)
    pattern = rng.integers(0, 192, (10, 4, 4, channels), np.uint8)
    row = np.arange(height) * 4 // height
    column = np.arange(width) * 4 // width
    noise = rng.integers(0, 64, (n, height, width, channels), np.uint8)
    image = noise + pattern[:, row][:, :, column][label]
    return Arrays(image.shape[1:], tuple("0123456789"), {"train": Split(image, label)})


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of ``data.size``: both, or the side of a square."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def npz(name: str) -> Arrays:
    """``npz:PATH``: an .npz file, or the images alone in an .npy file."""
    path = paths.expand(name.removeprefix("npz:"), "data.name")
    name = printable(name)
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            arrays = {"images": file}
        else:
            with file:
                arrays = dict(file)
    except OSError as error:
        raise UserError(f"data.name={name}: {error.strerror or 'damaged'}") from None
    except Exception as error:  # zipfile, zlib, numpy: each has its own
        why = printable(" ".join(str(error).split())[:120])
        raise UserError(f"data.name={name}: not an .npz file of numbers ({why})") from None
    return _arrays(name, arrays)


def own_function(name: str) -> Arrays:
    """``file:function``: what a user's own function returns."""
    function = config.own("data.name", str(paths.expand(name, "data.name")))
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UserError(f"data.name={name}: called without arguments, but {error}") from None
    value = function()
    if isinstance(value, tuple | list) and 2 <= len(value) <= 3:
        value = dict(zip(("images", "labels", "splits"), value, strict=False))
    if not isinstance(value, Mapping):
        raise UserError(f"data.name={name}: returned {type(value).__name__}; {_WANT}")
    for key, array in value.items():
        try:
            np.asarray(array)
        except ValueError:
            raise UserError(f"data.name={name}: {printable(key)} is no array of numbers") from None
    return _arrays(name, value)


def is_own_function(name: str) -> bool:
    """Whether ``name`` is file:function, and not NAME:VERSION of the TFDS catalogue."""
    return name.rpartition(":")[0] != "" and name.rpartition(":")[2].isidentifier()


def _arrays(name: str, own_arrays: Mapping) -> Arrays:
    """Check a user's arrays, and name their splits and classes as we do."""
    arrays = {key: np.asarray(value) for key, value in own_arrays.items()}
    images, labels = _by_split(name, arrays)
    class_names, labels = class_labels(name, arrays.get("classes"), labels)
    splits = {}
    for split in ("train", *sorted(images.keys() - {"train"})):  # the others are compared with it
        image = images[split]
        splits[split] = Split(_image(name, split, image), labels.get(split))
        if splits[split].image.shape[1:] != splits["train"].image.shape[1:]:
            raise UserError(
                f"data.name={name}: images of shapes {images['train'].shape} for train and "
                f"{image.shape} for {split}; want one shape"
            )
    return Arrays(
        shape=splits["train"].image.shape[1:],
        classes=class_names,
        splits=splits,
        levels=2 if images["train"].dtype == bool else 256,
        draws=_draws(splits["train"].image),
    )


def _by_split(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """({split: images}, {split: labels}) of the names that a user may write."""
    parts = {"images": {}, "labels": {}}
    for key, value in arrays.items():
        match = re.fullmatch(r"([a-z]+)_(images|labels)", key)
        keras = re.fullmatch(r"([xy])_([a-z]+)", key)
        if match:
            split, kind = match.groups()
        elif keras:
            kind = {"x": "images", "y": "labels"}[keras[1]]
            split = keras[2]
        else:
            continue
        if split in _SPLITS:
            parts[kind][_SPLITS[split]] = value
    images = parts["images"]
    labels = parts["labels"]
    if "images" in arrays:
        images, labels = _divide(name, arrays)
    if "train" not in images:
        there = ", ".join(map(printable, arrays)) or "nothing"
        raise UserError(f"data.name={name}: has {there}; {_WANT}")
    for split, label in labels.items():
        if split in images and label.shape[:1] != images[split].shape[:1]:
            many = f"{label.size} labels of {len(images[split])} images"
            raise UserError(f"data.name={name}: {many} of {split}")
    return images, labels


def _divide(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """The parts of ``images`` and ``labels`` that ``splits`` names; all is train without it."""
    if "splits" not in arrays:
        there = {"train": slice(None)}
    else:
        split_N = arrays["splits"].astype(str)
        unknown = set(split_N.ravel().tolist()) - set(_SPLITS)
        if unknown or split_N.shape != arrays["images"].shape[:1]:
            wrong = printable(min(unknown, default=f"shape {split_N.shape}"))
            raise UserError(
                f"data.name={name}: splits has {wrong}; "
                "want train, validation or test of each image"
            )
        split_N = np.array([_SPLITS[split] for split in split_N.tolist()])
        there = {split: np.flatnonzero(split_N == split) for split in set(split_N.tolist())}
    if not arrays["images"].ndim:
        raise UserError(f"data.name={name}: images are one number; {_WANT}")
    n = len(arrays["images"])
    if "labels" in arrays and arrays["labels"].shape[:1] != (n,):
        raise UserError(f"data.name={name}: {arrays['labels'].size} labels of {n} images")
    images = {}
    labels = {}
    for split, index in there.items():
        images[split] = arrays["images"][index]
        if "labels" in arrays:
            labels[split] = arrays["labels"][index]
    return images, labels


def _image(name: str, split: str, image: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] of a user's images."""
    if image.ndim == 3:
        image = image[..., None]
    good = image.ndim == 4 and image.shape[-1] in (1, 3) and image.size
    if not good or image.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        raise UserError(
            f"data.name={name}: {split} images are {image.dtype} {list(image.shape)}; "
            f"want uint8 (0 .. 255) or bool, [N, H, W], or [N, H, W, C] of 1 or 3 channels"
        )
    return np.ascontiguousarray(image, np.uint8)


def class_labels(
    name: str, names: np.ndarray | None, labels: Mapping[str, np.ndarray]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(names of the classes, {split: int32 [N]}); labels that are words are classes in order."""
    if not labels:
        return (), {}
    for label in labels.values():
        if not label.ndim or label.size != len(label):  # Keras has [N, 1]
            raise UserError(f"data.name={name}: labels have shape {label.shape}; want one an image")
    every = np.concatenate([label.ravel() for label in labels.values()])
    if every.dtype.kind in "US":
        every = every.astype(str)
        names = np.unique(every) if names is None else names.astype(str)
        unknown = set(every.tolist()) - set(names.tolist())
        if unknown:
            raise UserError(f"data.name={name}: label {printable(min(unknown))} is not in classes")
        places = dict(zip(names.tolist(), range(len(names)), strict=True))
        every = np.array(list(map(places.get, every.tolist())))
    if every.dtype.kind not in "iu" or every.min() < 0:
        raise UserError(f"data.name={name}: labels are {every.dtype}; want 0 .. Y - 1 or names")
    count = int(every.max()) + 1
    if count > MOST_CLASSES:
        wanted = f"0 .. Y - 1 with at most {MOST_CLASSES} classes, or names"
        raise UserError(f"data.name={name}: has a label {count - 1}; want {wanted}")
    if names is None:
        names = np.arange(count)
    if len(set(names.tolist())) < len(names):
        raise UserError(f"data.name={name}: two classes have one name; want different ones")
    if len(names) < count:
        raise UserError(f"data.name={name}: {len(names)} classes, but a label {count - 1}")
    ends = np.cumsum([label.size for label in labels.values()])
    parts = np.split(every.astype(np.int32), ends[:-1])
    return tuple(map(printable, names.tolist())), dict(zip(labels, parts, strict=True))


def _draws(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """u in [0, 1) of each image's own pixels, so that equal images lie in one split."""
    draws = np.empty(len(image_NxHxWxC))
    for i, image in enumerate(image_NxHxWxC):
        digest = hashlib.sha256(image.tobytes()).digest()
        draws[i] = int.from_bytes(digest[:6], "big") / 2**48
    return draws
