"""Where a run's wall time goes, stalls, profiles: real runs and real threads."""

import importlib
import os
import signal
import time

import pytest

from tests.processes import rows
from tests.tiny import short
from vae_jax.config import UserError
from vae_jax.train import clock as watch
from vae_jax.train import loop

train = importlib.import_module("train")


def test_the_parts_of_the_wall_time_add_up():
    clock = watch.new_clock() | {"seconds": 60.0, "restart_seconds": 10.0}
    clock |= {"validation_seconds": 9.0, "checkpoint_seconds": 1.0, "compile_seconds": 30.0}
    assert watch.goodput(clock) == pytest.approx(0.5)
    words = "steps 50%, compile 30%, restart 10%, validation 9%, checkpoint 1%"
    assert watch.shares(clock | {"restarts": 1}) == words
    assert watch.shares(clock) == words.replace("restart", "start-up"), "it was never restarted"


def test_what_was_lost_since_the_last_save_is_restart():
    clock = watch.new_clock() | {"compile_seconds": 7.0}
    timer = watch.Watch(clock, 5, time.time() - 100)
    with timer.part("compile"):
        time.sleep(0.1)
    timer.begin()
    timer.close()
    assert clock["compile_seconds"] >= 7.1
    assert 100 <= clock["restart_seconds"] < 160, "without what compiled"


def test_a_stall_is_a_line_with_the_last_step_and_every_stack(tmp_path):
    path = tmp_path / "lines"
    with open(path, "w") as file:
        timer = watch.Watch(watch.new_clock(), 0, time.time(), least=0.3, file=file)
        timer.step(7)
        limit = time.monotonic() + 60
        while "in test_a_stall" not in path.read_text() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.5)  # one report is enough
        with timer.part("validation"):
            time.sleep(0.5)  # ten times as long is allowed
        timer.close()
    text = path.read_text()
    assert text.startswith("process 0: no step for")
    assert text.count("no step for") == 1
    assert "last step 7, in steps" in text
    assert "in test_a_stall" in text, "the stack says where it stands"


@pytest.mark.slow
def test_steps_are_profiled_when_asked_and_a_signal_asks(tmp_path):
    lines = []

    def say(line):
        lines.append(line)
        if line.startswith("profiled steps 2-3"):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    assert loop.train(short(1), str(tmp_path / "run"), say, profile=(2, 3))
    assert signal.getsignal(signal.SIGUSR1) is before
    kinds = [line.partition(":")[0] for line in lines]
    assert kinds.pop(4).startswith("compiled in ")
    assert kinds == [
        *("data", "loss", "program", "model"),
        "profiled steps 2-3",
        "profiled steps 4-13",
        "wall time",
    ]
    traces = list((tmp_path / "run" / "profile" / "0").rglob("*.xplane.pb"))
    assert traces
    for trace in traces:
        assert trace.stat().st_size
    for row in rows(tmp_path / "run"):
        if row["split"] == "train":
            assert 0 <= row["goodput"] <= 1


@pytest.mark.parametrize("span", ["5", "9-3", "a-b"])
def test_a_wrong_span_is_one_line(span):
    with pytest.raises(
        UserError, match=rf"^profile={span}: want the first and the last step, as 100-120$"
    ):
        train.run(["train.py", "--workdir=unused", f"--profile={span}"])
