"""Wrong flags: one line that names the field, the value and what would be right."""

import importlib

import pytest

from tests.processes import one_line

train = importlib.import_module("train")
DIGITS = "--config=configs/digits.py"


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
        "held out, no such name",
        ["--config.data.hold_out=nine"],
        r"data\.hold_out=\('nine',\): .*digits has no class nine",
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
    ("more than an int32", [f"--config.latent={2**31}"], r"latent=2147483648: .*below 2\*\*31"),
    ("no folder", ["--config.data.name=folder:"], r"data\.name=folder:: want a path"),
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
    ("flags", "pattern"),
    [pytest.param(flags, line, id=name.replace(" ", "_")) for name, flags, line in FLAGS],
)
def test_flags(flags, pattern, tmp_path):
    workdir = tmp_path / "run"
    one_line(train.run, ["train.py", DIGITS, f"--workdir={workdir}", *flags], pattern)
    assert not workdir.exists(), "bad input leaves no workdir behind"
