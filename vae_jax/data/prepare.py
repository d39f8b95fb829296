"""Prepare data sets from their original files, without TensorFlow.

``python -m vae_jax.data prepare mnist --data_dir=DIR [--manual_dir=DIR]`` writes the catalogue's
``mnist`` as array_record files with PNG images, under the catalogue's name and version, so that
plain ``tfds.data_source("mnist", ...)`` reads it. Original files come from ``manual_dir``, as they
are or packed with xz, or are downloaded; each must have the sha256 that the catalogue gives.
"""

import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import pathlib
import re
import tarfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vae_jax.config import UserError, nearest

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


class Original(NamedTuple):
    """A data set as its authors published it."""

    version: str  # the catalogue's version whose features and splits are written
    shape: tuple[int, int, int]
    classes: tuple[str, ...]  # () where there are no labels
    read: Callable  # get(file name) -> bytes  ->  {split: iterable of (image, label or None)}
    description: str
    sha256: dict[str, str] | None = None  # None: those of the catalogue


def read_idx(data):
    """The array in a gzipped idx file (LeCun): 0, 0, type 8 = uint8, rank, sizes, values."""
    raw = gzip.decompress(data)
    if raw[:3] != b"\0\0\x08":
        raise ValueError("not an idx file of bytes")
    shape = np.frombuffer(raw, ">u4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_amat(data):
    """[N, 28, 28, 1] of 0 and 1 from lines of 784 digits, one character apart."""
    return (np.frombuffer(data, np.uint8)[::2] - ord("0")).reshape(-1, 28, 28, 1)


def read_cifar(data):
    """(images [N, 32, 32, 3], labels [N]) from records of a label and 3 planes of 1,024 bytes."""
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _mnist(get):
    def split(prefix):
        images = read_idx(get(f"{prefix}-images-idx3-ubyte.gz"))
        return zip(images[..., None], read_idx(get(f"{prefix}-labels-idx1-ubyte.gz")), strict=True)

    return {"train": split("train"), "test": split("t10k")}


def _binarized_mnist(get):
    files = {"train": "train", "validation": "valid", "test": "test"}
    return {
        split: ((image, None) for image in read_amat(get(f"binarized_mnist_{part}.amat")))
        for split, part in files.items()
    }


def read_cifar_tar(data):
    """{file name: bytes} of the .bin files in cifar-10-binary.tar.gz."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        files = (m for m in tar.getmembers() if m.name.endswith(".bin"))
        return {os.path.basename(m.name): tar.extractfile(m).read() for m in files}


def _cifar10(get):
    files = read_cifar_tar(get("cifar-10-binary.tar.gz"))
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar_splits(files.__getitem__, train, "test_batch.bin")


def _cifar10_20k(get):
    return _cifar_splits(get, ["data_batch_1.bin", "data_batch_2.bin"], "data_batch_5.bin")


def _cifar_splits(get, train, test):
    images, labels = zip(*(read_cifar(get(name)) for name in train), strict=True)
    return {
        "train": zip(np.concatenate(images), np.concatenate(labels), strict=True),
        "test": zip(*read_cifar(get(test)), strict=True),
    }


_DIGITS = tuple("0123456789")
ORIGINALS = {
    "mnist": Original("3.0.1", (28, 28, 1), _DIGITS, _mnist, "Handwritten digits."),
    "fashion_mnist": Original("3.0.1", (28, 28, 1), FASHION_CLASSES, _mnist, "Articles of clothing."),
    "kmnist": Original("3.0.1", (28, 28, 1), KMNIST_CLASSES, _mnist, "Handwritten Kuzushiji."),
    "binarized_mnist": Original(
        "1.0.0", (28, 28, 1), (), _binarized_mnist, "MNIST in Larochelle's fixed binarisation."
    ),
    "cifar10": Original("3.0.2", (32, 32, 3), CIFAR10_CLASSES, _cifar10, "Small colour photographs."),
    "cifar10_20k": Original(
        "1.0.0",
        (32, 32, 3),
        CIFAR10_CLASSES,
        _cifar10_20k,
        "Batches 1, 2 (train) and 5 (test) of CIFAR-10's training set; no official test images.",
        {
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        },
    ),
}


def default_data_dir(data_dir=""):
    """Where prepared data sets are: the argument, or TFDS's own default."""
    usual = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(data_dir or usual).expanduser()


def known_names():
    """Names that can be prepared: ours and those of the TFDS catalogue."""
    import tensorflow_datasets as tfds

    return sorted({*ORIGINALS, *tfds.list_builders(with_community_datasets=False)})


def check_known(name, field):
    """Raise :class:`UserError` with the nearest names where nothing is called ``name``."""
    names = known_names()
    if name.split("/")[0].split(":")[0] not in names:
        near = nearest(name, [*names, "digits", "folder:PATH", "synthetic"])
        raise UserError(f"{field}={name}: unknown data set; {near}")


def prepare(name, data_dir="", manual_dir=""):
    """Write data set ``name`` into ``data_dir``; returns its folder.

    The folder gets its final name only once it is complete. Raises :class:`UserError` for unknown
    names, missing or altered files, a failed download, a full or read-only disk, or missing
    TensorFlow.
    """
    import tensorflow_datasets as tfds

    check_known(name, "prepare")
    root = default_data_dir(data_dir)
    if manual_dir and not os.path.isdir(manual_dir):
        raise UserError(f"--manual_dir={manual_dir}: no such folder")
    if name in ORIGINALS:
        builder_class, arguments = _builder_class(name, manual_dir), {}
    elif importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"prepare={name}: TFDS prepares it with TensorFlow, which is not installed; "
            f"install it for the preparing, or take one of {', '.join(ORIGINALS)}"
        )
    else:
        builder_class, arguments = tfds.builder, {"name": name}
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        builder = builder_class(data_dir=root, **arguments)
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except (OSError, RuntimeError) as error:
        # array_record raises RuntimeError("...: write() failed: No space left on device; ...").
        failed = re.search(r"\w+\(\) failed: ([^;]*)", str(error))
        if isinstance(error, RuntimeError) and not failed:
            raise
        why = failed[1] if failed else error.strerror or str(error).splitlines()[0]
        raise UserError(f"--data_dir={root}: cannot write there ({why}); want a folder with free space") from None
    return pathlib.Path(builder.data_dir)


