"""Preparing data sets from their original files."""

import gzip
import hashlib
import importlib.util
import io
import lzma
import signal
import socket
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

from tests.data.common import config, python, rows_of, tiny
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import prepare, sources


def test_prepared_set_reads_back_exactly(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    original, rows = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    for file in (tmp_path / "manual").glob("train*"):  # half of them packed
        file.with_name(f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes()))
        file.unlink()
    c = config(name="tiny", dir=str(tmp_path / "data"))
    with pytest.raises(UserError) as error:
        data.load(c)
    command = f"run: python -m vae_jax.data prepare tiny --data_dir={tmp_path / 'data'}"
    assert command in str(error.value)

    path = prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    assert path == tmp_path / "data" / "tiny" / "1.2.3"
    assert "tensorflow" not in sys.modules
    plain = tfds.data_source("tiny", split="test", data_dir=tmp_path / "data", download=False)
    got = sorted(tuple(e["image"].ravel().tolist()) + (int(e["label"]),) for e in plain)
    assert got == rows["test"]

    for memory_mb in (4096, 0):
        c.memory_mb = memory_mb
        d = data.load(c)
        assert isinstance(d.train.image, data.Stream) == (memory_mb == 0)
        assert d.shape == (28, 28, 1) and d.classes == tuple("0123456789")
        assert [len(s.image) for s in d[4:7]] == [180, 20, 50]
        np.testing.assert_array_equal(np.bincount(d.validation.label), np.full(10, 2))
        assert sorted(rows_of(d.train) + rows_of(d.validation)) == rows["train"]
        assert rows_of(d.test) == rows["test"]
    # A newer version beside it is taken; an incomplete one is not.
    (tmp_path / "data" / "tiny" / "incomplete.X_2.0.0").mkdir()
    (tmp_path / "data" / "tiny" / "2.0.0").mkdir()
    assert sources._prepared("tiny", tmp_path / "data") == path


def test_altered_or_missing_originals_are_refused(tmp_path, monkeypatch):
    original, _ = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    file = tmp_path / "manual" / "t10k-labels-idx1-ubyte.gz"
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    with pytest.raises(UserError, match=rf"^{file}: sha256 is [0-9a-f]{{64}}, want"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    file.unlink()
    packed = file.with_name(f"{file.name}.xz")
    packed.write_bytes(lzma.compress(value)[:-9])
    with pytest.raises(UserError, match=rf"^{packed}: cannot be read"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    packed.unlink()
    with pytest.raises(
        UserError, match=r"^prepare=tiny: want --manual_dir=DIR that holds t10k-labels"
    ):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    with pytest.raises(UserError, match=r"^--manual_dir=.*nowhere: no such folder"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "nowhere")
    assert not (tmp_path / "data" / "tiny" / "1.2.3").exists()


PREPARE = """
import os, pathlib, signal, sys
sys.path.insert(0, ".")
from tests.data import common
from vae_jax.data import prepare
root = pathlib.Path(sys.argv[1])
kill = lambda i: i == 100 and os.kill(os.getpid(), signal.SIGKILL)
damage = kill if sys.argv[2] == "kill" else lambda i: None
prepare.ORIGINALS["tiny"] = common.tiny(root / sys.argv[2], damage)[0]
if sys.argv[2] == "full":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2)
prepare.prepare("tiny", root / "data", root / sys.argv[2])
"""


@pytest.mark.parametrize("how", ["kill", pytest.param("full", marks=pytest.mark.slow)])
def test_interrupted_preparing_leaves_nothing_complete(tmp_path, monkeypatch, how):
    run = python(PREPARE, tmp_path, how, stdout=subprocess.DEVNULL)
    error = run.communicate()[1]
    assert run.returncode == (-signal.SIGKILL if how == "kill" else 1)
    if how == "full":
        line = next(e for e in error.splitlines() if e.startswith("vae_jax.config.UserError"))
        assert "--data_dir=" in line and "cannot write there (File too large)" in line
    original, rows = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    c = config(name="tiny", dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="not prepared in"):
        data.load(c)
    prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    assert rows_of(data.load(c).test) == rows["test"]


def test_a_data_dir_that_is_a_file_is_one_line(tmp_path, monkeypatch):
    original, _ = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--data_dir=.*file: cannot write there"):
        prepare.prepare("tiny", tmp_path / "file", tmp_path / "manual")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["prepare", "mnits"], "prepare=mnits: unknown data set; nearest: .*mnist"),
        (["prepare"], "the following arguments are required: name; want: python -m"),
        (["fetch", "mnist"], "invalid choice"),
        (["prepare", "cifar10_20k", "--data_dir={}"], "cifar10_20k: want --manual_dir=DIR that"),
        *(
            [(["prepare", "emnist"], "prepare=emnist: TFDS prepares it with TensorFlow")]
            if importlib.util.find_spec("tensorflow") is None
            else []
        ),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, arguments, message):
    from vae_jax.data.__main__ import main

    with pytest.raises(UserError, match=message) as error:
        main(["", *(a.format(tmp_path) for a in arguments)])
    assert "\n" not in str(error.value)


def test_unknown_names_get_the_nearest(tmp_path):
    for name, near in (("mnits", "mnist"), ("digit", "digits"), ("cifar_10", "cifar10")):
        with pytest.raises(UserError, match=rf"^data\.name={name}: unknown.*nearest: .*\b{near}\b"):
            data.load(config(name=name, dir=str(tmp_path)))


