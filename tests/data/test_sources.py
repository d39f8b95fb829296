"""TFDS data sets as they lie on a disk: real ones, tfrecord files, damage."""

import hashlib
import lzma
import pathlib
from collections.abc import Iterable

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.data.common import config, rows_of, tiny
from vae_jax import data
from vae_jax.config import UserError, absolute, move
from vae_jax.config import default as defaults
from vae_jax.data import prepare, tfrecord

Prepared = tuple[ConfigDict, pathlib.Path, dict]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, folder, sizes, levels",
    [
        ("mnist", "mnist", [54000, 6000, 10000], 256),
        ("fashion_mnist", "fashion_mnist", [54000, 6000, 10000], 256),
        ("binarized_mnist", "binarized_mnist", [50000, 10000, 10000], 2),
        ("cifar10_20k", "cifar10", [18000, 2000, 10000], 256),
    ],
)
def test_real_sets_are_prepared_and_read(
    data_dir: pathlib.Path,
    tmp_path: pathlib.Path,
    name: str,
    folder: str,
    sizes: list[int],
    levels: int,
):
    import tensorflow_datasets as tfds

    prepare.prepare(name, tmp_path, data_dir / folder)
    d = data.load(config(name=name, dir=str(tmp_path)))
    assert [len(s.image) for s in d[4:7]] == sizes and d.levels == levels
    assert all(int(np.max(s.image)) == levels - 1 for s in d[4:7])
    plain = tfds.data_source(name, split="test", data_dir=tmp_path, download=False)
    for i in (0, 77, 9999):
        np.testing.assert_array_equal(plain[i]["image"], d.test.image[i])
        assert not d.classes or plain[i]["label"] == d.test.label[i]

    # The whole test split is that of the original file, in another order.
    def get(file: str):
        path = prepare._find(data_dir / folder, file)
        value = path.read_bytes()
        return lzma.decompress(value) if path.suffix == ".xz" else value

    def summary(pairs: Iterable[tuple[np.ndarray, int | None]]):
        return sorted(
            hashlib.md5(bytes(x) + bytes([0 if y is None else y])).digest() for x, y in pairs
        )

    labels = [None] * sizes[2] if d.test.label is None else d.test.label.tolist()
    pairs = [(np.ascontiguousarray(x), y) for x, y in prepare.ORIGINALS[name].read(get)["test"]]
    assert summary(pairs) == summary(zip(d.test.image, labels, strict=True))


@pytest.fixture
def prepared(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """(config of a small prepared set, its folder, its rows)."""
    original, rows = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    path = prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    return config(name="tiny", dir=str(tmp_path / "data")), path, rows


def record(value: bytes):
    """The bytes of a record in a TFRecord file."""
    length = len(value).to_bytes(8, "little")
    sums = [tfrecord.masked_crc32c(part).to_bytes(4, "little") for part in (length, value)]
    return length + sums[0] + value + sums[1]


def as_tfrecord(path):
    """Rewrite a prepared set as TFDS itself writes it by default."""
    from array_record.python import array_record_module

    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for file in path.glob("*.array_record*"):
        reader = array_record_module.ArrayRecordReader(str(file))
        values = reader.read(list(range(reader.num_records())))
        reader.close()
        target = file.with_name(file.name.replace("array_record", "tfrecord"))
        target.write_bytes(b"".join(map(record, values)))
        file.unlink()


def test_the_checksum_is_that_of_the_standard():
    # RFC 3720, B.4: the CRC-32C of 32 zeros is 0x8a9136aa; TFRecord rotates and adds.
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecord.masked_crc32c(bytes(32)) == masked
    rng = np.random.default_rng(0)
    for size in (1, 1000, 17_001, 20_480):
        value = rng.bytes(size)
        assert tfrecord.masked_crc32c(value) == slow_masked_crc32c(value)


def slow_masked_crc32c(value: bytes):
    """The division itself, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in value:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_tfrecord_files_are_read_without_tensorflow(prepared: Prepared):
    c, path, rows = prepared
    as_tfrecord(path)
    d = data.load(c)
    assert rows_of(d.test) == rows["test"]
    assert sorted(rows_of(d.train) + rows_of(d.validation)) == rows["train"]
    assert d.release == "1.2.3"


def flip(file: pathlib.Path, place: int):
    value = bytearray(file.read_bytes())
    value[place] ^= 0x10
    file.write_bytes(value)


def cut(file: pathlib.Path, place: int):
    file.write_bytes(file.read_bytes()[:place])


def test_every_flipped_byte_of_a_record_is_seen(tmp_path: pathlib.Path):
    file = tmp_path / "x.tfrecord"
    whole = record(b"one record") + record(b"another")
    file.write_bytes(whole)
    records = tfrecord.Records([file, file])
    assert [records[i] for i in range(4)] == [b"one record", b"another"] * 2
    for place in range(len(whole)):
        file.write_bytes(whole)
        flip(file, place)
        with pytest.raises(ValueError, match=r"damaged|checksum|ends within"):
            damaged = tfrecord.Records([file])
            assert [damaged[i] for i in range(len(damaged))]


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing", "fewer"])
def test_damaged_files_are_one_line(prepared: Prepared, kind: str, damage: str):
    c, path, _ = prepared
    if kind == "tfrecord":
        as_tfrecord(path)
    (file,) = path.glob(f"tiny-test.{kind}*")
    size = file.stat().st_size
    if damage == "flipped":
        flip(file, size // 2)
    elif damage == "missing":
        file.unlink()
    elif damage == "fewer":
        info = path / "dataset_info.json"
        info.write_text(info.read_text().replace('"50"', '"53"'))
    else:
        cut(file, size * 2 // 3 if damage == "cut" else 0)
    with pytest.raises(UserError, match=rf"^data\.name=tiny: the files in {path} are damaged") as e:
        data.load(c)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "tiny"}', "null"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_descriptions_are_one_line(prepared: Prepared, file: str, text: str):
    c, path, _ = prepared
    (path / file).write_text(text)
    with pytest.raises(UserError) as error:
        data.load(c)
    assert "\n" not in str(error.value) and "data.name=tiny: " in str(error.value)


def test_a_folder_of_the_hub_is_kept_from_the_root(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path)
    c = defaults()
    for name, kept in (
        ("hf:birds:plain#kind", f"hf:{tmp_path}/birds:plain#kind"),
        ("hf:ylecun/mnist", "hf:ylecun/mnist"),
        ("hf:mnist", "hf:mnist"),
        ("hf:someone/animals:plain", "hf:someone/animals:plain"),
    ):
        c.data.name = name
        assert absolute(c).data.name == kept
    c.data.name = f"hf:{tmp_path}/gone#kind"
    move(c, data_path="birds")
    assert c.data.name == f"hf:{tmp_path}/birds#kind"


def test_class_names_of_a_prepared_set_are_escaped(prepared: Prepared):
    c, path, _ = prepared
    names = path / "label.labels.txt"
    names.write_text(names.read_text().replace("3", "\x1b[31mred"))
    assert data.load(c).classes[3] == r"\x1b[31mred"
