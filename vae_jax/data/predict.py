"""Classify images with an exported classifier: JAX, numpy and Pillow, no model code.

    python -m vae_jax.tools.predict classifier.jaxexport image.png folder/

``python -m vae_jax.tools.export`` writes the file, its metadata (.json) and a copy of this file, so
that the folder runs anywhere as ``python predict.py …``. Familiarity is the share of the validation
images that are at least as unusual, by −ELBO and by the distance of the code to those of training.
So a rule "refuse below 1 %" refuses 1 % of the images that are like training's; the metadata has
the share of the test set (``false_alarms``). Near 0 % the class means nothing. Files that are no
images are named, and the others are classified (exit code 1).
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np

IMAGE_FILES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif"),
    *(".tiff", ".webp", ".pgm", ".ppm", ".pbm"),
)
# Folders that notebooks, network disks and operating systems leave; so does a dot before a name.
HIDDEN = {
    *("@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"),
    *("__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information"),
}
BATCH = 64  # images of one call
EPIPE = 141  # 128 + SIGPIPE: what a shell reports of a program whose reader is gone


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never data."""
    return name.startswith(".") or name in HIDDEN


def printable(text: object) -> str:
    """``text`` with control characters and bytes that are not UTF-8 escaped."""
    return "".join(map(_escape, str(text)))


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def walk(folder: pathlib.Path, above: tuple = ()) -> Iterator[pathlib.Path]:
    """All that is below a folder and neither hidden nor a folder, in order of names.

    Links are followed, but for a link to one of the folders that it lies in, at any height: images
    of other classes would come with it.
    """
    above = above or tuple(map(_identity, folder.resolve().parents))
    identity = _identity(folder)
    if identity in above:
        return
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            continue
        if path.is_dir():
            yield from walk(path, (*above, identity))
        else:
            yield path


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    """(device, inode): the same for every path to a folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def is_image(path: pathlib.Path) -> bool:
    """Whether a path has an image's suffix and is a file, or a link to one that is not there."""
    if path.suffix.lower() not in IMAGE_FILES:
        return False
    return path.is_file() or not path.exists()  # a pipe or a device would be waited for