def test_checksums_are_the_catalogues():
    mnist = prepare.catalogue_checksums("mnist")
    assert mnist["train-images-idx3-ubyte.gz"][1].startswith("440fcabf73cc546fa21475e81ea37026")
    assert set(prepare.catalogue_checksums("kmnist")) == set(mnist)
    assert set(prepare.catalogue_checksums("cifar10")) == {"cifar-10-binary.tar.gz"}
    assert len(prepare.catalogue_checksums("binarized_mnist")) == 3


def test_cifar10_is_read_from_its_archive():
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    records = {name: rng.integers(0, 10, (2, 3073), np.uint8) for name in names}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, value in records.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = value.size
            tar.addfile(member, io.BytesIO(value.tobytes()))
    files = {"cifar-10-binary.tar.gz": buffer.getvalue()}
    splits = {s: list(r) for s, r in prepare.ORIGINALS["cifar10"].read(files.get).items()}
    assert [len(splits["train"]), len(splits["test"])] == [10, 2]
    image, label = splits["train"][3]
    row = records["data_batch_2.bin"][1]
    assert label == row[0]
    assert image[5, 7].tolist() == [row[1 + 1024 * c + 32 * 5 + 7] for c in range(3)]


def test_real_files_hold_what_their_authors_say(data_dir):
    folder = data_dir / "mnist"
    label = prepare.read_idx((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    image = prepare.read_idx((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert image.shape == (10000, 28, 28) and label[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    np.testing.assert_allclose(image.mean() / 255, 0.1325, atol=5e-5)
    packed = data_dir / "binarized_mnist" / "binarized_mnist_test.amat.xz"
    image = prepare.read_amat(lzma.decompress(packed.read_bytes()))
    assert image.shape == (10000, 28, 28, 1) and np.unique(image).tolist() == [0, 1]
    packed = data_dir / "cifar10" / "data_batch_1.bin.xz"
    image, label = prepare.read_cifar(lzma.decompress(packed.read_bytes()))
    assert image.shape == (10000, 32, 32, 3) and label[:5].tolist() == [6, 9, 9, 4, 1]
    assert image[0, 0, 0].tolist() == [59, 62, 63]


# ---- files that lie otherwise, no network, advice -----------------------------------------------


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_unpacked_files_are_read_by_the_checksum_of_their_content(tmp_path, monkeypatch, place):
    original, rows = tiny(tmp_path / "manual")
    folder = tmp_path / "unpacked" / place
    folder.mkdir(parents=True)
    unpacked = {}
    for i, file in enumerate(sorted((tmp_path / "manual").iterdir())):
        content = gzip.decompress(file.read_bytes())
        unpacked[original.sha256[file.name][:16]] = hashlib.sha256(content).hexdigest()
        name = file.name.removesuffix(".gz")
        (folder / (name if i % 2 else name.replace("-idx", ".idx"))).write_bytes(content)
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    with pytest.raises(UserError, match=r"its checksum is known only packed; want train-images"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "unpacked")
    monkeypatch.setattr(prepare, "UNPACKED", unpacked)
    prepare.prepare("tiny", tmp_path / "data", tmp_path / "unpacked")
    assert rows_of(data.load(config(name="tiny", dir=str(tmp_path / "data"))).test) == rows["test"]
    last = sorted(folder.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"^{last}: sha256 is [0-9a-f]{{64}}, want"):
        prepare.prepare("tiny", tmp_path / "other", tmp_path / "unpacked")


def test_unpacked_checksums_are_those_of_the_real_files(data_dir):
    for name in ("mnist", "fashion_mnist"):
        for file, (_, sha256) in prepare.catalogue_checksums(name).items():
            content = gzip.decompress((data_dir / name / file).read_bytes())
            assert prepare.UNPACKED[sha256[:16]] == hashlib.sha256(content).hexdigest()


class SilentServer:
    """A server on this machine that takes connections and never answers."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *error):
        self.socket.close()


def test_without_a_network_preparing_says_so_soon(tmp_path, monkeypatch):
    with SilentServer() as url:
        for variable in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, url)
        monkeypatch.setattr(prepare, "PROBE_SECONDS", 2)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"^prepare=mnist: no download of http.*--manual_dir$"):
            prepare.prepare("mnist", tmp_path)
        assert time.monotonic() - start < 20
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, url)  # nobody listens there now
    with pytest.raises(UserError, match=r"no download of http.*refused"):
        prepare.prepare("mnist", tmp_path)


def test_an_unknown_name_gives_at_most_five_near_ones():
    for name in ("mnits", "zzzzqqq", "cifar"):
        with pytest.raises(UserError) as error:
            prepare.check_known(name, "data.name")
        assert len(str(error.value)) < 200 and str(error.value).count(",") <= 8


def test_the_advice_for_imagenet_says_all_that_it_takes(tmp_path):
    with pytest.raises(UserError) as error:
        data.load(config(name="imagenet2012", dir=str(tmp_path)))
    line = str(error.value)
    assert "--manual_dir=DIR, with" in line and "ILSVRC2012" in line and "\n" not in line
    if importlib.util.find_spec("tensorflow") is None:
        assert "in an environment with TensorFlow" in line
