"""Records of TFRecord files by their place, without TensorFlow.

A record is its length (uint64), the length's checksum (uint32), its bytes, and their checksum
(uint32), all little-endian. A checksum is the CRC-32C of the bytes, rotated right by 15 bits, plus
0xa282ead8.
"""

import functools
import os
import struct
from collections.abc import Sequence

import numpy as np

_HEAD = struct.Struct("<QI")
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, with its bits in reversed order


class Records:
    """The records of some files, one after the other.

    Raises ValueError for a file that ends within a record or whose lengths' checksums are wrong.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self.paths = [os.fspath(path) for path in paths]
        places = []
        for file, path in enumerate(self.paths):
            places += [(file, start, length) for start, length in _scan(path)]
        self.places_Nx3 = np.array(places, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.places_Nx3)

    def __getitem__(self, place: int) -> bytes:
        """The bytes of a record; ValueError where their checksum is wrong."""
        file, start, length = self.places_Nx3[place].tolist()
        with open(self.paths[file], "rb") as stream:
            stream.seek(start)
            data = stream.read(length)
            checksum = stream.read(4)
        if int.from_bytes(checksum, "little") != masked_crc32c(data):
            raise ValueError(f"{self.paths[file]}: record at byte {start} has a wrong checksum")
        return data


def _scan(path: str) -> list[tuple[int, int]]:
    """[(where the bytes of a record begin, how many)] of a file."""
    places = []
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        position = 0
        while position < size:
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise ValueError(f"{path}: ends within a record")
            length, checksum = _HEAD.unpack(head)
            if checksum != masked_crc32c(head[:8]):
                raise ValueError(f"{path}: damaged at byte {position}")
            places.append((position + _HEAD.size, length))
            position += _HEAD.size + length + 4
            stream.seek(position)
    if position != size:
        raise ValueError(f"{path}: ends within a record")
    return places


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files."""
    crc = 0xFFFFFFFF
    table = _table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table
