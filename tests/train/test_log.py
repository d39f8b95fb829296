"""metrics.jsonl: strict JSON at once, resumed without a trace, mirrored to TensorBoard."""

import io
import json
import os
import struct

import numpy as np
import pytest

from vae_jax.config import UserError
from vae_jax.train.log import MetricsLog, read_history


def events(folder):
    """{step: {tag: value}} of TensorBoard's records: u64 length, u32 crc, Event, u32 crc."""
    from tensorboardX.proto.event_pb2 import Event

    values = {}
    for name in sorted(os.listdir(folder)):
        stream = io.BytesIO((folder / name).read_bytes())
        while header := stream.read(12):
            event = Event.FromString(stream.read(struct.unpack("<Q", header[:8])[0]))
            stream.read(4)
            for one in event.summary.value:
                values.setdefault(event.step, {})[one.tag] = one.simple_value
    return values


def test_log_writes_strict_json_at_once_and_tensorboard(tmp_path):
    log = MetricsLog(str(tmp_path))
    log.write(10, "train", {"loss": np.float32(1.5), "kl": float("nan"), "elbo": float("-inf")})
    row = {"step": 10, "split": "train", "loss": 1.5, "kl": None, "elbo": None}
    assert read_history(str(tmp_path)) == [row]  # before close
    log.write(10, "validation", {"loss": 2.5})
    log.close()

    def refuse(token):
        raise AssertionError(token)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        row,
        {"step": 10, "split": "validation", "loss": 2.5},
    ]
    assert events(tmp_path / "train") == {10: {"loss": 1.5}}
    assert events(tmp_path / "validation") == {10: {"loss": 2.5}}


def test_resumed_log_equals_one_that_was_never_stopped(tmp_path):
    def rows(log, steps):
        for step in steps:
            log.write(step, "train", {"loss": 1 / step})
            if step % 20 == 0:
                log.write(step, "validation", {"loss": 2 / step})
        log.close()

    rows(MetricsLog(str(tmp_path / "straight")), range(10, 101, 10))
    # Killed at step 70 while it wrote a row; the last checkpoint is of step 40.
    rows(MetricsLog(str(tmp_path / "stopped")), range(10, 71, 10))
    path = tmp_path / "stopped" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 80, "split": "tra')
    assert [r["step"] for r in read_history(str(tmp_path / "stopped"))][-1] == 70
    rows(MetricsLog(str(tmp_path / "stopped"), resume_step=40), range(50, 101, 10))
    assert path.read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    assert sorted(os.listdir(tmp_path / "stopped")) == ["metrics.jsonl", "train", "validation"]


def test_a_folder_that_was_moved_is_not_made_again(tmp_path):
    log = MetricsLog(str(tmp_path / "run"))
    log.write(10, "train", {"loss": 1.0})
    os.rename(tmp_path / "run", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"^workdir=.*run: the folder was moved"):
        log.write(10, "validation", {"loss": 1.0})
    log.close()
    assert os.listdir(tmp_path) == ["elsewhere"]


def test_torn_line_without_later_rows_is_dropped_and_a_new_run_starts_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2')
    MetricsLog(str(tmp_path), resume_step=5).close()
    assert path.read_text() == '{"step": 1, "split": "train", "loss": 1.0}\n'
    MetricsLog(str(tmp_path)).close()
    assert path.read_text() == ""
    assert read_history(str(tmp_path / "nowhere")) == []


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    row = '{"step": 1, "split": "train"}\n'
    (tmp_path / "metrics.jsonl").write_text(row + "rubbish\n" + row)
    with pytest.raises(UserError, match="line 2"):
        read_history(str(tmp_path))
