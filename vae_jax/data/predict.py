"""Classify images, or find the objects in them, with an export: JAX, numpy, Pillow, no model code.

    python -m vae_jax.tools.predict classifier.jaxexport image.png folder/
    python -m vae_jax.tools.predict detector.jaxexport image.png --out=boxes

``python -m vae_jax.tools.export`` writes the file, its metadata (.json) and a copy of this file, so
that the folder runs anywhere as ``python predict.py …``. Familiarity is the share of the validation
images that are at least as unusual, by the scores that the metadata names. An image is called
"unfamiliar" where its familiarity is below ``--false_alarm``: of images like training's, that share
is; the metadata has the share of the test set (``false_alarms``). Of an unfamiliar image the class
means nothing. A box is x, y, w, h in pixels of the file. Files that are no images are named, and
the others are read (exit code 1).
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

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


def upright(image):
    """A Pillow image turned upright, with 8 bits of grey where it has 16."""
    import PIL.Image
    import PIL.ImageOps

    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # convert("L") would clip at 255
        grey = np.clip(np.asarray(image), 0, 65535) >> 8
        image = PIL.Image.fromarray(grey.astype(np.uint8))
    return image


def convert(image, shape: tuple[int, int, int], levels: int = 256) -> np.ndarray:
    """uint8 [H, W, C] of a Pillow image of any size and mode, for training and prediction alike.

    The image is turned upright, resized by the side that then covers the rest, cropped to its
    centre, and converted to grey or colour. Transparency shows white, 16-bit values keep their
    upper 8 bits, and grey levels are scaled to 0 .. levels - 1.
    """
    import PIL.Image
    import PIL.ImageOps

    height, width, channels = shape
    image = upright(image)
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


# --- Boxes and maps ---


def placed(box_Dx4: np.ndarray, shape: tuple[int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Boxes of a converted image in pixels of the image of this (width, height): Dx4.

    The inverse of what :func:`convert` does to places: a crop to the centre after one resizing.
    """
    height, width, _ = shape
    scale = min(size[0] / width, size[1] / height)
    corner = (np.array(size) - scale * np.array([width, height])) / 2
    box = scale * np.asarray(box_Dx4, np.float64)
    box[:, :2] += corner
    return box


def opened(path: pathlib.Path):
    """The Pillow image of a file, as :func:`upright` gives it."""
    import PIL.Image

    with PIL.Image.open(path) as image:
        return upright(image)


