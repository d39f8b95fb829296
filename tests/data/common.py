"""What the tests of data share: a config, a folder of images, a small set in MNIST's format."""

import gzip
import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image
from ml_collections import ConfigDict

from vae_jax import data
from vae_jax.data import prepare


def config(**changes: Any) -> ConfigDict:
    c = dict(name="digits", dir="", size=0, channels=3, validation=0.1, binarize="none")
    return ConfigDict({**c, "shift": 0, "flip": False, "memory_mb": 4096, **changes})


def python(code: str, *arguments: Any, **kwargs: Any) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **kwargs)


def folder_of_images(root: pathlib.Path, classes: Mapping[str, int]) -> None:
    for c, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            PIL.Image.new("RGB", (9 + i, 12), (10 * i, 100 * c, 7)).save(root / name / f"{i}.png")


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(s.to_bytes(4, "big") for s in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def no_damage(i: int) -> None:
    """What :func:`tiny` does before row i where no file is damaged."""


def tiny(
    manual_dir: pathlib.Path, damage: Callable[[int], None] = no_damage
) -> tuple[prepare.Original, dict[str, list]]:
    """A small set in MNIST's file format, as one more :class:`prepare.Original`, and its rows."""
    rng = np.random.default_rng(0)
    files = {}
    rows = {}
    for split, prefix, n in (("train", "train", 200), ("test", "t10k", 50)):
        image = rng.integers(0, 256, (n, 28, 28), np.uint8)
        label = np.arange(n) % 10
        files |= {f"{prefix}-images-idx3-ubyte.gz": idx(image)}
        files |= {f"{prefix}-labels-idx1-ubyte.gz": idx(label)}
        rows[split] = sorted(map(tuple, np.c_[image.reshape(n, -1), label].tolist()))
    manual_dir.mkdir()
    for name, value in files.items():
        (manual_dir / name).write_bytes(value)
    sha256 = {name: hashlib.sha256(value).hexdigest() for name, value in files.items()}
    original = prepare.ORIGINALS["mnist"]

    def read(get: Callable) -> dict[str, Iterator]:
        def watched(split: Iterable) -> Iterator:
            for i, row in enumerate(split):
                damage(i)
                yield row

        return {name: watched(split) for name, split in original.read(get).items()}

    return original._replace(version="1.2.3", read=read, sha256=sha256), rows


def rows_of(split: data.Split) -> list[tuple]:
    image = np.asarray(split.image[np.arange(len(split.image))])
    return sorted(map(tuple, np.c_[image.reshape(len(image), -1), split.label].tolist()))
