"""Classify images with an exported classifier, and say how familiar they look: JAX, numpy and Pillow, no model code.

    python -m vae_jax.data.predict classifier.jaxexport image.png folder/

``python -m vae_jax.tools.export`` makes the file, metadata beside it (.json), and a copy of this file: the folder runs
anywhere as ``python predict.py …``. Familiarity is the share of the validation images whose code is at least as far
from the codes of training: near 0 % the image is stranger than nearly all of training's kind, or of another kind,
and its class then means nothing. A file that is no image is named, and the others go on (exit code 1).
"""

import argparse
import hashlib
import json
import pathlib
import sys

import numpy as np

IMAGE_FILES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif"),
    *(".tiff", ".webp", ".pgm", ".ppm", ".pbm"),
)
BATCH = 64  # images of one call


def convert(image, shape, levels=256):
    """uint8 [H, W, C] of a Pillow image of any size and mode; what is done to folders of images in training.

    Turned upright, resized by the side that then covers the rest, cropped to the centre, made grey or colour; what is
    transparent shows white; 16-bit values keep their upper 8 bits; grey levels are scaled to 0 .. levels - 1.
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
    return value if levels == 256 else np.rint(value / 255 * (levels - 1)).astype(np.uint8)


def read(path, shape, levels=256):
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


def load(path):
    """(call, metadata) of an exported file. Raises :class:`Refused` where it is none, or not the one described."""
    import jax.export

    path = pathlib.Path(path)
    try:
        blob, meta = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
        whole = hashlib.sha256(blob).hexdigest() == meta["sha256"]
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{path.with_suffix('.json')}: not the metadata of an exported model") from None
    if not whole:
        raise Refused(f"{path}: damaged, or of another export than {path.with_suffix('.json')} (checksum differs)")
    return jax.export.deserialize(bytearray(blob)).call, meta


def familiarity(distance_B, quantiles):
    """The share of the validation images that are at least as far away; in [0, 1].

    ``quantiles``: of their distances, evenly spaced from the least to the greatest.
    """
    return 1 - np.interp(distance_B, quantiles, np.linspace(0, 1, len(quantiles)))


def files(names):
    """The files named, and the image files below the folders named, in order."""
    for name in map(pathlib.Path, names):
        if name.is_dir():
            yield from (p for p in sorted(name.rglob("*")) if p.suffix.lower() in IMAGE_FILES and p.name[0] != ".")
        else:
            yield name


def main(argv=None):
    parser = argparse.ArgumentParser(prog="predict", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="classifier.jaxexport, its .json beside it")
    parser.add_argument("images", nargs="+", help="image files and folders of them")
    args = parser.parse_args(argv)
    try:
        call, meta = load(args.model)
        if meta["what"] != "classifier":
            raise Refused(f"{args.model}: made by --what={meta['what']}; want one of --what=classifier")
        if not (found := list(files(args.images))):
            raise Refused(f"{' '.join(args.images)}: no images in it")
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shape, levels, classes = meta["image"]["shape"], meta["image"]["levels"], meta["classes"]
    bad = 0
    for start in range(0, len(found), BATCH):
        images, names = [], []
        for path in found[start : start + BATCH]:
            try:
                images.append(read(path, shape, levels))
                names.append(path)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                bad += 1
        if not names:
            continue
        out = {k: np.asarray(v) for k, v in call(np.stack(images)).items()}
        known = familiarity(out["distance"], meta["familiarity"]["quantiles"])
        for name, p, share in zip(names, out["probabilities"], known, strict=True):
            best = [f"{classes[y]} {p[y]:.1%}" for y in np.argsort(-p)[:3]]
            print("  ".join([str(name), *best, f"familiarity {share:.0%}"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