def _builder_class(name, manual_dir):
    """A TFDS builder of ``ORIGINALS[name]`` that needs no TensorFlow (it yields PNG bytes)."""
    import tensorflow_datasets as tfds

    original = ORIGINALS[name]
    features = {"image": tfds.features.Image(shape=original.shape)}
    if original.classes:
        features["label"] = tfds.features.ClassLabel(names=list(original.classes))
    if name == "cifar10":  # the catalogue's feature, so that its own builder reads what we write
        features["id"] = tfds.features.Text()

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=original.description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if original.classes else None,
        )

    def split_generators(self, dl_manager):
        get = _getter(name, original, manual_dir, dl_manager)
        return {split: examples(split, rows) for split, rows in original.read(get).items()}

    def examples(split, rows):
        for i, (image, label) in enumerate(rows):
            example = {"image": _png(image)}
            if label is not None:
                example["label"] = int(label)
            if "id" in features:
                example["id"] = f"{split}_{i:05d}"
            yield i, example

    with tfds.core.registered.skip_registration():
        return type(
            "Builder",
            (tfds.core.GeneratorBasedBuilder,),
            {
                "__module__": __name__,
                "name": name,
                "VERSION": tfds.core.Version(original.version),
                "_info": info,
                "_split_generators": split_generators,
                "_generate_examples": lambda self: None,  # abstract in the base
            },
        )


def _png(image):
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "png")
    return buffer.getvalue()


def catalogue_checksums(name):
    """{file name: (url, sha256)} from the checksum files inside the TFDS package."""
    import tensorflow_datasets as tfds

    package = pathlib.Path(tfds.__file__).parent
    paths = (
        package / "url_checksums" / f"{name}.txt",
        package / "datasets" / name / "checksums.tsv",
    )
    infos = tfds.download.checksums.load_url_infos(next(p for p in paths if p.exists()))
    return {url.rpartition("/")[2]: (url, info.checksum) for url, info in infos.items()}


def _getter(name, original, manual_dir, dl_manager):
    """get(file name) -> its bytes, from manual_dir or the network, with the right sha256."""
    if original.sha256:
        sources = {file: (None, sha256) for file, sha256 in original.sha256.items()}
    else:
        sources = catalogue_checksums(name)

    def get(file):
        url, sha256 = sources[file]
        path = _find(manual_dir, file)
        if path is None:
            path = _download(dl_manager, name, file, url)
        try:
            data = path.read_bytes()
            if path.name == f"{file}.xz":
                data = lzma.decompress(data)
        except (OSError, lzma.LZMAError) as error:
            raise UserError(f"{path}: cannot be read ({error}); get the file again") from None
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise UserError(f"{path}: sha256 is {found}, want {sha256}; get the file again")
        return data

    return get


def _find(manual_dir, file):
    if not manual_dir:
        return None
    paths = (pathlib.Path(manual_dir) / file, pathlib.Path(manual_dir) / f"{file}.xz")
    return next((p for p in paths if p.exists()), None)


def _download(dl_manager, name, file, url):
    if url is None:
        raise UserError(f"prepare={name}: want --manual_dir=DIR that holds {file} or {file}.xz")
    try:
        return pathlib.Path(dl_manager.download(url))
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise  # the disk, not the network
        why = error
    except Exception as error:  # every library on the way has its own
        why = error
    why = str(why).splitlines()[0][:120]
    raise UserError(f"prepare={name}: no download of {url} ({why}); fetch it by hand and give --manual_dir") from None
