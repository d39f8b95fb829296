"""Damaged runs, lost terminals, full disks, moved folders: each is one line."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from tests.processes import ROOT, silent
from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.tools import assess
from vae_jax.train import checkpoint, clock, log, loop
from vae_jax.train import run as run_lib


def tiny(steps=40, latent=2):
    c = config_lib.default()
    c.steps = steps
    c.log_every = c.eval.every = 20
    c.latent = latent
    c.mesh.data = 1
    c.encoder = config_lib.call("encoder", "mlp", widths=(4,))
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert loop.train(tiny(), str(folder), silent)
    return folder


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def restored(workdir, which="latest"):
    """The step of the checkpoint that evaluation takes, and its lines."""
    lines = []
    meta = run_lib.restore(str(workdir), which, say=lines.append).meta
    return meta["step"], lines


@pytest.mark.parametrize("victim", ["meta/metadata", "metrics/metrics"])
def test_evaluation_of_a_whole_step_does_not_mind_another_that_is_damaged(workdir, victim):
    (workdir / "checkpoints" / "40" / victim).unlink()
    step, lines = restored(workdir, 20)
    assert (step, lines) == (20, [])
    step, lines = restored(workdir)
    assert step == 20 and lines == [f"checkpoint 40: {victim} is missing; not used"]


def test_an_empty_checkpoint_folder_is_named(workdir):
    (workdir / "checkpoints" / "999").mkdir()
    step, lines = restored(workdir)
    assert step == 40 and lines == ["checkpoint 999: was not finished (no manifest); not used"]


@pytest.mark.parametrize("text", ["[]", "null", "{}", "7", "{"])
def test_a_manifest_that_names_nothing_is_damaged(workdir, text):
    (workdir / "manifests" / "40.json").write_text(text)
    step, lines = restored(workdir)
    assert step == 20 and len(lines) == 1 and "40.json is damaged" in lines[0]


@pytest.mark.parametrize("text", ["[]", "null", '{"optim": null}', '{"encoder": []}', "{"])
def test_a_config_that_is_none_is_one_line(workdir, text):
    (workdir / "config.json").write_text(text)
    for read in (lambda: run_lib.restore(str(workdir)), lambda: loop.train(tiny(), str(workdir))):
        with pytest.raises(UserError, match=r"config\.json") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("config.json", r"config\.json: not JSON"),
        ("data.json", r"data\.json: not the description of a run's data; --accept_changed_data"),
        ("metrics.jsonl", r"metrics\.jsonl: line 1 is no row"),
    ],
)
def test_json_that_is_nested_too_deep_is_one_line(workdir, name, line):
    """Python's decoder raises a RecursionError, which is no ValueError."""
    (workdir / name).write_text("[" * 100_000 + "\n1\n")
    with pytest.raises(UserError, match=line) as error:
        run_lib.restore(str(workdir))
    assert "\n" not in str(error.value)


def test_a_manifest_that_is_nested_too_deep_is_damaged(workdir):
    (workdir / "manifests" / "40.json").write_text("[" * 100_000)
    step, lines = restored(workdir)
    assert step == 20 and len(lines) == 1 and "40.json is damaged" in lines[0]


def test_a_data_json_that_is_damaged_can_be_accepted(workdir):
    (workdir / "data.json").write_text('{"name": "digits"}')
    lines = []
    files = run_lib.Files(accept_changed=True)
    assert run_lib.restore(str(workdir), files=files, say=lines.append).meta["step"] == 40
    assert len(lines) == 1 and "not the description" in lines[0]


