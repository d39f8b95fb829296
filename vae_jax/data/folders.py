"""``folder:PATH``: a folder of images, a sub-folder for each class, as people keep them."""

import collections
import functools
import hashlib
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import cache, paths, predict
from vae_jax.data.arrays import sides
from vae_jax.data.predict import printable
from vae_jax.data.sources import Source, Sources, parallel

SPLITS = {
    **{"train": "train", "training": "train"},
    **{"val": "validation", "valid": "validation", "validation": "validation"},
    **{"test": "test", "testing": "test"},
}
LOOKED_AT = 256  # images that tell grey from colour
NAMED = 50  # unreadable images that an error names; it counts the others


class Row(NamedTuple):
    """An image file of a split."""

    file: pathlib.Path
    name: str  # below the folder of its class
    label: int


def folder(name: str, size: int | tuple[int, int], channels: int) -> Sources:
    """The images of PATH/CLASS/*, or of PATH/train/CLASS/*, PATH/val/… and PATH/test/….

    Images of any size and mode are converted to ``size``, the side of a square or (height, width),
    as ``predict.convert`` says. ``channels=0``: 1 where
    all of 256 images are grey, else 3. An image's split is drawn from its name below its class.
    """
    root = paths.expand(name.removeprefix("folder:"), "data.name")
    name = printable(name)
    if not root.is_dir():
        raise UserError(f"data.name={name}: no such folder")
    try:
        parts = _split_folders(name, root)
        classes = [p.name for p in _folders(parts["train"])]
        if not classes:
            raise UserError(f"data.name={name}: no classes; want a sub-folder of images for each")
        rows = {}
        skipped = collections.Counter()
        for split, place in parts.items():
            rows[split] = _rows(name, place, classes, skipped)
        stamps = version(root, rows)
    except OSError as error:
        path = printable(error.filename)
        raise UserError(f"data.name={name}: cannot read {path} ({error.strerror})") from None
    _check_counts(name, rows, classes, skipped)
    sources = sources_of(name, root, rows, size, channels, stamps)
    notes = sources.notes
    if skipped:
        left_out = f"{skipped.total()} files that are no images are left out ({_kinds(skipped)})"
        notes = (left_out, *notes)
    return sources._replace(classes=tuple(map(printable, classes)), notes=notes)


def sources_of(
    name: str,
    root: pathlib.Path,
    rows: dict[str, list[Row]],
    size: int | tuple[int, int],
    channels: int,
    stamps: str,
) -> Sources:
    """The images of these rows, without classes. ``stamps``: the ``version`` of the Sources."""
    notes = []
    if not channels:
        channels = _channels(rows["train"])
        kind = {1: "grey", 3: "colour"}[channels]
        notes.append(f"images are {kind}, so data.channels={channels}")
    shape = (*sides(size), channels)
    notes += _cropped(rows["train"], shape)
    splits = {split: _source(root, rows, split, shape) for split in rows}
    return Sources(
        shape=shape,
        classes=(),
        splits=splits,
        key=(str(root.resolve()), shape),
        version=stamps,
        notes=tuple(notes),
    )


def _folders(place: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in place.iterdir() if p.is_dir() and not predict.is_hidden(p.name))


