"""The public names: load, fit, evaluate, and the command ``vae-jax``."""

import pathlib
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import train
import vae_jax
from tests import tiny
from vae_jax import config, data
from vae_jax.config import UserError, plugins
from vae_jax.evaluate.run import forward
from vae_jax.evaluate.subject import Subject
from vae_jax.objectives import Terms, sample_k
from vae_jax.tools import console
from vae_jax.tools.library import Run
from vae_jax.train import loop, step
from vae_jax.train import run as run_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
    "encoder.widths": (16,),
    "decoder.widths": (16,),
    "steps_per_call": 4,
    "eval.every": 8,
    "log_every": 4,
    "optim.warmup": 0,
    "batch": 24,
    "mesh.data": 1,
}
LOSS = """
from vae_jax.objectives import Terms, sample_k


def weighted(model, params, batch, keys, *, weight=2.0):
    d = sample_k(model, params, batch["image"], keys, 1)
    log_px, kl = d.log_px.mean(0), d.kl.sum(-1).mean(0)
    return Terms(loss=weight * kl - log_px, elbo=log_px - kl, log_px=log_px, kl=kl)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of twelve steps on digits, with a classifier."""
    workdir = str(tmp_path_factory.mktemp("library") / "run")
    assert loop.train(tiny.short(1), workdir, lambda line: None)
    return workdir


@pytest.fixture(scope="module")
def trained(folder: str) -> Run:
    return vae_jax.load(folder)


@pytest.fixture(scope="module")
def images(trained: Run) -> np.ndarray:
    """The test images, uint8 of 17 grey levels."""
    return data.load(trained.config.data).test.image


def test_two_lines_encode_own_images(folder: str, images: np.ndarray):
    run = vae_jax.load(folder)
    z = run.encode(images[:30])
    assert z.shape == (30, 4) and z.dtype == np.float32
    assert run.step in (4, 8, 12) and len(run.classes) == 10
    restored = run.decode(z)
    assert restored.shape == (30, 8, 8, 1) and 0 <= restored.min() <= restored.max() <= 1
    np.testing.assert_allclose(run.classify(images[:30]).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.encode(images[3]), run.encode(images[3:4]))
    assert jax.tree.leaves(run.params) and run.model.latent == 4


def test_codes_are_those_of_evaluation(folder: str, trained: Run, images: np.ndarray):
    s, state, meta = run_lib.restore(folder)
    assert meta["step"] == trained.step
    subject = Subject(s.c, s.model, step.averaged(state), s.dataset, s.mesh)
    out = forward(subject)(s.dataset.test)
    np.testing.assert_allclose(trained.encode(images), out["mu"], rtol=1e-6, atol=1e-6)
    logits = out["logits"]
    np.testing.assert_array_equal(trained.classify(images).argmax(1), logits.argmax(1))


@pytest.mark.slow
def test_log_prob_is_the_bound_of_evaluation(trained: Run, images: np.ndarray):
    metrics = vae_jax.evaluate(trained, iw_k=5)
    assert trained.log_prob(images, k=5).mean() == metrics["iw_nats"]
    assert metrics["iw_k"] == 5