def test_checkpoints_that_are_a_link_to_itself_are_one_line(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").symlink_to("checkpoints")
    for read in (lambda: run_lib.restore(str(workdir)), lambda: loop.train(tiny(), str(workdir))):
        with pytest.raises(UserError, match=r"checkpoints: cannot be read: Too many levels"):
            read()


def test_rows_that_are_a_folder_are_one_line(workdir):
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()
    for read in (lambda: run_lib.restore(str(workdir)), lambda: loop.train(tiny(), str(workdir))):
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read: Is a directory"):
            read()


def test_a_damaged_step_takes_the_place_of_a_link(workdir, tmp_path):
    (tmp_path / "other").mkdir()
    (workdir / "damaged").mkdir()
    (workdir / "damaged" / "40").symlink_to(tmp_path / "other")
    (workdir / "manifests" / "40.json").unlink()
    checkpoint.Checkpoints(workdir, silent)
    assert (workdir / "damaged" / "40" / "state").is_dir()
    assert not (workdir / "damaged" / "40").is_symlink() and (tmp_path / "other").is_dir()


def test_a_config_that_was_deleted_or_changed_is_refused(workdir):
    path = workdir / "config.json"
    tree = json.loads(path.read_text())
    path.unlink()
    with pytest.raises(UserError, match=r"saved with another config \(latent: 2 -> 3\)"):
        loop.train(tiny(latent=3), str(workdir))
    assert not path.exists()
    path.write_text(json.dumps(tree | {"optim": tree["optim"] | {"lr": 0.5}}))
    with pytest.raises(UserError, match=r"saved with another config \(optim\.lr: .* -> 0\.5\)"):
        run_lib.restore(str(workdir))
    path.unlink()
    assert loop.train(tiny(), str(workdir), silent), "the same config goes on"


def test_more_steps_of_a_finished_run(workdir, tmp_path):
    """Where the schedule ends with the steps, the refusal says how to go on."""
    with pytest.raises(
        UserError, match=r"steps: 40 -> 60\).*init_from.*schedule=cosine ends"
    ) as error:
        loop.train(tiny(60), str(workdir), silent)
    assert "\n" not in str(error.value)
    c = tiny(60)
    c.init_from = str(workdir)
    assert loop.train(c, str(tmp_path / "second"), silent)
    with pytest.raises(UserError, match=r"steps: 40 -> 20\); want another workdir"):
        loop.train(tiny(20), str(workdir), silent)


@pytest.mark.slow
def test_a_constant_schedule_can_have_more_steps(tmp_path):
    """40 steps, then 60 in all, are bit for bit a run of 60."""
    states = []
    for name, lengths in (("once", (60,)), ("twice", (40, 60))):
        for steps in lengths:
            c = tiny(steps)
            c.optim.schedule = "constant"
            assert loop.train(c, str(tmp_path / name), silent)
        states.append(run_lib.restore(str(tmp_path / name), "latest", say=silent))
    assert [one.meta["step"] for one in states] == [60, 60]
    assert [one.meta["clock"]["restarts"] for one in states] == [0, 1]
    once, twice = (jax.tree.leaves(one.state) for one in states)
    assert all((a == b).all() for a, b in zip(once, twice, strict=True))
    c.steps = 40
    with pytest.raises(UserError, match=r"steps: 60 -> 40"):
        loop.train(c, str(tmp_path / "twice"), silent)


def test_a_wrong_init_from_is_named(tmp_path):
    c = tiny()
    c.init_from = str(tmp_path / "none")
    with pytest.raises(UserError, match=r"^init_from=.*none: no run in it"):
        loop.train(c, str(tmp_path / "run"), silent)


def test_a_run_that_saved_nothing_does_not_block_its_folder(tmp_path):
    lines = []
    os.close(run_lib.claim(tmp_path / "run", tiny(latent=3)))
    os.close(run_lib.claim(tmp_path / "run", tiny(), lines.append))
    assert len(lines) == 1 and "saved nothing; begins anew" in lines[0]
    assert run_lib.read_config(tmp_path / "run").latent == 2


@pytest.mark.parametrize("name", ["a[1]", "a\\b", "a*?b", "ä %20"])
def test_a_path_of_any_characters_keeps_its_checkpoints(tmp_path, name):
    folder = tmp_path / name
    assert loop.train(tiny(20), str(folder), silent)
    assert restored(folder) == (20, [])


def test_a_folder_that_moves_is_one_line(finished, tmp_path):
    def move(line):
        if line.startswith("going on"):
            os.rename(tmp_path / "run", tmp_path / "moved")

    c = tiny(60)
    folder = shutil.copytree(finished, tmp_path / "run")
    for path in (folder / "manifests").iterdir():
        tree = json.loads(path.read_text())
        tree["config.json"]["steps"] = 60
        path.write_text(json.dumps(tree))
    (folder / "config.json").write_text(json.dumps(config_lib.to_json(c)))
    with pytest.raises(UserError, match="moved") as error:
        loop.train(c, str(folder), move)
    assert "\n" not in str(error.value)


@contextlib.contextmanager
def read_only(folder):
    """A file system that refuses writes, to root too."""
    mount = ["mount", "--bind", folder, folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def evaluated(workdir, **options):
    """The error of an evaluation that cannot write its results, and what it said before."""
    lines = []
    with pytest.raises(UserError) as error:
        assess.assess(str(workdir), assess.Request(**options), say=lines.append)
    assert "\n" not in str(error.value)
    return str(error.value), lines


def test_a_folder_that_cannot_be_written_is_told_before_the_evaluation(workdir):
    with read_only(workdir):
        message, lines = evaluated(workdir)
    assert "metrics.json: Read-only file system" in message and lines == []


def test_results_in_the_way_are_told_before_the_evaluation(workdir, tmp_path):
    (workdir / "metrics.json").mkdir()
    assert evaluated(workdir) == (
        f"{workdir}/metrics.json: Is a directory; "
        "want a folder that can be written, on a disk with room",
        [],
    )
    (workdir / "metrics.json").rmdir()
    (workdir / "report").write_text("a file")
    message, lines = evaluated(workdir)
    assert "report/index.html: Not a directory" in message and lines == []
    (workdir / "report").unlink()
    for path, why in (("none/x.json", "no folder"), ("a b.json", "want a file"), ("x", "want a")):
        message, lines = evaluated(workdir, publish=str(tmp_path / path))
        assert message.startswith("results=") and why in message and lines == []


def test_the_opening_lines_say_how_many_images_and_classes_were_read():
    lines = run_lib.opening(run_lib.setup(tiny()))
    assert lines[0] == (
        "data: digits, 1,294 train, 144 validation, 359 test images of 8x8x1, 10 classes"
    )
    assert lines[-2].startswith("loss: elbo, beta=1.0")
    assert lines[-1] == "program: jit on 1 cpu device, float32"


@pytest.mark.parametrize("ahead", [3600.0, 1e9])
def test_a_clock_that_was_ahead_gives_no_negative_goodput(ahead):
    spent = clock.new_clock()
    watch = clock.Watch(spent, 0, time.time() + ahead)
    watch.begin()
    time.sleep(0.05)
    watch.tick()
    watch.close()
    assert spent["restart_seconds"] == 0.0
    assert 0.0 <= clock.goodput(spent) <= 1.0


def start(folder, *before):
    """A run in a process of its own; ``before``: the words of a command that starts it."""
    argv = [*before, sys.executable, "train.py", f"--workdir={folder}", "--config.steps=4000"]
    argv += ["--config.eval.every=1000", "--config.log_every=20", "--config.encoder.widths=(4,)"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        argv, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=listen_to_the_terminal
    )


def listen_to_the_terminal():
    """A run ignores SIGHUP where it inherits that, as from a suite below ``nohup``."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_lost_terminal_saves(tmp_path):
    process = start(tmp_path / "run")
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == loop.STOPPED, err
    assert 0 < checkpoint.steps(tmp_path / "run")[-1] < 4000


@pytest.mark.slow
def test_a_closed_pipe_does_not_end_a_run(tmp_path):
    process = start(tmp_path / "run")
    process.stdout.readline()
    process.stdout.close()
    limit = time.monotonic() + 120
    while not checkpoint.steps(tmp_path / "run") and time.monotonic() < limit:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    err = process.stderr.read()
    process.wait(120)
    assert process.returncode in (0, loop.STOPPED) and "Traceback" not in err
    assert err.count("is dropped; the run goes on") == 1


def test_a_disk_that_fills_is_one_line(tmp_path):
    """A limit on the size of files stands for the disk: rows reach it first."""
    limited = ("bash", "-c", 'ulimit -f 6; exec "$@"', "bash")  # 6 KiB
    process = start(tmp_path / "run", *limited)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "File too large" in lines[0] and "Traceback" not in err


def test_output_that_cannot_be_written_is_dropped(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", other)
    with log.output_may_close():
        print("lost")
    assert "output cannot be written (Broken pipe) and is dropped" in other.getvalue()


def test_the_pod_is_not_created_while_a_placeholder_is_unfilled(tmp_path):
    """``gcloud`` is one that would leave a file."""
    called = tmp_path / "called"
    (tmp_path / "gcloud").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gcloud").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ROOT / "launch" / "tpu_pod.sh"
    done = subprocess.run(["bash", script, "create"], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and not called.exists()
    assert len(done.stderr.splitlines()) == 1 and "OWNER" in done.stderr
    assert "TYPE=v5litepod-4 " in script.read_text(), "the smallest slice"