def convert(image, shape: tuple[int, int, int], levels: int = 256) -> np.ndarray:
    """uint8 [H, W, C] of a Pillow image of any size and mode, for training and prediction alike.

    The image is turned upright, resized by the side that then covers the rest, cropped to its
    centre, and converted to grey or colour. Transparency shows white, 16-bit values keep their
    upper 8 bits, and grey levels are scaled to 0 .. levels - 1.
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
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    if image.size != (width, height):
        image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.BICUBIC)
    value = np.asarray(image).reshape(shape)
    if levels == 256:
        return value
    return np.rint(value / 255 * (levels - 1)).astype(np.uint8)


def read(path: str | os.PathLike, shape: tuple[int, int, int], levels: int = 256) -> np.ndarray:
    """:func:`convert` of an image file; ValueError of one line where it is none."""
    import PIL.Image

    try:
        if pathlib.Path(path).exists() and not pathlib.Path(path).is_file():
            raise ValueError("no regular file")
        with PIL.Image.open(path) as image:
            return convert(image, shape, levels)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        why = printable(" ".join(str(error).split())[:120])
        raise ValueError(f"{printable(path)}: not a readable image ({why})") from None


class Refused(Exception):
    """Bad input, in one line."""


def metadata_digest(meta: dict) -> str:
    """SHA-256 of an export's metadata, without the field that holds it."""
    fields = {key: value for key, value in meta.items() if key != "metadata_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def load(path: str | os.PathLike) -> tuple[Callable, dict]:
    """(call, metadata) of an exported file.

    Raises :class:`Refused` where it is none, damaged, or not the one that its metadata describes.
    """
    import jax.export

    path = pathlib.Path(path)
    description = path.with_suffix(".json")
    try:
        blob = path.read_bytes()
        meta = json.loads(description.read_text())
        whole = hashlib.sha256(blob).hexdigest() == meta["sha256"]
        # Exports of earlier versions have none.
        if meta.get("metadata_sha256", "") not in ("", metadata_digest(meta)):
            raise ValueError("another checksum")
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{description}: not the metadata of an exported model, or damaged") from None
    if not whole:
        raise Refused(
            f"{path}: damaged, or of another export than {description} (checksum differs)"
        )
    try:
        return jax.export.deserialize(bytearray(blob)).call, meta
    except Exception as error:  # struct.error, and what flatbuffers and XLA raise
        why = printable(" ".join(str(error).split())[:120])
        raise Refused(f"{path}: not an exported model ({why})") from None


def rank(score_B: np.ndarray, quantiles: Iterable[float]) -> np.ndarray:
    """The share of the validation images whose score is at least as high; in [0, 1].

    ``quantiles``: of their scores, evenly spaced from the least to the greatest. A score that is no
    number (an overflow) is higher than all.
    """
    score_B = np.nan_to_num(score_B, nan=np.inf)
    return 1 - np.interp(score_B, quantiles, np.linspace(0, 1, len(quantiles)))


def familiarity(scores: dict[str, np.ndarray], reference: dict) -> np.ndarray:
    """The share of the validation images that are at least as unusual, B; in [0, 1].

    An image's smallest :func:`rank` over the scores named in ``reference["quantiles"]`` is itself
    ranked among those of the validation images (``reference["smallest"]``, quantiles), so that
    below a familiarity of f lies a share f of the validation images, however many scores there are.
    """
    if isinstance(reference["quantiles"], list):  # an export with one score
        return rank(scores[reference.get("of", "distance")], reference["quantiles"])
    smallest = smallest_rank(scores, reference["quantiles"])
    levels = np.linspace(0, 1, len(reference["smallest"]))
    return np.interp(smallest, reference["smallest"], levels)


def smallest_rank(scores: dict[str, np.ndarray], quantiles: dict[str, list[float]]) -> np.ndarray:
    """The smallest :func:`rank` of each image over the named scores, B."""
    return np.min([rank(scores[name], q) for name, q in quantiles.items()], axis=0)


def files(names: Iterable[str]) -> Iterator[pathlib.Path]:
    """The files named, and the image files below the folders named, in order."""
    for name in map(pathlib.Path, names):
        if name.is_dir():
            yield from filter(is_image, walk(name))
        else:
            yield name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="predict", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="classifier.jaxexport, its .json beside it")
    parser.add_argument("images", nargs="+", help="image files and folders of them")
    args = parser.parse_args(argv)
    try:
        call, meta = load(args.model)
        if meta["what"] != "classifier":
            what = meta["what"]
            raise Refused(f"{args.model}: made by --what={what}; want one of --what=classifier")
        paths = list(files(args.images))
        if not paths:
            raise Refused(f"{printable(' '.join(args.images))}: no images in it")
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        bad = _classify(call, meta, paths)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EPIPE
    return 1 if bad else 0


def _classify(call: Callable, meta: dict, paths: list[pathlib.Path]) -> int:
    """Print a line for each image; returns how many could not be read."""
    shape = meta["image"]["shape"]
    bad = 0
    for start in range(0, len(paths), BATCH):
        images = []
        names = []
        for path in paths[start : start + BATCH]:
            try:
                images.append(read(path, shape, meta["image"]["levels"]))
                names.append(printable(path))
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                bad += 1
        if not names:
            continue
        out = {key: np.asarray(value) for key, value in call(np.stack(images)).items()}
        shares = familiarity(out, meta["familiarity"])
        for name, p_Y, share in zip(names, out["probabilities"], shares, strict=True):
            best = [f"{printable(meta['classes'][y])} {p_Y[y]:.1%}" for y in np.argsort(-p_Y)[:3]]
            print("  ".join([name, *best, f"familiarity {share:.0%}"]))
    return bad


if __name__ == "__main__":
    sys.exit(main())
