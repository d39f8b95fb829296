"""``hf:NAME``: a data set of Hugging Face's library ``datasets``, read from this disk.

NAME is a folder that ``save_to_disk`` wrote, a folder of parquet files, or the name of a data set
in the library's own cache. ``hf:NAME:CONFIG`` takes one configuration of it, and ``hf:NAME#COLUMN``
the labels of another column::

    hf:ylecun/mnist    hf:~/sets/birds    hf:flwrlabs/celeba#Smiling

Nothing is downloaded: where HF_HUB_OFFLINE is not set, the library is imported offline.
"""

import hashlib
import importlib
import io
import os
import pathlib
import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vae_jax.config import UserError, nearest
from vae_jax.data import arrays, cache, folders, paths, predict
from vae_jax.data.predict import printable
from vae_jax.data.sources import Source, Sources, parallel

IMAGES = ("image", "img", "pixel_values", "picture")  # columns of images, the first that is there
LABELS = ("label", "labels", "fine_label", "class", "target")
Tables = Mapping[str, Any]  # {split: datasets.Dataset}


class Name(NamedTuple):
    """The parts of ``hf:PATH:CONFIG#LABEL``."""

    path: str
    config: str | None
    label: str | None


def huggingface(name: str, size: int | tuple[int, int], channels: int) -> Sources:
    """The images and labels of ``hf:NAME``.

    Images are converted as ``predict.convert`` says. ``size=0``: all have one size, and keep it.
    ``channels=0``: 1 where all of 256 images are grey, else 3. Classes are the names of a
    ``ClassLabel``, or the words, whole numbers or switches of a plain column.

    Raises:
      UserError: there is no such data set on this disk, or it has no images.
    """
    parts = split_name(name)
    tables = _tables(name, parts)
    name = printable(name)
    features = tables["train"].features
    column = _image_column(name, features)
    label = _label_column(name, parts, features)
    notes = []
    labels: dict[str, np.ndarray] = {}
    classes: tuple[str, ...] = ()
    if label:
        tables = _without_hidden(tables, label, notes)
        classes, labels = _labels(name, tables, label)
        notes.append(f"labels are those of the column {printable(label)}")
    encoded = _encoded(tables, column)
    shape = _shape(name, encoded["train"], size, channels, notes)
    splits = {}
    for split, table in encoded.items():
        splits[split] = _source(f"data.name={name}: {split}", table, labels.get(split), shape, size)
    return Sources(
        shape=shape,
        classes=classes,
        splits=splits,
        key=(*parts, shape),
        version=_version(tables),
        notes=tuple(notes),
    )


def split_name(name: str) -> Name:
    """The :class:`Name` that a user wrote."""
    match = re.fullmatch(r"hf:([^#]+?)(?::([\w.-]+))?(?:#(.+))?", name)
    if not match:
        raise UserError(
            f"data.name={printable(name)}: want hf:NAME, hf:NAME:CONFIG or hf:NAME#COLUMN"
        )
    path, config, label = match.groups()
    return Name(path, config, label)


def _library(name: str) -> types.ModuleType:
    """The library ``datasets``; it looks for no network where the user did not say so."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"data.name={printable(name)}: wants the library datasets; pip install 'vae_jax[hf]'"
        ) from None
    library.disable_progress_bars()
    library.utils.logging.set_verbosity_error()  # it warns at each start that it is offline
    return library


def _tables(name: str, parts: Name) -> Tables:
    """{split: its table}; 'train', and of 'validation' and 'test' those that exist."""
    library = _library(name)
    path = paths.expand(parts.path, "data.name")
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            value = library.load_from_disk(str(path))
        elif path.is_dir():
            value = library.load_dataset(str(path), parts.config)
        else:
            value = library.load_dataset(parts.path, parts.config)
    except Exception as error:  # the library has many kinds
        raise UserError(_unreadable(name, parts, path, error)) from None
    if isinstance(value, library.Dataset):
        value = {"train": value}
    tables = {}
    for split, table in value.items():
        if split in folders.SPLITS:
            tables[folders.SPLITS[split]] = table
    if "train" not in tables:
        there = ", ".join(map(printable, value))
        raise UserError(f"data.name={printable(name)}: has no split 'train', only {there}")
    return tables


def _unreadable(name: str, parts: Name, path: pathlib.Path, error: Exception) -> str:
    """One line for a data set that the library cannot read."""
    why = printable(" ".join(str(error).split())[:160])
    if path.is_dir():
        return f"data.name={printable(name)}: cannot be read ({why})"
    words = f"'{parts.path}'"
    if parts.config:
        words += f", '{parts.config}'"
    command = f'python -c "import datasets; datasets.load_dataset({words})"'
    return (
        f"data.name={printable(name)}: no such folder, nor in the cache of datasets ({why}); "
        f"with a network run: {printable(command)}"
    )


def _image_column(name: str, features: Mapping[str, Any]) -> str:
    columns = [key for key, feature in features.items() if type(feature).__name__ == "Image"]
    if not columns:
        there = ", ".join(map(printable, features))
        raise UserError(f"data.name={name}: its columns ({there}) have no images")
    usual = [key for key in IMAGES if key in columns]
    return (usual or columns)[0]


def _label_column(name: str, parts: Name, features: Mapping[str, Any]) -> str | None:
    """The column of labels: the user's, one with a usual name, or the first of classes."""
    if parts.label is not None:
        if parts.label not in features:
            near = printable(nearest(parts.label, features))
            raise UserError(f"data.name={name}: has no column {printable(parts.label)}; {near}")
        return parts.label
    usual = [key for key in LABELS if key in features]
    of_classes = [key for key, one in features.items() if type(one).__name__ == "ClassLabel"]
    return next(iter(usual + of_classes), None)


