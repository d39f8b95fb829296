"""Bad input: one line that names the field, the value and what would be right; nothing half-written."""

import importlib
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vae_jax.config import UserError

train, evaluate = (importlib.import_module(name) for name in ("train", "eval"))
DIGITS = "--config=configs/digits.py"


def folder(path, classes, each=4, size=(9, 11)):
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(np.full((*size, 3), 20 * i, np.uint8)).save(path / name / f"{i}.png")
    return path


# (what is wrong, extra flags, a pattern of the one line)
FLAGS = [
    (
        "a limit of steps that none leaves out",
        ["--config.optim.skip_above=9"],
        r"optim\.skip_above=9\.0: no step is",
    ),
    ("unknown field", ["--config.optim.lrr=1"], r"optim\.lrr=1: unknown field; nearest: optim\.lr"),
    ("unknown section", ["--config.opt.lr=1"], r"opt\.lr=1: unknown field"),
    ("a section set as a value", ["--config.optim=3"], r"optim=3: a section"),
    ("no value", ["--config.batch"], r"batch: want --config\.batch=VALUE"),
    ("word for a number", ["--config.batch=many"], r"batch=many: want int"),
    ("fraction for a whole number", ["--config.steps=1.5"], r"steps=1\.5: want int"),
    ("word for a fraction", ["--config.optim.lr=fast"], r"optim\.lr=fast: want float"),
    ("word for a switch", ["--config.data.flip=perhaps"], r"data\.flip=perhaps: want bool"),
    ("broken tuple", ["--config.encoder.widths=(3,"], r"encoder\.widths=\(3,: want tuple"),
    ("negative rate", ["--config.optim.lr=-1"], r"optim\.lr=-1\.0: want a number > 0"),
    ("zero batch", ["--config.batch=0"], r"batch=0: want a number > 0"),
    ("nan", ["--config.optim.lr=nan"], r"optim\.lr=nan: want a finite number"),
    (
        "zero width",
        ["--config.encoder.widths=(64,0)"],
        r"encoder\.widths=\(64, 0\): want numbers >= 1",
    ),
    ("zero latent", ["--config.latent=0"], r"latent=0: want a number > 0"),
    ("negative beta", ["--config.objective.beta=-2"], r"objective\.beta=-2\.0: want numbers >= 0"),
    (
        "unknown activation",
        ["--config.encoder.activation=rely"],
        r"activation=rely: unknown; nearest: relu",
    ),
    (
        "attention",
        ["--config.encoder.name=vit", "--config.encoder.attention=flash"],
        r"attention=flash: want xla or cudnn",
    ),
    (
        "fused attention of float32",
        ["--config.encoder.name=vit", "--config.encoder.attention=cudnn"],
        r"attention=cudnn: has no float32; want dtype=bfloat16, or xla",
    ),
    (
        "fused attention of small heads",
        ["--config.encoder.name=vit", "--config.encoder.attention=cudnn", "--config.dtype=bfloat16"]
        + ["--config.encoder.heads=32"],
        r"attention=cudnn: wants a multiple of 8 numbers a head, not width / heads = 4; want xla",
    ),
    (
        "fused attention without its device",
        [
            "--config.decoder.name=vit",
            "--config.decoder.attention=cudnn",
            "--config.dtype=bfloat16",
        ],
        r"attention=cudnn: wants an NVIDIA GPU, the device is cpu; want xla",
    ),
    ("huge run", ["--config.steps=100000000"], r"steps=100000000: want steps \* batch < 2\*\*32"),
    (
        "steps not in calls",
        ["--config.steps=1010"],
        r"steps=1010: want a multiple of steps_per_call=20, such as 10[02]0",
    ),
    ("dtype", ["--config.dtype=float16"], r"dtype=float16: want float32 or bfloat16"),
    ("unknown net", ["--config.encoder.name=con"], r"encoder\.name=con: unknown; nearest: conv"),
    (
        "unknown objective",
        ["--config.objective.name=elbow"],
        r"objective\.name=elbow: unknown; nearest: elbo",
    ),
    (
        "own loss, no file",
        ["--config.objective.name=no_file:f"],
        r"objective\.name=no_file:f: no file no_file\.py",
    ),
    (
        "field of another objective",
        ["--config.objective.name=elbo", "--config.objective.gamma=1"],
        r"objective\.gamma=1: unknown",
    ),
    ("unknown data", ["--config.data.name=digit"], r"data\.name=digit: .*digits"),
    (
        "unprepared data",
        ["--config.data.name=mnist", "--data_dir=/nonexistent"],
        r"mnist.*prepare mnist",
    ),
    (
        "no such folder",
        ["--config.data.name=folder:/nonexistent", "--config.data.size=8"],
        r"/nonexistent",
    ),
    (
        "validation share",
        ["--config.data.validation=0.9"],
        r"data\.validation=0\.9: want 0 < value <= 0\.5",
    ),
    (
        "binarize",
        ["--config.data.binarize=maybe"],
        r"data\.binarize=maybe: want none, threshold, static, dynamic",
    ),
    (
        "held out, unknown",
        ["--config.data.hold_out=(3,10)"],
        r"data\.hold_out=\(3, 10\): .*digits has 10 classes",
    ),
    (
        "held out twice",
        ["--config.data.hold_out=(3,3)"],
        r"data\.hold_out=\(3, 3\): want different places",
    ),
    (
        "held out, nearly all",
        ["--config.data.hold_out=(0,1,2,3,4,5,6,7,8)"],
        r"data\.hold_out=.*two classes to stay",
    ),
    ("shift beyond the image", ["--config.data.shift=9"], r"data\.shift=9: .*8"),
    (
        "Bernoulli on grey",
        ["--config.likelihood.name=bernoulli"],
        r"likelihood\.name=bernoulli: .*17 levels",
    ),
    (
        "density of binary data",
        ["--config.likelihood.name=gaussian", "--config.data.binarize=dynamic"],
        r"likelihood\.name=gaussian: .*binary",
    ),
    (
        "labels wanted, no classifier",
        ["--config.classifier.name=none"],
        r"classifier\.name=none: .*want classifier\.name=mlp",
    ),
    (
        "Bayes without its prior",
        ["--config.classifier.name=bayes"],
        r"prior\.name=normal: .*want labelled",
    ),
    (
        "batch over devices",
        ["--config.batch=20"],
        r"batch=20: does not divide over 8 devices.*nearest that does: (16|24)",
    ),
    (
        "mesh that does not divide",
        ["--config.mesh.model=3"],
        r"mesh\.model=3: 3 does not fit 8 devices; nearest that fits: 2",
    ),
    (
        "too many devices",
        ["--config.mesh.data=16"],
        r"mesh\.data=16: 16 does not fit 8 devices; nearest that fits: 8",
    ),
    ("two free axes", ["--config.mesh.model=-1"], r"mesh\.model=-1: want at most one -1"),
    ("select", ["--config.eval.select=speed"], r"eval\.select=speed: want loss, elbo"),
    (
        "warm-up of nothing",
        ["--config.warmup.steps=10", "--config.warmup.of=alpha"],
        r"warmup\.of=alpha: objective joint has beta, gamma",
    ),
    ("decay for adam", ["--config.optim.name=adam"], r"optim\.weight_decay=0\.01: adam has none"),
    ("no samples", ["--config.objective.samples=0"], r"objective\.samples=0: want numbers >= 1"),
    (
        "no decoder for a bound",
        ["--config.decoder.name=none"],
        r"decoder\.name=none: this objective needs one",
    ),
    (
        "strides for other widths",
        ["--config.unroll=True", "--config.encoder.name=conv", "--config.encoder.widths=(8,8,8)"],
        r"encoder\.strides=\(2, 2\): want as many as widths=\(8, 8, 8\)",
    ),
    (
        "a figure that the objective does not give",
        ["--config.objective.name=elbo", "--config.eval.select=accuracy"],
        r"eval\.select=accuracy: objective elbo gives elbo, kl, log_px, loss",
    ),
    (
        "a loss that moves",
        ["--config.objective.name=geco"],
        r"eval\.select=loss: that of geco changes",
    ),
    ("unknown flag", ["--wrkdir=x"], r"Unknown command line flag 'wrkdir'"),
    ("a word", ["extra"], r"extra: want flags only"),
]


