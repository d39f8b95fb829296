"""Arrays on disk: whole or not there, and removed when nothing uses them."""

import os
import signal
import subprocess

import numpy as np
import pytest

from tests.data.common import config, folder_of_images, python
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import cache, paths

CHUNKS = [np.arange(12, dtype=np.uint8).reshape(3, 4), np.arange(8, dtype=np.uint8).reshape(2, 4)]


def test_cache_builds_once_and_again_when_damaged(tmp_path):
    path, built = tmp_path / "c" / "x.npy", []

    def load():
        return cache.load(path, (5, 4), np.uint8, lambda: built.append(1) or iter(CHUNKS))

    for _ in range(2):
        np.testing.assert_array_equal(load(), np.concatenate(CHUNKS))
    assert len(built) == 1 and os.listdir(path.parent) == ["x.npy"]
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-10] ^= 1
    for bad in (whole[:-5], whole[:100], b"", bytes(flipped), whole + b"x", b"\x93NUMPY junk"):
        path.write_bytes(bad)
        np.testing.assert_array_equal(load(), np.concatenate(CHUNKS))
        assert path.read_bytes() == whole
    assert len(built) == 7


WRITER = """
import pathlib, sys, time, numpy as np
from vae_jax.data import cache
def chunks():
    for i in range(20):
        print(i, flush=True)
        time.sleep(float(sys.argv[2]))
        yield np.full((1, 1000), i, np.uint8)
a = cache.load(pathlib.Path(sys.argv[1]), (20, 1000), np.uint8, chunks)
assert (a == np.arange(20)[:, None]).all()
"""


def test_two_writers_at_once_and_a_killed_one(tmp_path):
    path = tmp_path / "c" / "x.npy"
    killed = python(WRITER, path, 0.05, stdout=subprocess.PIPE)
    while killed.stdout.readline().strip() != "5":
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not path.exists() and len(os.listdir(path.parent)) == 1  # its temporary file
    both = [python(WRITER, path, 0.05, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    image = cache.load(path, (20, 1000), np.uint8, None)  # None: must not be built again
    assert (image == np.arange(20)[:, None]).all()
    left = next(path.parent.glob("*.tmp"))
    os.utime(left, (0, 0))
    cache.load(path.with_name("y.npy"), (5, 4), np.uint8, lambda: CHUNKS)
    assert sorted(os.listdir(path.parent)) == ["x.npy", "y.npy"]


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    code = FULL + "sys.argv = ['', sys.argv[2], '0']" + WRITER
    run = python(code, 5000, tmp_path / "c" / "x.npy", stdout=subprocess.DEVNULL)
    last = run.communicate()[1].strip().splitlines()[-1]
    assert last.startswith("vae_jax.config.UserError: VAE_JAX_CACHE=") and "cannot write" in last
    assert os.listdir(tmp_path / "c") == []


def test_a_cache_that_cannot_be_a_folder_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VAE_JAX_CACHE", str(tmp_path / "file"))
    folder_of_images(tmp_path / "images", {"a": 3, "b": 3})
    with pytest.raises(UserError, match=r"^VAE_JAX_CACHE=.*file: cannot write there \(.*\); want"):
        data.load(config(name=f"folder:{tmp_path / 'images'}", size=8))


def test_what_is_replaced_or_unused_is_removed_and_the_size_is_told(tmp_path):
    root = tmp_path / "images"
    folder_of_images(root, {"a": 4, "b": 4})
    c = config(name=f"folder:{root}", size=8)
    told = data.load(c).notes
    *others, kept = told
    assert kept.startswith(f"decoded images are kept in {tmp_path / 'cache'}")
    assert data.load(c).notes == tuple(others)  # nothing was written
    (first,) = (tmp_path / "cache").iterdir()
    (root / "a" / "0.png").write_bytes((root / "b" / "1.png").read_bytes())
    old = first.with_name("folder__elsewhere-0123456789abcdef-0123456789abcdef")
    recent = first.with_name("folder__elsewhere-0123456789abcdee-0123456789abcdef")
    programs = first.with_name("jit_step-0123456789abcdef")  # not of this cache: no arrays in it
    for other, file in ((old, "train.image.npy"), (recent, "train.image.npy"), (programs, "x")):
        other.mkdir()
        (other / file).touch()
    for other in (old, programs):
        os.utime(other, (0, 0))
    data.load(c)
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert recent.name in left and programs.name in left
    assert old.name not in left and first.name not in left and len(left) == 3


@pytest.mark.parametrize("home", ["/proc/nowhere", ""])
def test_without_a_home_folder_the_cache_is_in_tmp(tmp_path, monkeypatch, home):
    monkeypatch.delenv("VAE_JAX_CACHE")
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(paths.tempfile, "tempdir", str(tmp_path))
    if not home:  # the user of a container may have no entry in the table of users
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(paths.os, "getuid", lambda: 54321)
    assert paths.cache_root() == tmp_path / f"vae_jax-{os.getuid()}"


def test_a_path_in_a_missing_home_folder_is_one_line(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(paths.os, "getuid", lambda: 54321)
    for name in ("folder:~/images", "npz:~/images.npz"):
        with pytest.raises(UserError, match=r"^data\.name=~/images.*: no home folder here"):
            data.load(config(name=name, size=8))
    with pytest.raises(UserError, match=r"^data\.dir=~/sets: no home folder here"):
        data.load(config(name="mnist", dir="~/sets"))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of_images(tmp_path / "images", {"a": 4, "b": 4})
    assert len(data.load(config(name="folder:~/images", size=8)).classes) == 2
    monkeypatch.setenv("VAE_JAX_CACHE", "~/kept")
    assert cache.folder("x", version="0") == tmp_path / "kept" / cache.folder("x", version="0").name
    with pytest.raises(UserError, match=rf"not prepared in {tmp_path}/sets;"):
        data.load(config(name="mnist", dir="~/sets"))
