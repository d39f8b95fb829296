"""Bad files, folders and disks: one line that names what is wrong; nothing half-written."""

import importlib
import os
import re
import resource
import signal
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.processes import one_line, python
from vae_jax import config, models
from vae_jax.config import UserError

train = importlib.import_module("train")
evaluate = importlib.import_module("eval")
DIGITS = "--config=configs/digits.py"
CONFIG_FILE = """
from vae_jax import config
def get_config():
    c = config.default()
    {}
    return c
"""
BETTA = "c.objective = config.call('objective', 'elbo', betta=1.0)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def get_config(:\n", r"page\.py: line 1"),
        ("x = 1\n", r"no function get_config"),
        (CONFIG_FILE.format("c.optim.lrr = 1"), r"lrr"),
        (CONFIG_FILE.format("c.batch = 'x'"), r"batch|int"),
        ("def get_config():\n    return None\n", r"get_config\(\) gives a NoneType; want a config"),
        ("def get_config(x):\n    return x\n", r"without arguments, but missing .*'x'"),
        (CONFIG_FILE.format("c.unlock(); del c['optim']"), r"optim: missing, unknown, or no"),
        (CONFIG_FILE.format("c.unlock(); c.mine = 3"), r"mine: missing, unknown, or no"),
        (CONFIG_FILE.format(BETTA), r"objective\.betta: .*nearest: beta"),
    ],
)
def test_config_files(tmp_path, text, line):
    path = tmp_path / "page.py"
    path.write_text(text)
    one_line(train.run, ["train.py", f"--config={path}", f"--workdir={tmp_path / 'run'}"], line)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--config=configs/digit.py", "--workdir=x"],
            r"configs/digit\.py: no such file; nearest: digits\.py",
        ),
        ([DIGITS], r"workdir: want --workdir=FOLDER"),
        ([DIGITS, f"--workdir={'x/' * 2000}"], r"workdir=x/x/.*: cannot write"),
    ],
)
def test_flags_that_name_no_file_or_folder(flags, line):
    one_line(train.run, ["train.py", *flags], line)


def test_labels_where_there_are_none():
    c = config.load("configs/digits.py")
    line = r"classifier\.name=mlp: data\.name=digits has no labels; want none"
    with pytest.raises(UserError, match=line):
        models.build(c, shape=(8, 8, 1), levels=17, classes=0, binary=False)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], r"workdir: want"),
        (["--workdir=x", "--checkpoint=first"], r"checkpoint=first: want best, latest or a step"),
        (["--workdir=x", "--iw_k=0"], r"iw_k"),
        (["--workdir=x", "--tasks=odd"], r"tasks=odd: unknown; nearest: ood"),
        (["--workdir=x", "--tasks=ood"], r"tasks=ood: wants another data set"),
        (["--workdir=x", "--ood=mnist"], r"tasks=ood: wants another data set"),
        (["--workdir=x", "--config.batch=3"], r"batch: the run's config is fixed"),
    ],
)
def test_flags_of_eval(flags, line):
    one_line(evaluate.run, ["eval.py", *flags], line)


def test_workdirs(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    line = r"workdir=.*file: is a file; want a folder"
    one_line(train.run, ["train.py", DIGITS, f"--workdir={file}"], line)
    one_line(evaluate.run, ["eval.py", f"--workdir={file}"], r"is a file")
    missing = ["eval.py", f"--workdir={tmp_path / 'none'}"]
    one_line(evaluate.run, missing, r"no run in it")
    one_line(evaluate.run, [*missing, "--config.mesh.model=2"], r"no run in it")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    one_line(evaluate.run, ["eval.py", f"--workdir={broken}"], r"config\.json: not JSON")


def folder_of_images(path, each=4):
    """Classes a and b of ``each`` grey images."""
    for name in "ab":
        (path / name).mkdir(parents=True)
        for i in range(each):
            image = Image.fromarray(np.full((9, 11, 3), 20 * i, np.uint8))
            image.save(path / name / f"{i}.png")
    return path


def test_folders_of_images(tmp_path):
    def check(path, pattern, *flags):
        argv = ["train.py", DIGITS, f"--workdir={tmp_path / 'run'}"]
        argv += [f"--config.data.name=folder:{path}", "--config.data.size=8", *flags]
        one_line(train.run, argv, pattern)

    unreadable = folder_of_images(tmp_path / "unreadable")
    (unreadable / "a" / "9.png").write_bytes(b"not a picture")
    check(unreadable, r"9\.png")
    single = folder_of_images(tmp_path / "single")
    for i in range(1, 4):
        (single / "b" / f"{i}.png").unlink()
    check(single, r"class b")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", r"empty")
    good = folder_of_images(tmp_path / "good", each=10)
    check(good, r"data\.size=0", "--config.data.size=0")


def test_the_command_exits_with_one_line_and_no_traceback(tmp_path):
    done = python("train.py", DIGITS, f"--workdir={tmp_path / 'run'}", "--config.optim.lr=-1")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: optim.lr=-1.0: want a number > 0"


def short_flags(steps):
    return [
        f"--config.steps={steps}",
        "--config.eval.every=20",
        "--config.log_every=20",
        "--config.optim.warmup=0",
    ]


def limit_files():
    """20 kB a file: writing more fails with EFBIG, as a quota does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.slow
def test_a_disk_that_takes_no_more(tmp_path):
    """A file-size limit stands for a full disk: the checkpoint cannot be written."""
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    argv = ["train.py", DIGITS, f"--workdir={tmp_path / 'run'}", *short_flags(40)]
    done = python(*argv, preexec_fn=limit_files, env=env)
    assert done.returncode == 2, done.stderr
    # tensorstore's own threads may speak before; the last word is ours.
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"error: .*not written|error: .*cannot write", last), done.stderr
    manifest = tmp_path / "run" / "manifests" / "20.json"
    assert not manifest.exists(), "a half-written checkpoint is not named good"


def test_a_full_disk(tmp_path):
    """A real file system of 1 MiB: the run says so before it writes, and what is there stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        done = python("train.py", DIGITS, f"--workdir={disk / 'run'}", *short_flags(20))
        assert done.returncode == 2
        line = r"^error: workdir=.*disk full: a checkpoint needs \d+ MiB"
        assert re.search(line, done.stderr, re.M), done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(
    os.geteuid() == 0 and not os.path.isdir("/proc/sys"),
    reason="needs a folder that refuses writes",
)
def test_a_disk_that_cannot_be_written():
    argv = ["train.py", DIGITS, "--workdir=/proc/sys/vae_jax_run"]
    one_line(train.run, argv, r"workdir=/proc/sys/vae_jax_run: cannot write")


@pytest.mark.slow
def test_a_home_folder_that_cannot_be_written_is_one_line(tmp_path):
    """Neither the compiler's cache nor matplotlib's and fontconfig's warn, nor write elsewhere."""
    unset = ("VAE_JAX_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    (tmp_path / "tmp").mkdir()
    env |= {"HOME": "/dev/null/home", "TMPDIR": str(tmp_path / "tmp")}
    argv = ["train.py", DIGITS, f"--workdir={tmp_path / 'run'}", *short_flags(20)]
    argv += ["--config.eval.iw_k=1", "--config.encoder.widths=(4,)", "--config.decoder.widths=(4,)"]
    done = python(*argv, env=env)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tmp" / f"vae_jax-{os.getuid()}"
    line = f"home folder /dev/null/home: cannot be written; caches are in {folder}\n"
    assert done.stderr == line
    assert list((folder / "xla").iterdir()) and list((folder / "matplotlib").iterdir())