def _split_folders(name: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """{split: its folder}; {'train': root} where the sub-folders of ``root`` are classes.

    A folder ``train`` is a split, not a class, if folders are in it and no images, and another
    split is beside it or nothing is.
    """
    parts = {}
    folders = _folders(root)
    for place in folders:
        split = SPLITS.get(place.name.lower())
        if split in parts:
            both = f"{parts[split].name}/ and {place.name}/"
            raise UserError(f"data.name={name}: {both} are both for {split}; want one of them")
        if split:
            parts[split] = place
    if "train" not in parts:
        if parts and len(parts) == len(folders):
            there = " and ".join(f"{place.name}/" for place in parts.values())
            raise UserError(f"data.name={name}: has {there}, but no train/")
        return {"train": root}
    images = any(map(predict.is_image, parts["train"].iterdir()))
    alone = len(parts) == 1 and len(folders) > 1
    if images or alone or not _folders(parts["train"]):
        return {"train": root}
    return parts


def _rows(
    name: str, place: pathlib.Path, classes: list[str], skipped: collections.Counter
) -> list[Row]:
    """The images of a split, class by class in order of names; ``skipped`` counts other files."""
    extra = {p.name for p in _folders(place)} - set(classes)
    if extra:
        missing = printable(min(extra))
        raise UserError(f"data.name={name}: class {missing} is in {place.name}/, not in train/")
    rows = []
    for label, class_name in enumerate(classes):
        home = place / class_name
        if not home.is_dir():
            continue
        for file in predict.walk(home):
            if predict.is_image(file):
                rows.append(Row(file, file.relative_to(home).as_posix(), label))
            else:
                skipped[file.suffix.lower()] += 1
    return rows


def _kinds(skipped: collections.Counter) -> str:
    return ", ".join(
        f"{n} {printable(suffix) or 'without suffix'}" for suffix, n in skipped.items()
    )


def _check_counts(
    name: str, rows: dict[str, list[Row]], classes: list[str], skipped: collections.Counter
) -> None:
    least = 4 - len(rows)  # one for each split that is carved from train, and one that stays
    counts = collections.Counter(row.label for row in rows["train"])
    for label, class_name in enumerate(classes):
        count = counts[label]
        if count < least:
            images = "1 image" if count == 1 else f"{count} images"
            other = ""
            if skipped:
                other = f" (files that are no images: {_kinds(skipped)})"
            raise UserError(
                f"data.name={name}: class {printable(class_name)} has {images}{other}; "
                f"want at least {least}"
            )
    for split, there in rows.items():
        if not there:
            raise UserError(
                f"data.name={name}: no images for {split}; want some, or no folder of that name"
            )


def version(root: pathlib.Path, rows: dict[str, list[Row]]) -> str:
    """A hash of the images' places, classes, sizes and times."""
    digest = hashlib.sha256()
    for split, there in rows.items():
        for row in there:
            place = row.file.relative_to(root)
            digest.update(f"{split} {row.label}\n".encode() + bytes(place) + cache.stamp(row.file))
    return digest.hexdigest()


def draw(name: str) -> float:
    """u in [0, 1): the same for a name on every machine, and uniform over names."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _channels(rows: list[Row]) -> int:
    """1 where an even choice of the images is grey, else 3; unreadable ones do not count."""
    stride = -(-len(rows) // LOOKED_AT)
    looks = [_is_grey(row.file) for row in rows[::stride]]
    return 1 if looks and all(looks) else 3


def _is_grey(file: pathlib.Path) -> bool:
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            return is_grey(image)
    except Exception:  # unreadable: named when it is decoded
        return True


def is_grey(image: Any) -> bool:
    """Whether every pixel of a Pillow image that is not transparent is grey."""
    if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
        return True
    pixels = np.asarray(image.convert("RGBA"))
    pixels = pixels[pixels[..., 3] > 0]
    return bool((pixels[:, :1] == pixels[:, 1:3]).all())


def _cropped(rows: list[Row], shape: tuple[int, int, int]) -> list[str]:
    """A line where images have other proportions, so that a part of each is not used."""
    import PIL.Image

    height, width, _ = shape
    stride = -(-len(rows) // LOOKED_AT)
    looks = rows[::stride]
    cropped = []
    for row in looks:
        try:
            with PIL.Image.open(row.file) as image:
                if image.width * height != image.height * width:
                    cropped.append(f"{image.height}x{image.width}")
        except Exception:  # unreadable: named when it is decoded
            continue
    if not cropped:
        return []
    count = f"{len(cropped)} of {len(looks)} images looked at have other proportions"
    example = f"such as {cropped[0]}, height x width"
    return [f"{count} ({example}): of each the middle is used, at {height}x{width}"]


def _source(
    root: pathlib.Path, rows: dict[str, list[Row]], split: str, shape: tuple[int, int, int]
) -> Source:
    own = rows[split]

    def decode(place: int) -> np.ndarray:
        return predict.read(own[place].file, shape)

    def images(index: list[int]) -> list[np.ndarray]:
        try:
            return parallel(decode, index)
        except ValueError as error:
            raise UserError(_unreadable(root, rows, shape) or str(error)) from None

    def labels(index: list[int]) -> list[int]:
        return [own[place].label for place in index]

    draws = np.array([draw(row.name) for row in own])
    return Source(len(own), images, labels, draws)


def _unreadable(root: pathlib.Path, rows: dict[str, list[Row]], shape: tuple[int, int, int]) -> str:
    """One line that names all images that cannot be read, of all splits."""
    files = [row.file for row in itertools.chain(*rows.values())]
    outcomes = parallel(functools.partial(_failure, shape=shape), files)
    failures = list(filter(None, outcomes))
    if len(failures) < 2:
        return "".join(failures)
    names = [why.partition(": not a readable image")[0] for why in failures[:NAMED]]
    if len(failures) > NAMED:
        names.append(f"and {len(failures) - NAMED} more")
    start = f"data.name=folder:{printable(root)}: {len(failures)} images cannot be read"
    return f"{start}; mend or remove {', '.join(names)}"


def _failure(file: pathlib.Path, shape: tuple[int, int, int]) -> str:
    """Why an image cannot be read; '' where it can."""
    try:
        predict.read(file, shape)
    except ValueError as error:
        return str(error)
    return ""
