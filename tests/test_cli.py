"""Flags of the command line, and scripts as processes of the operating system."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from vae_jax import cli, config
from vae_jax.tools import explain

ROOT = pathlib.Path(__file__).parents[1]
LOUD = """
from vae_jax import cli
def run(argv):
    for i in range(10**5):
        print(i)
cli.main(run)
"""


@pytest.mark.parametrize(
    ("field", "words", "value"),
    [
        ("encoder.widths", ["(8,)", "(64,64)"], (64, 64)),
        ("encoder.widths", ["8,16", "32"], (32,)),
        ("data.hold_out", ["(1,2)", "(3,)"], (3,)),
        ("data.hold_out", ["(1,2)", "()"], ()),
        ("data.hold_out", ["(1,2)", "bird,wild cat"], ("bird", "wild cat")),
        ("data.hold_out", ["(bird,cat)"], ("bird", "cat")),
        ("data.hold_out", ["('8',)", "8"], (8,)),
        ("optim.lr", ["1", "2e-3"], 2e-3),
        ("data.flip", ["true", "false"], False),
        ("objective.name", ["iwae", "elbo"], "elbo"),
        ("optim.name", ["sgd", "adam"], "adam"),
    ],
)
def test_the_last_of_two_flags_wins(field, words, value):
    c = config.load(f"{ROOT}/configs/digits.py")
    c.optim.weight_decay = 0.0
    c = cli.apply(c, [(field, word) for word in words])
    assert config.flatten(c)[field] == value
    assert type(config.flatten(c)[field]) is type(value)


def test_overrides_leave_the_config_that_they_change():
    c = config.default()
    assert cli.apply(c, [("encoder.widths", "(8,)")]).encoder.widths == (8,)
    assert c.encoder.widths == config.default().encoder.widths


@pytest.mark.parametrize("text", ["", "(", "(1,'a')", "(1.5,)", "wide"])
def test_words_that_are_no_tuple_of_numbers_are_one_line(text):
    with pytest.raises(config.UserError, match=r"encoder\.widths=.*: want tuple, such as \("):
        cli.apply(config.default(), [("encoder.widths", text)])


def test_a_warm_up_longer_than_the_run_is_a_tenth_of_it(capsys):
    c = cli.apply(config.load(f"{ROOT}/configs/digits.py"), [("steps", "200")])
    config.validate(c)
    assert c.optim.warmup == 20
    assert "optim.warmup=200: not below steps=200; shortened to 20" in capsys.readouterr().out
    pairs = [("steps", "400"), ("warmup.steps", "500")]
    c = cli.apply(config.load(f"{ROOT}/configs/digits.py"), pairs)
    assert c.optim.warmup == 200 and c.warmup.steps == 40
    assert capsys.readouterr().out == "warmup.steps=500: above steps=400; shortened to 40\n"


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return str(path)


def run_process(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def start(*words, **options):
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    env["PYTHONPATH"] = str(ROOT)
    return run_process([sys.executable, *words], env=env | options, cwd=ROOT)


@pytest.mark.parametrize("words", [[], ["-u"], ["-O"], ["-X", "utf8"]])
def test_a_script_is_one_process_with_the_words_of_its_interpreter(tmp_path, words):
    path = script(
        tmp_path,
        "import os, sys\nfrom vae_jax import cli\nprint(os.getpid(), flush=True)\n"
        "def run(argv):\n    print(os.getpid(), argv[1:])\n    return 3\ncli.main(run)\n",
    )
    done = start(*words, path, "--x=1", "a b")
    assert done.returncode == 3, done.stderr
    before, after = done.stdout.splitlines()
    assert after == f"{before} ['--x=1', 'a b']"


def test_the_debugger_steps_through_a_script():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pdb", "-c", "b vae_jax/cli.py:1", "-c", "c", "train.py", "--help"],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, input="q\n",
    )  # fmt: skip
    assert "--workdir" in done.stdout and "Traceback" not in done.stdout + done.stderr


def test_a_reader_that_leaves_ends_a_script_without_a_traceback(tmp_path):
    path = script(tmp_path, LOUD)
    command = f"{sys.executable} {path} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = run_process(["bash", "-c", command], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", cli.EPIPE)


def test_a_reader_that_leaves_ends_predict_without_a_traceback(tmp_path):
    """A program of one class for images of 2x2 pixels, and the same image 3,000 times."""

    def classify(image):
        n = image.shape[0]
        return {"probabilities": jnp.ones((n, 1)), "distance": jnp.zeros(n) + 0.0 * image.sum()}

    (b,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((b, 2, 2, 1), jnp.uint8)
    blob = jax.export.export(jax.jit(classify), platforms=["cpu"])(shape).serialize()
    (tmp_path / "one.jaxexport").write_bytes(blob)
    meta = {"what": "classifier", "sha256": hashlib.sha256(blob).hexdigest(), "classes": ["one"]}
    meta |= {"image": {"shape": [2, 2, 1], "levels": 256}, "familiarity": {"quantiles": [0.0, 1.0]}}
    (tmp_path / "one.json").write_text(json.dumps(meta))
    PIL.Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "image.png")
    (tmp_path / "predict.py").write_bytes((ROOT / "vae_jax/data/predict.py").read_bytes())
    command = f"{sys.executable} predict.py one.jaxexport"
    command = f"{command} {' '.join(['image.png'] * 3000)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = run_process(["bash", "-c", command], cwd=tmp_path)
    assert done.stderr == "" and done.returncode == cli.EPIPE
    assert done.stdout == "image.png  one 100.0%  familiarity 100%\n"


def test_explain_shows_source_peak_and_weights():
    c = config.load(f"{ROOT}/configs/digits.py")
    c.warmup.steps = 1000
    lines = explain.card(c).splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines}
    source, line = rows["source"][1].split(":")
    assert "def joint(" in (ROOT / source).read_text().splitlines()[int(line) - 1]
    assert rows["learning rate"][2:4] == ["0", "0.002"]
    assert rows["beta"][1:] == ["0", "1", "1"] and rows["gamma"][1:] == ["50", "50", "50"]
    assert "schedule      adamw, cosine, warm-up to step 200" in lines


def test_make_lint_reads_the_files_of_the_project_only(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("train.py", "requirements.lock", "requirements-test.lock"):
        (tmp_path / name).write_text("")
    (tmp_path / "mine.py").write_text("not python")
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "Makefile", "train.py"], cwd=tmp_path, check=True)
    done = run_process(["make", "-n", "lint"], cwd=tmp_path, check=True)
    line = next(line for line in done.stdout.splitlines() if line.endswith("ruff check train.py"))
    assert line and "mine.py" not in done.stdout


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    run = "cli.main(lambda argv: jax.devices())"
    path = script(tmp_path, f"from vae_jax import cli\nimport jax\n{run}\n")
    done = start(path, JAX_PLATFORMS="nowhere")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS=nowhere: not on this machine")


def test_huge_pages_are_told_in_one_line(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", cli.TUNABLE)
    assert cli.huge_pages() in ("always", "asked for", "no")
    monkeypatch.delenv("GLIBC_TUNABLES")
    words = cli.huge_pages()
    assert words in ("always", "no") or cli.TUNABLE in words


def test_memory_that_is_not_there_is_one_line(monkeypatch, capsys):
    """Of this process's own memory: 2^60 bytes are more than any machine has."""

    def run(argv):
        np.ones(2**60, np.uint8)

    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert cli._exit_code(run) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not enough memory (Unable to allocate" in err


PRINTS = "from vae_jax import cli; cli.main(lambda argv: print('class 日本'))"


@pytest.mark.parametrize(
    ("redirect", "output"), [("", r"class \u65e5\u672c" + "\n"), (" >&-", ""), (" 2>&- >&-", "")]
)
def test_any_output_can_be_printed_to(redirect, output):
    """A locale without the letters of a class; a stdout that is closed."""
    env = os.environ | {"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}
    command = ["bash", "-c", f'"$0" -c "{PRINTS}"{redirect}', sys.executable]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")
