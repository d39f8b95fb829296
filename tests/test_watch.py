"""Where a run's wall time goes, stalls, profiles: of real runs and real threads."""

import importlib
import json
import os
import signal
import time

import pytest

from tests.several import config
from vae_jax.config import UserError
from vae_jax.train import clock as watch
from vae_jax.train import loop

train = importlib.import_module("train")


def test_the_parts_of_the_wall_time_add_up():
    clock = watch.new_clock() | {
        "seconds": 60.0, "validation_seconds": 9.0, "checkpoint_seconds": 1.0, "compile_seconds": 30.0,
        "restart_seconds": 10.0,
    }  # fmt: skip
    assert watch.goodput(clock) == pytest.approx(0.5)
    assert (
        watch.shares(clock) == "steps 50%, compile 30%, restart 10%, validation 9%, checkpoint 1%"
    )


def test_what_was_lost_since_the_last_save_is_restart():
    clock = watch.new_clock() | {"compile_seconds": 7.0}
    seen = watch.Watch(clock, 5, time.time() - 100)
    with seen.part("compile"):
        time.sleep(0.1)
    seen.begin()
    seen.close()
    assert clock["compile_seconds"] >= 7.1
    assert 100 <= clock["restart_seconds"] < 160, "without what compiled"


def test_a_stall_is_a_line_with_the_last_step_and_every_stack(tmp_path):
    path = tmp_path / "said"
    with open(path, "w") as file:
        seen = watch.Watch(watch.new_clock(), 0, time.time(), least=0.3, file=file)
        seen.step(7)
        limit = time.monotonic() + 60
        while "in test_a_stall" not in path.read_text() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.5)  # said once
        with seen.part("validation"):
            time.sleep(0.5)  # ten times as long is allowed
        seen.close()
        said = path.read_text()
    assert said.startswith("process 0: no step for") and said.count("no step for") == 1
    assert "last step 7, in steps" in said and "in test_a_stall" in said, (
        "the stack says where it stands"
    )


def test_steps_are_profiled_when_asked_and_a_signal_asks(tmp_path):
    said = []

    def say(line):
        said.append(line)
        if line.startswith("profiled steps 2-3"):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    assert loop.train(config(1), str(tmp_path / "run"), say, profile=(2, 3))
    assert signal.getsignal(signal.SIGUSR1) is before
    assert [line.partition(":")[0] for line in said] == [
        "data",
        "profiled steps 2-3",
        "profiled steps 4-13",
        "wall time",
    ]
    traces = list((tmp_path / "run" / "profile" / "0").rglob("*.xplane.pb"))
    assert traces and all(t.stat().st_size for t in traces)
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    shares = [row["goodput"] for row in rows if row["split"] == "train"]
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("span", ["5", "9-3", "a-b"])
def test_a_wrong_span_is_one_line(span):
    with pytest.raises(
        UserError, match=rf"^profile={span}: want the first and the last step, as 100-120$"
    ):
        train.run(["train.py", "--workdir=unused", f"--profile={span}"])
