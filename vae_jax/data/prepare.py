"""Prepare data sets from their original files, without TensorFlow.

``python -m vae_jax.data prepare mnist --data_dir=DIR [--manual_dir=DIR]`` writes the catalogue's
``mnist`` as array_record files with PNG images, under the catalogue's name and version, so that
plain ``tfds.data_source("mnist", ...)`` reads it. Original files come from ``manual_dir``, as they
are or packed with xz, or are downloaded; each must have the sha256 that the catalogue gives.
"""

import difflib
import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import pathlib
import queue
import re
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import paths
from vae_jax.data.predict import printable

USUAL = (
    *("digits", "mnist", "fashion_mnist", "cifar10"),
    *("folder:PATH", "npz:PATH", "file:function", "hf:NAME"),
)
PROBE_SECONDS = 12
# First 16 digits of the sha256 of a gzip file of MNIST (four) or Fashion-MNIST (four) → sha256 of
# what is packed in it.
UNPACKED = {
    "8d422c7b0a1c1c79": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "f7ae60f92e00ec6d": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "440fcabf73cc546f": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "3552534a0a558bbe": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "346e55b948d973a9": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "67da17c76eaffca5": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "3aede38d61863908": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "a04f17134ac03560": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
# Where files lie below --manual_dir: there, in raw/ or one folder down, or as torchvision has them.
MANUAL_FOLDERS = ("", "*/", "*/*/")

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


Get = Callable[[str], bytes]  # a file's name → its bytes
Rows = Iterable[tuple[np.ndarray, int | None]]  # (image, label or None)
Splits = dict[str, Rows]


class Original(NamedTuple):
    """A data set as its authors published it."""

    version: str  # the catalogue's version whose features and splits are written
    shape: tuple[int, int, int]
    classes: tuple[str, ...]  # () where there are no labels
    read: Callable[[Get], Splits]
    description: str
    sha256: dict[str, str] | None = None  # None: those of the catalogue


def read_idx(data: bytes) -> np.ndarray:
    """The array in a gzipped idx file (LeCun): 0, 0, type 8 = uint8, rank, sizes, values."""
    raw = gzip.decompress(data)
    if raw[:3] != b"\0\0\x08":
        raise ValueError("not an idx file of bytes")
    shape = np.frombuffer(raw, ">u4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_amat(data: bytes) -> np.ndarray:
    """[N, 28, 28, 1] of 0 and 1 from lines of 784 digits, one character apart."""
    return (np.frombuffer(data, np.uint8)[::2] - ord("0")).reshape(-1, 28, 28, 1)


def read_cifar(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, 32, 32, 3], labels [N]) from records of a label and 3 planes of 1,024 bytes."""
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _mnist(get: Get) -> Splits:
    def split(prefix: str) -> Rows:
        images = read_idx(get(f"{prefix}-images-idx3-ubyte.gz"))
        return zip(images[..., None], read_idx(get(f"{prefix}-labels-idx1-ubyte.gz")), strict=True)

    return {"train": split("train"), "test": split("t10k")}


def _binarized_mnist(get: Get) -> Splits:
    def split(part: str) -> Rows:
        for image in read_amat(get(f"binarized_mnist_{part}.amat")):
            yield image, None

    return {"train": split("train"), "validation": split("valid"), "test": split("test")}


def read_cifar_tar(data: bytes) -> dict[str, bytes]:
    """{file name: bytes} of the .bin files in cifar-10-binary.tar.gz."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        files = {}
        for member in tar.getmembers():
            if member.name.endswith(".bin"):
                files[os.path.basename(member.name)] = tar.extractfile(member).read()
    return files


def _cifar10(get: Get) -> Splits:
    files = read_cifar_tar(get("cifar-10-binary.tar.gz"))
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar_splits(files.__getitem__, train, "test_batch.bin")


def _cifar10_20k(get: Get) -> Splits:
    return _cifar_splits(get, ["data_batch_1.bin", "data_batch_2.bin"], "data_batch_5.bin")


def _cifar_splits(get: Get, train: list[str], test: str) -> Splits:
    images, labels = zip(*(read_cifar(get(name)) for name in train), strict=True)
    return {
        "train": zip(np.concatenate(images), np.concatenate(labels), strict=True),
        "test": zip(*read_cifar(get(test)), strict=True),
    }


_DIGITS = tuple("0123456789")
ORIGINALS = {
    "mnist": Original("3.0.1", (28, 28, 1), _DIGITS, _mnist, "Handwritten digits."),
    "fashion_mnist": Original(
        "3.0.1", (28, 28, 1), FASHION_CLASSES, _mnist, "Articles of clothing."
    ),
    "kmnist": Original("3.0.1", (28, 28, 1), KMNIST_CLASSES, _mnist, "Handwritten Kuzushiji."),
    "binarized_mnist": Original(
        "1.0.0", (28, 28, 1), (), _binarized_mnist, "MNIST in Larochelle's fixed binarisation."
    ),
    "cifar10": Original(
        "3.0.2", (32, 32, 3), CIFAR10_CLASSES, _cifar10, "Small colour photographs."
    ),
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


def default_data_dir(data_dir: str | os.PathLike = "") -> pathlib.Path:
    """Where prepared data sets are: the argument, or TFDS's own default."""
    if data_dir:
        return paths.expand(data_dir, "data.dir")
    if os.environ.get("TFDS_DATA_DIR"):
        return paths.expand(os.environ["TFDS_DATA_DIR"], "TFDS_DATA_DIR")
    return paths.expand("~/tensorflow_datasets", "data.dir")


def known_names() -> list[str]:
    """Names that can be prepared: ours and those of the TFDS catalogue."""
    import tensorflow_datasets as tfds

    return sorted({*ORIGINALS, *tfds.list_builders(with_community_datasets=False)})


def check_known(name: str, field: str) -> None:
    """Raise :class:`UserError` with at most five near names where nothing is called ``name``."""
    names = known_names()
    if name.split("/")[0].split(":")[0] in names:
        return
    near = difflib.get_close_matches(name, [*names, "digits", "synthetic"], n=5, cutoff=0.5)
    advice = (
        f"nearest: {', '.join(near)}" if near else f"want {', '.join(USUAL)}, or a name of TFDS"
    )
    raise UserError(f"{field}={printable(name)}: unknown data set; {advice}")


def by_hand(name: str) -> str:
    """What must be fetched by hand for ``name``, in a few words; '' where nothing must."""
    import tensorflow_datasets as tfds

    if name in ORIGINALS:
        return " and ".join(ORIGINALS[name].sha256 or ())
    try:
        words = tfds.builder_cls(name).MANUAL_DOWNLOAD_INSTRUCTIONS
    except Exception:  # a builder that cannot be imported here says so when it is prepared
        return ""
    if not words:
        return ""
    archives = re.findall(r"[\w.*-]+\.(?:tar\.gz|tgz|tar|zip|7z|mat|npz)\b", words)
    if not archives:
        return f"the files that https://www.tensorflow.org/datasets/catalog/{name} lists"
    return " and ".join(dict.fromkeys(archives))


def prepare(
    name: str, data_dir: str | os.PathLike = "", manual_dir: str | os.PathLike = ""
) -> pathlib.Path:
    """Write data set ``name`` into ``data_dir``; returns its folder.

    The folder gets its final name only once it is complete. Raises :class:`UserError` for unknown
    names, missing or altered files, a failed download, a full or read-only disk, or missing
    TensorFlow.
    """
    import tensorflow_datasets as tfds

    check_known(name, "prepare")
    root = default_data_dir(data_dir)
    if manual_dir:
        manual_dir = paths.expand(manual_dir, "--manual_dir")
        if not manual_dir.is_dir():
            raise UserError(f"--manual_dir={manual_dir}: no such folder")
    if name in ORIGINALS:
        builder_class = _builder_class(name, manual_dir)
        arguments = {}
    elif importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"prepare={name}: TFDS prepares it with TensorFlow, which is not installed; "
            f"install it for the preparing, or take one of {', '.join(ORIGINALS)}"
        )
    else:
        builder_class = tfds.builder
        arguments = {"name": name}
        _check_network(name, manual_dir)
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
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if failed:
            why = failed[1]
        raise UserError(
            f"--data_dir={root}: cannot write there ({why}); want a folder with free space"
        ) from None
    return pathlib.Path(builder.data_dir)


def _check_network(name: str, manual_dir: str | os.PathLike) -> None:
    """Raise :class:`UserError` where the first download of a TFDS builder cannot begin."""
    if manual_dir:
        return
    try:
        checksums = catalogue_checksums(name)
    except (OSError, StopIteration):
        return
    for url, _ in checksums.values():
        _probe(name, url)
        return


def _builder_class(name: str, manual_dir: str | os.PathLike) -> type:
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
        splits = original.read(get)
        return {split: examples(split, splits[split]) for split in splits}

    def examples(split: str, rows: Rows) -> Iterator[tuple[int, dict]]:
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


def _png(image: np.ndarray) -> bytes:
    import PIL.Image

    if image.shape[-1] == 1:
        image = image.squeeze(-1)
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def catalogue_checksums(name: str) -> dict[str, tuple[str, str]]:
    """{file name: (url, sha256)} from the checksum files inside the TFDS package."""
    import tensorflow_datasets as tfds

    package = pathlib.Path(tfds.__file__).parent
    places = (
        package / "url_checksums" / f"{name}.txt",
        package / "datasets" / name / "checksums.tsv",
    )
    infos = tfds.download.checksums.load_url_infos(next(p for p in places if p.exists()))
    return {url.rpartition("/")[2]: (url, info.checksum) for url, info in infos.items()}


def _getter(
    name: str, original: Original, manual_dir: str | os.PathLike, dl_manager
) -> Callable[[str], bytes]:
    """get(file name) → its bytes, from manual_dir or the network, with the right sha256.

    A gzip file may lie unpacked in manual_dir; then its content has the right sha256.
    """
    if original.sha256:
        checksums = {file: (None, sha256) for file, sha256 in original.sha256.items()}
    else:
        checksums = catalogue_checksums(name)

    def get(file: str) -> bytes:
        url, sha256 = checksums[file]
        path = _find(manual_dir, file)
        if path is None:
            path = _download(dl_manager, name, file, url)
        try:
            data = path.read_bytes()
            if path.suffix == ".xz":
                data = lzma.decompress(data)
        except (OSError, lzma.LZMAError) as error:
            raise UserError(f"{path}: cannot be read ({error}); get the file again") from None
        actual = hashlib.sha256(data).hexdigest()
        if path.name.removesuffix(".xz") != file:  # unpacked
            sha256 = UNPACKED.get(sha256[:16])
            if sha256 is None:
                raise UserError(f"{path}: its checksum is known only packed; want {file}")
            data = gzip.compress(data, compresslevel=1)
        if actual != sha256:
            raise UserError(f"{path}: sha256 is {actual}, want {sha256}; get the file again")
        return data

    return get


def _find(manual_dir: str | os.PathLike, file: str) -> pathlib.Path | None:
    """The file in manual_dir or below it (such as raw/), as it is, packed with xz, or unpacked."""
    if not manual_dir:
        return None
    unpacked = file.removesuffix(".gz")
    names = [file, f"{file}.xz", unpacked, unpacked.replace("-idx", ".idx")]
    for folder in MANUAL_FOLDERS:
        for name in names:
            for path in sorted(pathlib.Path(manual_dir).glob(f"{folder}{name}")):
                if path.is_file():
                    return path
    return None


def _download(dl_manager, name: str, file: str, url: str | None) -> pathlib.Path:
    if url is None:
        raise UserError(f"prepare={name}: want --manual_dir=DIR that holds {file} or {file}.xz")
    _probe(name, url)
    try:
        return pathlib.Path(dl_manager.download(url))
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise  # the disk, not the network
        raise _no_download(name, url, error) from None
    except Exception as error:  # every library on the way has its own
        raise _no_download(name, url, error) from None


def _probe(name: str, url: str) -> None:
    """Raise :class:`UserError` where no answer to a request comes within PROBE_SECONDS.

    TFDS tries again for more than three minutes before it says that there is no network.
    """
    outcome = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
            outcome.put(None)
        except urllib.error.HTTPError:  # an answer: what it means is TFDS's to say
            outcome.put(None)
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = outcome.get(timeout=PROBE_SECONDS)
    except queue.Empty:  # a name server that does not answer keeps to no timeout of ours
        error = TimeoutError(f"no answer within {PROBE_SECONDS} s")
    if error is not None:
        raise _no_download(name, url, error)


def _no_download(name: str, url: str, error: Exception) -> UserError:
    why = str(error).splitlines()[0][:120]
    return UserError(
        f"prepare={name}: no download of {url} ({why}); fetch it by hand and give --manual_dir"
    )