@pytest.mark.parametrize(
    ("flags", "pattern"), [f[1:] for f in FLAGS], ids=[f[0].replace(" ", "_") for f in FLAGS]
)
def test_flags(flags, pattern, tmp_path):
    workdir = tmp_path / "run"
    says(train.run, ["train.py", DIGITS, f"--workdir={workdir}", *flags], pattern)
    assert not workdir.exists(), "bad input leaves no workdir behind"


def says(run, argv, pattern):
    with pytest.raises(UserError) as error:
        run(argv)
    message = str(error.value)
    assert "\n" not in message
    assert re.search(pattern, message), message


def test_config_pages(tmp_path):
    page = tmp_path / "page.py"
    cases = [
        ("def get_config(:\n", r"page\.py: line 1"),
        ("x = 1\n", r"no function get_config"),
        (
            "from vae_jax import config\ndef get_config():\n c = config.default()\n c.optim.lrr = 1\n return c\n",
            r"lrr",
        ),
        (
            "from vae_jax import config\ndef get_config():\n c = config.default()\n c.batch = 'x'\n return c\n",
            r"batch|int",
        ),
        (
            "from vae_jax import config\ndef get_config():\n c = config.default()\n"
            " c.objective = config.call('objective', 'elbo', betta=1.0)\n return c\n",
            r"objective\.betta: .*nearest: beta",
        ),
    ]
    for text, pattern in cases:
        page.write_text(text)
        says(train.run, ["train.py", f"--config={page}", f"--workdir={tmp_path / 'run'}"], pattern)
    says(
        train.run,
        ["train.py", "--config=configs/digit.py", "--workdir=x"],
        r"configs/digit\.py: no such file; nearest: digits\.py",
    )
    says(train.run, ["train.py", DIGITS], r"workdir: want --workdir=FOLDER")