def _column(table: Any, column: str) -> np.ndarray:
    return np.asarray(table.select_columns([column])[:][column])


def _without_hidden(tables: Tables, column: str, notes: list[str]) -> Tables:
    """The splits that have labels: those of a competition's test set are all −1."""
    kept = {}
    for split, table in tables.items():
        label_N = _column(table, column)
        hidden = label_N.dtype.kind == "i" and (label_N == -1).all()
        if split != "train" and hidden:
            notes.append(f"the split {split} has no labels and is left out")
        else:
            kept[split] = table
    return kept


def _labels(
    name: str, tables: Tables, column: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(names of the classes, {split: int32 [N]})."""
    labels = {split: _column(table, column) for split, table in tables.items()}
    names = getattr(tables["train"].features[column], "names", None)
    if labels["train"].dtype == bool:
        labels = {split: label_N.astype(np.int32) for split, label_N in labels.items()}
        names = [f"not {column}", column]
    return arrays.class_labels(name, names and np.array(names), labels)


def _encoded(tables: Tables, column: str) -> Tables:
    """The tables with one column: the bytes of each image as stored."""
    encoded = {}
    for split, table in tables.items():
        kind = type(table.features[column])
        encoded[split] = table.select_columns([column]).cast_column(column, kind(decode=False))
    return encoded


def _rows(table: Any, places: list[int]) -> list[Mapping[str, Any]]:
    """Rows of a table of one column."""
    return table[places][table.column_names[0]]


def _open(row: Mapping[str, Any]) -> Any:
    """The Pillow image of a row, not yet decoded."""
    import PIL.Image

    if row["bytes"] is None:
        return PIL.Image.open(row["path"])
    return PIL.Image.open(io.BytesIO(row["bytes"]))


def _shape(
    name: str, table: Any, size: int | tuple[int, int], channels: int, notes: list[str]
) -> tuple[int, int, int]:
    """H, W and C, of ``size`` and ``channels`` or of what 256 images have."""
    stride = max(1, -(-len(table) // folders.LOOKED_AT))
    rows = _rows(table, list(range(0, len(table), stride)))
    if not rows:
        raise UserError(f"data.name={name}: no images for train; want some")
    sides = set()
    grey = True
    for row in rows:
        try:
            with _open(row) as image:
                sides.add((image.height, image.width))
                grey = grey and (channels > 0 or folders.is_grey(image))
        except Exception:  # unreadable: named when it is decoded
            continue
    if size:
        height, width = arrays.sides(size)
    elif len(sides) == 1:
        ((height, width),) = sides
    else:
        raise UserError(
            f"data.size=0: the images of data.name={name} have {len(sides)} sizes; want one side, "
            "as data.size=64, or (height, width)"
        )
    if not channels:
        channels = 1 if grey else 3
        kind = {1: "grey", 3: "colour"}[channels]
        notes.append(f"images are {kind}, so data.channels={channels}")
    return height, width, channels


def _source(
    where: str,
    table: Any,
    label_N: np.ndarray | None,
    shape: tuple[int, int, int],
    size: int | tuple[int, int],
) -> Source:
    """The :class:`Source` of a split. Without a ``size`` an image of another one is an error."""

    def decode(item: tuple[int, Mapping[str, Any]]) -> np.ndarray:
        place, row = item
        try:
            with _open(row) as image:
                if not size and (image.height, image.width) != shape[:2]:
                    raise ValueError(f"{image.height}x{image.width}; want data.size")
                return predict.convert(image, shape)
        except Exception as error:  # Pillow raises many kinds for a damaged file
            why = printable(" ".join(str(error).split())[:120])
            raise UserError(f"{where} image {place}: not readable ({why})") from None

    def images(index: list[int]) -> list[np.ndarray]:
        places = list(map(int, index))
        return parallel(decode, list(zip(places, _rows(table, places), strict=True)))

    def labels(index: list[int]) -> list[int]:
        return label_N[list(index)].tolist()

    return Source(len(table), images, None if label_N is None else labels)


def _version(tables: Tables) -> str:
    """A hash of the names, sizes and times of the files that the tables are read from."""
    digest = hashlib.sha256()
    for split, table in tables.items():
        for part in table.cache_files:
            file = pathlib.Path(part["filename"])
            digest.update(f"{split} {len(table)}\n".encode() + os.fsencode(file))
            digest.update(cache.stamp(file))
    return digest.hexdigest()
