"""Where images come from: one :class:`Source` per split, read some examples at a time."""

import concurrent.futures
import functools
import importlib.util
import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import cache, prepare, tfrecord
from vae_jax.data.predict import printable


class NotPrepared(UserError):
    """A data set of the TFDS catalogue that is not on this disk."""


class Source(NamedTuple):
    """A split that is not yet decoded."""

    n: int
    images: Callable[[list[int]], list[np.ndarray]]  # places → uint8 [H, W, C]
    labels: Callable[[list[int]], list[int]] | None  # None where there are no labels
    draws: np.ndarray | None = None  # [N] in [0, 1): which split an example is carved into
    objects: np.ndarray | None = None  # int32 [N, M, 5] of scenes, as Split.objects


class Sources(NamedTuple):
    """A data set that is not yet decoded."""

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    splits: dict[str, Source]  # 'train', and of 'validation' and 'test' those that exist
    key: tuple  # which data set it is, and how it is decoded
    version: str  # a hash that changes whenever what is decoded does
    release: str = ""  # the version that TFDS gives
    notes: tuple[str, ...] = ()  # what a user should know, a line each


def tfds(name: str, data_dir: str) -> Sources:
    """A prepared TFDS data set, ``name`` as in the catalogue: NAME, NAME/CONFIG or NAME:VERSION."""
    path = _prepared(name, data_dir)
    import tensorflow_datasets as tfds

    with _Damage(name, path):
        builder = tfds.builder_from_directory(path)
        features = dict(builder.info.features)
    image = features.get("image")
    label = features.get("label")
    if image is None or None in image.shape or image.np_dtype != np.uint8:
        what = "no images"
        if image is not None:
            what = f"{image.np_dtype} images of shape {image.shape}"
        raise UserError(f"data.name={name}: has {what}; want uint8 of one size, or use folder:PATH")
    has_labels = isinstance(label, tfds.features.ClassLabel)
    if "train" not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"data.name={name}: has no split 'train', only {splits}")
    splits = {}
    for split in ("train", "validation", "test"):
        if split in builder.info.splits:
            splits[split] = _source(name, path, builder, split, has_labels)
    return Sources(
        shape=tuple(image.shape),
        classes=tuple(map(printable, label.names)) if has_labels else (),
        splits=splits,
        key=(str(builder.version), str(path.resolve())),
        version=cache.fingerprint(path),
        release=str(builder.version),
    )


def _source(name: str, path: pathlib.Path, builder, split: str, has_labels: bool) -> Source:
    """The :class:`Source` of a split of a TFDS builder."""
    shape = tuple(builder.info.features["image"].shape)
    n = builder.info.splits[split].num_examples
    with _Damage(name, path):
        read = _reader(name, path, builder, split)

    def decode(data: bytes) -> np.ndarray:
        import PIL.Image

        mode = {1: "L", 3: "RGB", 4: "RGBA"}[shape[-1]]
        with PIL.Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert(mode)).reshape(shape)

    def images(index: list[int]) -> list[np.ndarray]:
        with _Damage(name, path):
            return parallel(decode, [row["image"] for row in read(index)])

    def labels(index: list[int]) -> list[int]:
        with _Damage(name, path):
            return [row["label"] for row in read(index)]

    return Source(n, images, labels if has_labels else None)


def _reader(
    name: str, path: pathlib.Path, builder, split: str
) -> Callable[[list[int]], Sequence[dict]]:
    """read(places) → examples with their images as stored.

    Many records at a time, and images as stored: 7 times the speed of one decoded row each.
    """
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if formats & {"array_record", "parquet"}:
        stored = builder.as_data_source(split, decoders=decoders)
        count = len(stored)
        read = stored.__getitems__
    elif "tfrecord" in formats:
        records = tfrecord.Records(builder.info.splits[split].filepaths)
        count = len(records)
        parse = builder.info.features.deserialize_example_np

        def read(index: list[int]) -> list[dict]:
            return [parse(records[place], decoders=decoders) for place in index]
    else:
        raise UserError(
            f"data.name={name}: {path} has {', '.join(sorted(formats))} files; want array_record, "
            f"as python -m vae_jax.data prepare {name} writes, or tfrecord"
        )
    if count != builder.info.splits[split].num_examples:
        expected = builder.info.splits[split].num_examples
        raise ValueError(f"{split} has {count} of {expected} records")
    return read


class _Damage:
    """A context that makes of every error one line: which prepared files are damaged."""

    def __init__(self, name: str, path: pathlib.Path):
        self.name = name
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError | MemoryError):
            return
        why = printable(" ".join(str(error).split())[:160]) or kind.__name__
        raise UserError(
            f"data.name={self.name}: the files in {self.path} are damaged ({why}); "
            f"remove that folder and prepare it again"
        ) from None


def catalogued(name: str) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """(shape, classes) that the TFDS catalogue gives for a data set, with nothing on disk."""
    import tensorflow_datasets as tfds

    features = dict(tfds.builder(name).info.features)
    image = features.get("image")
    label = features.get("label")
    if image is None or None in image.shape:
        raise UserError(
            f"data.name={name}: the catalogue gives no size of its images; want it prepared"
        )
    if not isinstance(label, tfds.features.ClassLabel):
        return tuple(image.shape), ()
    return tuple(image.shape), tuple(label.names)


def _prepared(name: str, data_dir: str) -> pathlib.Path:
    """The folder of the newest version of ``name`` below ``data_dir``, by file names alone."""
    root = prepare.default_data_dir(data_dir)
    base, _, version = name.partition(":")
    versions = []
    for path in (root / base).glob(version or "*"):
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").is_file():
            versions.append(path)
    if versions:
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    configs = sorted({p.parent.parent.name for p in (root / base).glob("*/*/dataset_info.json")})
    if configs:
        configs = ", ".join(f"{base}/{c}" for c in configs)
        raise UserError(f"data.name={name}: want one of its configs, {configs}")
    prepare.check_known(name, "data.name")
    raise NotPrepared(f"data.name={name}: not prepared in {root}; {_advice(name, root)}")


def _advice(name: str, root: pathlib.Path) -> str:
    """How a data set of the catalogue comes to ``root``: all that it takes, in one line."""
    command = f"python -m vae_jax.data prepare {name} --data_dir={root}"
    by_hand = prepare.by_hand(name)
    if by_hand:
        command += f" --manual_dir=DIR, with {by_hand}"
    if name in prepare.ORIGINALS or importlib.util.find_spec("tensorflow"):
        return f"run: {command}"
    return f"in an environment with TensorFlow (pip install tensorflow) run: {command}"


def parallel(function: Callable, items: Sequence) -> list:
    """[function(item) for each item], on 8 threads; Pillow decodes outside Python's lock."""

    def several(piece: Sequence) -> list:
        return list(map(function, piece))

    pieces = [items[i : i + 16] for i in range(0, len(items), 16)]
    values = []
    for piece in _threads().map(several, pieces):
        values += piece
    return values


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(8, "decode")