def test_labels_where_there_are_none():
    from vae_jax import config, models

    c = config.load("configs/digits.py")
    with pytest.raises(
        UserError, match=r"classifier\.name=mlp: data\.name=digits has no labels; want none"
    ):
        models.build(c, shape=(8, 8, 1), levels=17, classes=0, binary=False)


def test_workdirs(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    says(
        train.run,
        ["train.py", DIGITS, f"--workdir={file}"],
        r"workdir=.*file: is a file; want a folder",
    )
    says(evaluate.run, ["eval.py", f"--workdir={file}"], r"is a file")
    says(evaluate.run, ["eval.py", f"--workdir={tmp_path / 'none'}"], r"no run in it")
    says(evaluate.run, ["eval.py"], r"workdir: want")
    says(
        evaluate.run,
        ["eval.py", "--workdir=x", "--checkpoint=first"],
        r"checkpoint=first: want best, latest or a step",
    )
    says(evaluate.run, ["eval.py", "--workdir=x", "--iw_k=0"], r"iw_k")
    says(
        evaluate.run, ["eval.py", "--workdir=x", "--tasks=odd"], r"tasks=odd: unknown; nearest: ood"
    )
    for flag in ("--tasks=ood", "--ood=mnist"):
        says(evaluate.run, ["eval.py", "--workdir=x", flag], r"tasks=ood: wants another data set")
    says(
        evaluate.run,
        ["eval.py", "--workdir=x", "--config.batch=3"],
        r"batch: the run's config is fixed",
    )
    says(
        evaluate.run,
        ["eval.py", f"--workdir={tmp_path / 'none'}", "--config.mesh.model=2"],
        r"no run in it",
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    says(evaluate.run, ["eval.py", f"--workdir={broken}"], r"config\.json: not JSON")


def test_folders_of_images(tmp_path):
    def run(path, pattern, *flags):
        flags = [f"--config.data.name=folder:{path}", "--config.data.size=8", *flags]
        says(train.run, ["train.py", DIGITS, f"--workdir={tmp_path / 'run'}", *flags], pattern)

    unreadable = folder(tmp_path / "unreadable", "ab")
    (unreadable / "a" / "9.png").write_bytes(b"not a picture")
    run(unreadable, r"9\.png")
    single = folder(tmp_path / "single", "ab")
    for i in range(1, 4):
        (single / "b" / f"{i}.png").unlink()
    run(single, r"class b")
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", r"empty")
    good = folder(tmp_path / "good", "ab", each=10)
    run(good, r"data\.size=0", "--config.data.size=0")


def command(*argv, **kwargs):
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=120, **kwargs
    )


def test_the_command_exits_with_one_line_and_no_traceback(tmp_path):
    done = command("train.py", DIGITS, f"--workdir={tmp_path / 'run'}", "--config.optim.lr=-1")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: optim.lr=-1.0: want a number > 0"


def small_disk():
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, 20_000)
    )  # bytes per file: EFBIG, as a quota gives


@pytest.mark.slow
def test_a_disk_that_takes_no_more(tmp_path):
    """A file-size limit stands for a full disk: the checkpoint cannot be written."""
    import signal

    def limits():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        small_disk()

    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = command(
        "train.py", DIGITS, f"--workdir={tmp_path / 'run'}", "--config.steps=40", "--config.eval.every=20",
        "--config.log_every=20", "--config.optim.warmup=0", preexec_fn=limits, env=env,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    # tensorstore's own threads may speak before; the last word is ours.
    assert re.match(
        r"error: .*not written|error: .*cannot write", done.stderr.strip().splitlines()[-1]
    ), done.stderr
    assert not os.path.exists(tmp_path / "run" / "manifests" / "20.json"), (
        "a half-written checkpoint is not named good"
    )


def test_a_full_disk(tmp_path):
    """A real file system of 1 MiB: the run says so before it writes, and what is there stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        flags = [
            "--config.steps=20",
            "--config.eval.every=20",
            "--config.log_every=20",
            "--config.optim.warmup=0",
        ]
        done = command("train.py", DIGITS, f"--workdir={disk / 'run'}", *flags)
        assert done.returncode == 2
        assert re.search(
            r"^error: workdir=.*disk full: a checkpoint needs \d+ MiB", done.stderr, re.M
        ), done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(
    os.geteuid() == 0 and not os.path.isdir("/proc/sys"),
    reason="needs a folder that refuses writes",
)
def test_a_disk_that_cannot_be_written():
    says(
        train.run,
        ["train.py", DIGITS, "--workdir=/proc/sys/vae_jax_run"],
        r"workdir=/proc/sys/vae_jax_run: cannot write",
    )