def test_floats_are_the_nearest_grey_level(trained: Run, images: np.ndarray):
    few = images[:9]
    floats = (few / 16).astype(np.float32)
    np.testing.assert_array_equal(trained.encode(floats), trained.encode(few))
    np.testing.assert_array_equal(trained.encode(jax.numpy.asarray(floats)), trained.encode(few))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 15, r"uint8 up to 2\d+; want uint8 of 0 \.\. 16 or floats"),
        (lambda x: x.astype(np.int64), "int64"),
        (lambda x: x > 8, "bool"),
        (lambda x: x.astype(float), r"floats from 0 to 1\d;"),
        (lambda x: x / 16 - 1, "floats from -1 to"),
        (lambda x: x * np.nan, "floats from nan"),
        (lambda x: x[..., 0], r"want \[8, 8, 1\] or \[N, 8, 8, 1\]"),
        (lambda x: x[:, :7], r"\[5, 7, 8, 1\]"),
        (lambda x: x[:0], r"\[0, 8, 8, 1\]"),
        (lambda x: [x[0], x[0, :4]], "not one array"),
        (lambda x: "digit.png", "images="),
        (lambda x: None, "images=object"),
    ],
)
def test_images_of_another_type_or_range_are_refused_in_one_line(
    trained: Run, images: np.ndarray, change: Callable[[np.ndarray], Any], message: str
):
    for method in (trained.encode, trained.classify, trained.log_prob, trained.traverse):
        with pytest.raises(UserError, match=message) as caught:
            method(change(images[:5]))
        assert "\n" not in str(caught.value)


def test_samples_are_a_function_of_seed_and_place(trained: Run):
    a = trained.sample(16, seed=0)
    np.testing.assert_allclose(a[:4], trained.sample(4, seed=0), rtol=1e-5, atol=1e-6)
    assert np.abs(a - trained.sample(16, seed=1)).max() > 1e-3
    assert a.shape == (16, 8, 8, 1)


def test_a_traversal_moves_one_dimension_of_the_code(trained: Run, images: np.ndarray):
    rows = trained.traverse(images[0], dimensions=3, columns=5)
    assert rows.shape == (3, 5, 8, 8, 1)
    z = trained.encode(images[0])
    best = []
    for d in range(4):
        moved = z.copy()
        moved[:, d] = -2
        best.append(np.abs(trained.decode(moved)[0] - rows[:, 0]).max((1, 2, 3)))
    assert (np.min(best, axis=0) < 1e-5).all()  # each row's first image is one of these
    with pytest.raises(UserError, match="5 images; want one"):
        trained.traverse(images[:5])


