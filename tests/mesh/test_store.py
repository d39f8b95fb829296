"""Runs in an object store: the same bits as on a disk, through a store's own protocol on this
machine.
"""

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time

import pytest
from etils import epath

from benchmarks import kill_resume
from tests.processes import free_port, python
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.mesh import store
from vae_jax.tools import study
from vae_jax.train import checkpoint, log
from vae_jax.train import run as workdir

RUN = "gs://bucket/runs/one"


@pytest.fixture(scope="module")
def emulator():
    """Google Cloud Storage's protocol on this machine, in memory.

    gcsfs, tensorstore and Google's client ask it: they read the variables below when they are
    imported.
    """
    for package in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[store]'")
    port = free_port()
    argv = [sys.executable, "-m", "tests.mesh.bucket", str(port)]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://localhost:{port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # tensorstore's
        patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        # It asks for what the emulator lacks.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            limit = time.monotonic() + 30
            while socket.socket().connect_ex(("localhost", port)) and time.monotonic() < limit:
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.wait()


@pytest.mark.slow
def test_a_run_in_a_store_is_that_on_a_disk_bit_for_bit_killed_or_not(emulator, tmp_path):
    kill_resume.finish(tmp_path / "run")
    store.check(RUN)
    assert kill_resume.kill_once(RUN, random.Random(0)), "it was done before it was killed"
    assert "going on from step" in kill_resume.finish(RUN)
    different, same_rows = kill_resume.compare(tmp_path / "run", RUN)
    assert different == []
    assert same_rows
    steps = checkpoint.steps(RUN)
    assert steps[-1] == 200
    for step in steps:
        assert checkpoint.fault(RUN, step) is None

    # eval.py reads there and writes there; the metrics are the disk's.
    on_disk = epath.Path(tmp_path / "run", "metrics.json")
    in_store = epath.Path(RUN, "metrics.json")
    assert json.loads(in_store.read_text()) == json.loads(on_disk.read_text())
    in_store.unlink()
    done = python("eval.py", f"--workdir={RUN}")
    assert done.returncode == 0, done.stderr
    assert json.loads(in_store.read_text()) == json.loads(on_disk.read_text())
    assert len(epath.Path(RUN, "report", "index.html").read_bytes()) > 10_000
    assert not os.path.exists("gs:"), "nothing is written beside the store"


@pytest.mark.slow
def test_damage_in_a_store_is_named_and_set_aside(emulator, tmp_path):
    """With the run of the test above."""
    store.check(RUN)
    if 200 not in checkpoint.steps(RUN):
        pytest.skip("there is no run in the store")
    victim = max(store.files(f"{RUN}/checkpoints/200"), key=lambda path: len(path.read_bytes()))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    lines = []
    saved = checkpoint.Checkpoints(RUN, lines.append)
    assert saved.latest() == 180
    saved.close()
    (line,) = lines
    assert "200" in line
    assert "checksum" in line
    assert len(list(store.files(f"{RUN}/damaged/200"))) >= 5, "set aside, not deleted"


@pytest.mark.slow
def test_rows_reach_a_store_when_they_are_flushed_and_no_others_are_lost(emulator):
    folder = "gs://bucket/runs/log"
    store.check(folder)
    rows = log.MetricsLog(folder)
    rows.write(1, "train", {"loss": 1.0})
    assert log.read_history(folder) == []
    rows.flush()
    rows.write(2, "train", {"loss": 2.0})
    assert [row["step"] for row in log.read_history(folder)] == [1]
    rows.close()
    again = log.MetricsLog(folder, resume_step=1)
    again.write(3, "train", {"loss": 3.0})
    again.close()
    assert [row["step"] for row in log.read_history(folder)] == [1, 3]


@pytest.mark.slow
def test_a_bucket_that_is_not_there(emulator):
    with pytest.raises(UserError, match="workdir=gs://nobucket/run: no such bucket"):
        store.check("gs://nobucket/run")


def test_stores_that_cannot_be_used_are_named_in_one_line():
    line = r"workdir=s3://b/run: Orbax writes to no such store; want a folder, or gs://"
    with pytest.raises(UserError, match=line):
        store.check("s3://b/run")
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(UserError, match=r"gcsfs: pip install '\.\[store\]'"):
            workdir.read_config("gs://b/run")
    whole = config.load("configs/study_digits.py", "get_study")
    with pytest.raises(UserError, match=r"workdir=gs://b/run: a study wants a folder"):
        study.run(whole, "gs://b/run")


def test_files_of_a_disk_are_those_of_a_walk(tmp_path):
    for name in ("b/2", "b/1", "a", "c/d/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = ["a", "b/1", "b/2", "c/d/e"]
    assert [str(path.relative_to(tmp_path)) for path in store.files(tmp_path)] == names
    assert list(checkpoint.digests(tmp_path)) == names
    assert store.names(tmp_path) == ["a", "b", "c"]
    assert store.names(tmp_path / "a") == []
    assert store.names(tmp_path / "none") == []
