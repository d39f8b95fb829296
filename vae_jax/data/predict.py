"""Classify images with an exported classifier, and report how familiar they look.

    python -m vae_jax.data.predict classifier.jaxexport image.png folder/

``python -m vae_jax.tools.export`` makes the file, metadata beside it (.json), and a copy of this
file: the folder runs anywhere as ``python predict.py …``, with JAX, numpy and Pillow. Familiarity
is the share of the validation images whose code is at least as far from the codes of training:
near 0 % the image differs more than nearly all of validation, or is out of distribution, and its
class then means nothing. A file that is no image is named, and the others go on (exit code 1).
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

IMAGE_FILES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif"),
    *(".tiff", ".webp", ".pgm", ".ppm", ".pbm"),
)
BATCH = 64  # images of one call
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels → Pillow's mode
EPIPE = 141  # 128 + SIGPIPE: what a shell reports of a program whose reader is gone


def convert(image: "PIL.Image.Image", shape: Sequence[int], levels: int = 256) -> np.ndarray:
    """uint8 [H, W, C] of a Pillow image of any size and mode, as training reads its folders.

    The image is turned upright, resized to cover the shape, cropped to its centre, and made grey or
    colour. Transparent pixels show white; 16-bit values keep their upper 8 bits; grey levels are
    scaled to 0 .. levels - 1.

    Raises:
      ValueError: its values are floats.
    """
    import PIL.Image
    import PIL.ImageOps

    height, width, channels = shape
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey; convert("L") would clip at 255
        grey = np.clip(np.asarray(image), 0, 65535) >> 8
        image = PIL.Image.fromarray(grey.astype(np.uint8))
    if image.mode == "F":
        raise ValueError("values are floats; want 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert(MODES[channels])
    if image.size != (width, height):
        image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.BICUBIC)
    value = np.asarray(image).reshape(shape)
    if levels == 256:
        return value
    return np.rint(value / 255 * (levels - 1)).astype(np.uint8)


def read(path: str | os.PathLike, shape: Sequence[int], levels: int = 256) -> np.ndarray:
    """:func:`convert` of an image file; ValueError of one line where it is none."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return convert(image, shape, levels)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: not a readable image ({why})") from None


class Refused(Exception):
    """Bad input, in one line."""


def load(path: str | os.PathLike) -> tuple[Callable[..., dict], dict]:
    """(call, metadata) of an exported file.

    Raises:
      Refused: it is none, or not the one that its metadata describes.
    """
    import jax.export

    path = pathlib.Path(path)
    about = path.with_suffix(".json")
    try:
        blob = path.read_bytes()
        meta = json.loads(about.read_text())
        whole = hashlib.sha256(blob).hexdigest() == meta["sha256"]
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{about}: not the metadata of an exported model") from None
    if not whole:
        raise Refused(f"{path}: damaged, or of another export than {about} (checksum differs)")
    return jax.export.deserialize(bytearray(blob)).call, meta


def familiarity(distance_B: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """The share of the validation images that are at least as far away; in [0, 1].

    ``quantiles`` are those of their distances, evenly spaced from the least to the greatest.
    """
    return 1 - np.interp(distance_B, quantiles, np.linspace(0, 1, len(quantiles)))


def files(names: Iterable[str]) -> Iterator[pathlib.Path]:
    """The files named, and the image files below the folders named, in order."""
    for name in map(pathlib.Path, names):
        if not name.is_dir():
            yield name
            continue
        for path in sorted(name.rglob("*")):
            if path.suffix.lower() in IMAGE_FILES and not path.name.startswith("."):
                yield path


def report(call: Callable[..., dict], meta: dict, paths: list[pathlib.Path]) -> int:
    """Print a line for each image: its three likeliest classes and its familiarity.

    Returns:
      the number of files that are no images; each has a line on stderr.
    """
    shape = meta["image"]["shape"]
    levels = meta["image"]["levels"]
    bad = 0
    for start in range(0, len(paths), BATCH):
        images = []
        names = []
        for path in paths[start : start + BATCH]:
            try:
                images.append(read(path, shape, levels))
                names.append(path)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                bad += 1
        if not names:
            continue
        outputs = {k: np.asarray(v) for k, v in call(np.stack(images)).items()}
        familiar = familiarity(outputs["distance"], meta["familiarity"]["quantiles"])
        for name, p_Y, share in zip(names, outputs["probabilities"], familiar, strict=True):
            best = [f"{meta['classes'][y]} {p_Y[y]:.1%}" for y in np.argsort(-p_Y)[:3]]
            print("  ".join([str(name), *best, f"familiarity {share:.0%}"]))
    return bad


def main(argv: list[str] | None = None) -> int:
    """Classify the images named on the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="predict", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="classifier.jaxexport, its .json beside it")
    parser.add_argument("images", nargs="+", help="image files and folders of them")
    args = parser.parse_args(argv)
    try:
        call, meta = load(args.model)
        if meta["what"] != "classifier":
            made = f"made by --what={meta['what']}"
            raise Refused(f"{args.model}: {made}; want one of --what=classifier")
        paths = list(files(args.images))
        if not paths:
            raise Refused(f"{' '.join(args.images)}: no images in it")
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        bad = report(call, meta, paths)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader is gone, as with | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EPIPE
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