def enlarged(image, least: int = 256):
    """A Pillow image whose shorter side has ``least`` pixels or more: each pixel a square."""
    import PIL.Image

    times = max(1, -(-least // min(image.size)))
    size = (times * image.size[0], times * image.size[1])
    return image.resize(size, PIL.Image.Resampling.NEAREST)


def draw(image, objects: list[dict]):
    """The image in colour, with the box, class and score of each object, as a Pillow image."""
    import PIL.ImageDraw

    picture = enlarged(image.convert("RGB"))
    scale = picture.size[0] / image.size[0]
    pen = PIL.ImageDraw.Draw(picture)
    for one in objects:
        x, y, w, h = (scale * value for value in one["box"])
        pen.rectangle((x, y, x + w, y + h), outline=(230, 60, 30), width=2)
        pen.text((x + 4, y + 2), f"{one['class']} {one['score']:.0%}", fill=(230, 160, 30))
    return picture


def map_beside(image_HxWxC: np.ndarray, map_HxW: np.ndarray, levels: int):
    """The image as the program saw it, and its map on its right; 1 and above are white."""
    import PIL.Image

    grey = np.asarray(image_HxWxC, np.float64).mean(-1) / (levels - 1)
    shade = np.clip(map_HxW, 0, 1)
    both = np.rint(255 * np.concatenate([grey, shade], axis=1)).astype(np.uint8)
    return enlarged(PIL.Image.fromarray(both))


class Folder:
    """PNG files in a folder, each named after an image's file."""

    def __init__(self, path: str):
        self.path = pathlib.Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.names: set[str] = set()

    def save(self, picture, file: pathlib.Path) -> None:
        """Write a picture; of files of one name, each later one has its number in it."""
        name = file.stem
        number = 1
        while name in self.names:
            number += 1
            name = f"{file.stem}_{number}"
        self.names.add(name)
        picture.save(self.path / f"{name}.png")


# --- The command ---


class Batch(NamedTuple):
    """Files that are images, and what the program is given of each."""

    paths: list[pathlib.Path]
    images: list[np.ndarray]


def _classes(call: Callable, meta: dict, batch: Batch, alarm: float) -> list[dict]:
    """{'file', 'classes': the three most probable, 'familiarity', 'unfamiliar'} of each image."""
    out = {key: np.asarray(value) for key, value in call(np.stack(batch.images)).items()}
    shares = familiarity(out, meta["familiarity"])
    rows = []
    for path, p_Y, share in zip(batch.paths, out["probabilities"], shares, strict=True):
        best = {printable(meta["classes"][y]): float(p_Y[y]) for y in np.argsort(-p_Y)[:3]}
        row = {"file": printable(path), "classes": best, "familiarity": float(share)}
        rows.append(row | {"unfamiliar": bool(share < alarm)})
    return rows


def _objects(call: Callable, meta: dict, batch: Batch, alarm: float) -> list[dict]:
    """{'file', 'objects': [{'class', 'score', 'box'}], the most certain first} of each image."""
    out = {key: np.asarray(value) for key, value in call(np.stack(batch.images)).items()}
    rows = []
    for i, path in enumerate(batch.paths):
        kept = np.flatnonzero(out["keep"][i])
        kept = kept[np.argsort(-out["score"][i][kept], kind="stable")]
        box_Dx4 = placed(out["box"][i][kept], meta["image"]["shape"], opened(path).size)
        objects = []
        for m, box in zip(kept, box_Dx4, strict=True):
            name = printable(meta["objects"][out["label"][i, m]])
            score = float(out["score"][i, m])
            objects.append({"class": name, "score": score, "box": box.round(2).tolist()})
        rows.append({"file": printable(path), "objects": objects})
    return rows


def _readable(paths: list[pathlib.Path], meta: dict) -> Batch:
    """The images of these files; files that are none are named on stderr."""
    batch = Batch([], [])
    for path in paths:
        try:
            batch.images.append(read(path, meta["image"]["shape"], meta["image"]["levels"]))
            batch.paths.append(path)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
    return batch


def _lines(row: dict) -> list[str]:
    """What is printed of an image without --json."""
    if "classes" in row:
        words = [row["file"], *(f"{name} {p:.1%}" for name, p in row["classes"].items())]
        if row["unfamiliar"]:
            words.append("unfamiliar")
        return ["  ".join([*words, f"familiarity {row['familiarity']:.0%}"])]
    if not row["objects"]:
        return [f"{row['file']}  no object"]
    lines = []
    for one in row["objects"]:
        x, y, w, h = one["box"]
        place = f"x {x:.1f}  y {y:.1f}  w {w:.1f}  h {h:.1f}"
        lines.append(f"{row['file']}  {one['class']} {one['score']:.1%}  {place}")
    return lines


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="classifier.jaxexport or detector.jaxexport, .json beside it")
    parser.add_argument("images", nargs="+", help="image files and folders of them")
    parser.add_argument("--json", action="store_true", help="a JSON object for each image")
    parser.add_argument("--out", metavar="FOLDER", help="where images with their boxes go")
    parser.add_argument("--maps", metavar="FOLDER", help="where maps of what is unusual go")
    rate = "share of usual images that are called unfamiliar; 0.01 unless given"
    parser.add_argument("--false_alarm", type=float, default=0.01, metavar="RATE", help=rate)
    return parser.parse_args(argv)


KINDS = {"classifier": _classes, "detector": _objects}


def _loaded(args: argparse.Namespace, model: str) -> tuple[Callable, dict, Callable | None]:
    """(program, its metadata, the program of maps or None); :class:`Refused` where they misfit."""
    call, meta = load(model)
    if meta["what"] not in KINDS:
        what = meta["what"]
        raise Refused(f"{model}: made by --what={what}; want one of --what=classifier or detector")
    if args.out and meta["what"] != "detector":
        raise Refused(f"out={args.out}: {model} finds no boxes; want one of --what=detector")
    if not 0 < args.false_alarm < 1:
        raise Refused(f"false_alarm={args.false_alarm}: want a rate between 0 and 1")
    if not args.maps:
        return call, meta, None
    path = pathlib.Path(model).with_name("maps.jaxexport")
    if not path.exists():
        raise Refused(f"maps={args.maps}: {path} is not there; export it with --what=maps")
    maps, about = load(path)
    if about["image"] != meta["image"]:
        raise Refused(f"maps={args.maps}: {path} is of other images than {model}")
    return call, meta, lambda image: maps(image)["anomaly"] / about["usual_maximum"]


def main(argv: list[str] | None = None, find: Callable[[str], str] = str) -> int:
    """The command; ``find`` gives the exported file of what is named as the model."""
    args = _parsed(argv)
    try:
        call, meta, maps = _loaded(args, find(args.model))
        paths = list(files(args.images))
        if not paths:
            raise Refused(f"{printable(' '.join(args.images))}: no images in it")
        out = Folder(args.out) if args.out else None
        shades = Folder(args.maps) if args.maps else None
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bad = 0
    try:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            batch = _readable(part, meta)
            bad += len(part) - len(batch.paths)
            if not batch.paths:
                continue
            rows = KINDS[meta["what"]](call, meta, batch, args.false_alarm)
            for row in rows:
                print("\n".join([json.dumps(row)] if args.json else _lines(row)))
            if out:
                _save_boxes(rows, batch, out)
            if shades:
                _save_maps(maps, meta["image"]["levels"], batch, shades)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EPIPE
    return 1 if bad else 0


def _save_boxes(rows: list[dict], batch: Batch, folder: Folder) -> None:
    for path, row in zip(batch.paths, rows, strict=True):
        folder.save(draw(opened(path), row["objects"]), path)


def _save_maps(maps: Callable, levels: int, batch: Batch, folder: Folder) -> None:
    map_BxHxW = np.asarray(maps(np.stack(batch.images)))
    for path, image, one in zip(batch.paths, batch.images, map_BxHxW, strict=True):
        folder.save(map_beside(image, one, levels), path)


if __name__ == "__main__":
    sys.exit(main())