def test_wrong_codes_counts_and_labels_are_named(trained: Run, images: np.ndarray):
    for call, message in (
        (lambda: trained.decode(np.zeros((2, 3))), r"z=\[2, 3\]: want numbers \[N, 4\]"),
        (lambda: trained.decode(np.zeros((2, 4)), labels=1), "the model has none"),
        (lambda: trained.sample(0), "n=0"),
        (lambda: trained.log_prob(images, k=0), "k=0"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.slow
def test_a_model_with_labels_takes_them(tmp_path: pathlib.Path):
    c = tiny.semi_supervised(mesh__data=1, steps=4, steps_per_call=4, eval__every=4, log_every=4)
    assert loop.train(c, str(tmp_path), lambda line: None)
    run = vae_jax.load(tmp_path)
    assert run.sample(12).shape == (12, 8, 8, 1)
    z = np.zeros((2, 8))
    assert np.abs(run.decode(z, labels=[3, 4]) - run.decode(z, labels=4))[0].max() > 0
    for labels in (None, [1, 2, 3], 10, 0.5):
        with pytest.raises(UserError, match=r"want one class or 2, 0 \.\. 9"):
            run.decode(z, labels=labels)


def test_a_damaged_run_is_one_line(folder: str, tmp_path: pathlib.Path):
    with pytest.raises(UserError, match="no run in it"):
        vae_jax.load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"gamma": 10.0', '"gamma": 11.0'))
    with pytest.raises(
        UserError, match=r"saved with another config \(objective.gamma: 10.0 -> 11.0\)"
    ):
        vae_jax.load(copy)
    (copy / "config.json").write_text(text)
    for damaged in ("[]", "[" * 100_000):
        (copy / "data.json").write_text(damaged)
        with pytest.raises(UserError, match="not the description of a run's data"):
            vae_jax.load(copy)


# --- fit -----------------------------------------------------------------------------------------


def digits(n: int) -> tuple[np.ndarray, np.ndarray]:
    """n digits as uint8 of 0 .. 240 and their labels."""
    train = data.load(tiny.short(1).data).train
    return train.image[:n] * 15, train.label[:n]


def test_fit_records_a_function_of_a_file_and_its_run_needs_no_data(tmp_path: pathlib.Path):
    (tmp_path / "my_loss.py").write_text(LOSS)
    loss = plugins.import_file(str(tmp_path / "my_loss.py"), "objective").weighted
    images, _ = digits(200)
    workdir = tmp_path / "run"
    fields = SMALL | {"objective.weight": 3.0}
    options = {"config": "digits", "steps": 8, "workdir": workdir, "overrides": fields}
    run = vae_jax.fit(images[..., 0], objective=loss, **options)
    assert run.config.objective.name == f"{tmp_path}/my_loss.py:weighted"
    assert run.config.objective.weight == 3.0 and run.step == 8
    assert len(run_lib.restore(str(workdir)).setup.dataset.test.image) > 20  # eval.py finds it
    (workdir / "images.npz").unlink()  # nor the loss, which only training needs
    (tmp_path / "my_loss.py").unlink()
    del sys.modules[loss.__module__]
    again = vae_jax.load(workdir)
    np.testing.assert_array_equal(again.encode(images[:5]), run.encode(images[:5]))
    with pytest.raises(UserError, match="no classifier"):
        again.classify(images)


def test_fit_without_labels_trains_the_elbo(tmp_path: pathlib.Path):
    images, _ = digits(100)
    run = vae_jax.fit(images, config="digits", steps=4, workdir=tmp_path, overrides=SMALL)
    assert run.config.objective.name == "elbo" and run.config.classifier.name == "none"
    assert run.encode(images).shape == (100, 16)


def test_fit_takes_a_function_that_no_file_has(tmp_path: pathlib.Path):
    calls = []

    def loss(model, params, batch, keys, *, weight=1.0):
        calls.append(weight)
        d = sample_k(model, params, batch["image"], keys, 1)
        log_px, kl = d.log_px.mean(0), d.kl.sum(-1).mean(0)
        return Terms(loss=weight * kl - log_px, elbo=log_px - kl, log_px=log_px, kl=kl)

    images, labels = digits(200)
    options = {"config": "digits", "workdir": tmp_path / "run", "overrides": SMALL}
    run = vae_jax.fit(images / 255, labels, objective=loss, steps=8, **options)
    assert calls and run.classify(images).shape == (200, 10)
    path, _, name = run.config.objective.name.rpartition(":")
    del sys.modules[plugins.module_name(path)]  # as in another process
    again = vae_jax.load(tmp_path / "run")
    assert name == "loss" and again.encode(images).shape == (200, 16)
    with pytest.raises(UserError, match=r"pass it to vae_jax.fit again"):
        again.evaluate()
    with pytest.raises(UserError, match="holds a run on other images"):
        vae_jax.fit(images[:100], labels[:100], objective=loss, steps=8, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": np.zeros((4, 8, 8), np.int32)}, "int32"),
        ({"images": np.zeros((4, 8, 8, 2), np.uint8)}, "train images are uint8"),
        ({"labels": [1, 2]}, "labels"),
        ({"config": "mnits"}, "config=mnits: no such file; nearest: mnist"),
        ({"objective": 3}, "want a name, file:function or a function"),
        ({"overrides": {"batchh": 3}}, "batchh=3: unknown field"),
    ],
)
def test_fit_refuses_bad_input_in_one_line(
    tmp_path: pathlib.Path, options: dict[str, Any], message: str
):
    options = {"images": digits(50)[0], "config": "digits", "workdir": tmp_path} | options
    with pytest.raises(UserError, match=message) as caught:
        vae_jax.fit(options.pop("images"), options.pop("labels", None), **options)
    assert "\n" not in str(caught.value)


# --- the package and its command -----------------------------------------------------------------


def test_import_is_cheap():
    code = "import sys, vae_jax; assert 'jax' not in sys.modules; vae_jax.load; import jax"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_config_goes_by_its_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = str(ROOT / "configs/mnist.py")
    assert console.config_file("mnist") == console.config_file("mnist.py") == path
    assert console.with_config("train", ["--config=mnist"]) == [f"--config={path}"]
    assert console.with_config("train", ["--config", "mnist", "--explain"])[1] == path
    assert console.with_config("train", [])[0] == f"--config={ROOT}/configs/digits.py"
    words = console.launched(["--processes=2", "--", "train", "--config=mnist"])
    assert words == ["--processes=2", "--", f"{ROOT}/train.py", f"--config={path}"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").write_text("")  # a file of the user's comes first
    assert console.config_file("mnist") == "mnist"


def test_train_finds_a_packaged_config_by_its_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert config.load("mnist_cnn").objective.name == "supervised"  # it imports another of configs/
    assert config.load("study_digits", "get_study").methods
    (tmp_path / "digits").mkdir()  # a folder is no config file
    assert train.run(["train.py", "--config=digits", "--explain"]) == 0
    assert "objective.name = joint" in capsys.readouterr().out
    for name, message in (("digit", "nearest: digits"), ("my/digits.py", "nearest: digits.py")):
        with pytest.raises(UserError, match=f"^config={name}: no such file; {message}"):
            train.run(["train.py", f"--config={name}", "--explain"])


def test_a_config_file_imports_helpers_beside_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sizes.py").write_text("LATENT = 5\n")
    page = "from . import sizes\nfrom vae_jax import config\n\n\ndef get_config():\n"
    page += "    c = config.default()\n    c.latent = sizes.LATENT\n    return c\n"
    (tmp_path / "own" / "page.py").write_text(page)
    monkeypatch.chdir(tmp_path)
    assert config.load("own/page.py").latent == 5


def test_the_command_runs_the_scripts(folder: str, tmp_path: pathlib.Path):
    def vae_jax_command(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vae_jax.tools.console", *words]
        where = {"cwd": ROOT, "capture_output": True, "text": True}
        return subprocess.run(command, check=False, **where)

    done = vae_jax_command("train", "--config=mnist_cnn", "--explain", "--data_dir=none")
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    done = vae_jax_command("export", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "no run in it" in done.stderr
    done = vae_jax_command("trian")
    assert done.returncode == 2 and "no such command; nearest: train" in done.stderr
    assert "--workdir" in vae_jax_command("eval", "--help").stdout


def test_the_wheel_has_every_package():
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("vae_jax/**/__init__.py")}
    named = {name.replace(".", "/") for name in tree["tool"]["setuptools"]["packages"]}
    assert named == folders | {"vae_jax/scripts/configs"}


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(tmp_path: pathlib.Path):
    wheels = tmp_path / "wheels"
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__", "results")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("vae_jax-*.whl")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))  # JAX and such, not installed again
    empty = tmp_path / "empty"
    empty.mkdir()
    short = ["--config.steps=40", "--config.eval.every=40", "--config.eval.iw_k=1"]
    command = [venv / "bin/vae-jax", "train", "--config=digits", "--workdir=runs/digits", *short]
    subprocess.run(command, cwd=empty, check=True)
    code = (
        "import vae_jax, numpy\n"
        "assert 'venv' in vae_jax.__file__\n"
        "run = vae_jax.load('runs/digits')\n"
        "print(run.encode(numpy.zeros((3, 8, 8, 1), numpy.uint8)).shape)\n"
    )
    done = subprocess.run([python, "-c", code], cwd=empty, check=True, capture_output=True)
    assert done.stdout == b"(3, 16)\n"
    explain = [venv / "bin/vae-jax", "train", "--config=mnist_cnn", "--explain"]
    assert subprocess.run(explain, cwd=empty, check=True, capture_output=True).stdout
    assert (site / "vae_jax/py.typed").is_file()
