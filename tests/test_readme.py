"""What README and the pages of docs tell a user to type works.

Every command of a shell block has its flags read and its config checked; those that take seconds
also run, shortened (slow); ``FLAGS_ONLY`` and ``NOT_RUN`` name the others, each with its reason.
"""

import importlib
import inspect
import os
import pathlib
import re
import shlex
import stat
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from benchmarks import common
from vae_jax import cli, config
from vae_jax.config import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = (
    "--config.steps=40",
    "--config.eval.every=40",
    "--config.log_every=20",
    "--config.optim.warmup=0",
    "--config.eval.iw_k=1",
)
SHORTER = (
    *("--config.steps=4", "--config.eval.every=4", "--config.log_every=4"),
    *("--config.steps_per_call=1", "--config.batch=16", "--config.eval.batch=20"),
    *("--config.optim.warmup=0", "--config.eval.iw_k=1"),
)
# Commands that hold these words are no program of ours, or need what a test has not.
NOT_RUN = {
    "make train": "makes an environment from the network; benchmarks/clone.py does",
    "make test": "is this test's own command; .ci/run does",
    "pip install": "needs a network",
    "import datasets": "needs a network",
    "unzip -q img_align_celeba.zip": "needs CelebA's file",
    "ln -s /data/ILSVRC": "needs ImageNet's files",
    "launch/tpu_pod.sh": "needs a Cloud TPU; test_launch.py sees that it creates nothing unfilled",
    "sbatch": "needs a cluster",
    "kubectl": "needs a cluster",
}
# Commands whose flags and config are checked, and that do not run here.
FLAGS_ONLY = {
    "--data_dir=~/data": "minutes, and needs data; results/NAME.json has the command that ran",
    "configs/mnist": "the same",
    "hf:": "needs data sets of the hub; test_hub.py reads such",
    "imagenet64": "needs an accelerator",
    "--peer=torch": "needs PyTorch; tests/benchmarks/test_peer.py",
    "fashion": "minutes, and needs data",
    "benchmarks.seeds": "minutes; tests/benchmarks/test_seeds.py",
    "study": "minutes; tests/tools/test_study.py runs a small one",
    "runs/mnist": "needs a run of MNIST",
    "_mnist": "the same",
    "runs/shortcut": "the same; tests/evaluate/test_shortcuts.py",
    "sprites": "draws 737,280 images first; tests/evaluate/test_factors.py",
    "air_digits": "minutes; tests/evaluate/test_scene_task.py",
    "runs/net": "needs a run of another page; tests/tools/test_compare.py",
    "explore": "serves until it is stopped; tests/tools/test_explore.py",
}
ONE_OFF = "--config=configs/mnist.py --config.data.name=folder:"  # mnist's net on own images
MAINS = {
    "vae_jax.data": "vae_jax.data.__main__",
    "vae_jax.tools.predict": "vae_jax.data.predict",
}
PLACES = ("/path/to/images", "/path/to/faces", "~/celeba")


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands(page: pathlib.Path) -> list[str]:
    """The commands of a page's shell blocks, and of its lists of ``vae-jax``, without comments."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    for text in blocks(page, "text"):
        for line in text.splitlines():
            lines += [f"vae-jax{words}" for words in line.split("vae-jax")[1:]]
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return list(filter(None, lines))


def reason(command: str, table: dict[str, str]) -> str:
    """Why a table has a command; '' where it has not."""
    for words, why in table.items():
        if words in command:
            return why
    return ""


def runs(command: str) -> bool:
    """Whether the slow test runs a command."""
    return ONE_OFF in command or not reason(command, NOT_RUN | FLAGS_ONLY)


def write_example(page: pathlib.Path, name: str, folder: pathlib.Path) -> None:
    """The block of a page that begins with the file's name, as that file."""
    (source,) = (text for text in blocks(page, "python") if text.startswith(f"# {name}\n"))
    assert len(source.strip().splitlines()) <= 20
    (folder / name).write_text(source)


def write_examples(folder: pathlib.Path) -> None:
    """Every file that a page shows."""
    for page in PAGES:
        for text in blocks(page, "python"):
            match = re.match(r"# (my_\w+\.py)\n", text)
            if match:
                (folder / match[1]).write_text(text)


def run(folder: pathlib.Path, command: list[str]) -> None:
    """Run ``python SCRIPT …`` of a page in another folder."""
    assert command[0] == "python"
    command = [sys.executable, str(ROOT / command[1]), *command[2:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def command_with(page: pathlib.Path, words: str) -> list[str]:
    """The first command of a page that holds these words."""
    return next(line for line in commands(page) if words in line).split()


def test_the_own_loss_of_readme_trains(tmp_path: pathlib.Path):
    page = ROOT / "README.md"
    write_example(page, "my_loss.py", tmp_path)
    command = command_with(page, "my_loss:hinge_rate")
    run(tmp_path, [*command, f"--config={ROOT}/configs/digits.py", *SHORT])
    assert '"rate": 12.0' in (tmp_path / "runs/mine/config.json").read_text()


@pytest.mark.slow
def test_the_own_net_data_and_metric_of_the_pages_run(tmp_path: pathlib.Path):
    nets, data, evaluate = (ROOT / f"docs/{name}.md" for name in ("nets", "data", "evaluate"))
    write_example(nets, "my_nets.py", tmp_path)
    write_example(data, "my_data.py", tmp_path)
    write_example(evaluate, "my_metrics.py", tmp_path)
    command = command_with(nets, "my_nets:Encoder")
    command += [flag for flag in command_with(data, "my_data:stripes") if "data.name" in flag]
    workdir = "--workdir=runs/digits"  # as the page of evaluation calls it; the last flag wins
    run(tmp_path, [*command, workdir, f"--config={ROOT}/configs/digits.py", *SHORT])
    config_file = (tmp_path / "runs/digits/config.json").read_text()
    assert '"width": 128' in config_file
    assert re.search(r'"name": ".*my_data(\.py)?:stripes"', config_file)
    run(tmp_path, command_with(evaluate, "my_metrics.py:mean_pixel"))
    assert '"mean_pixel"' in (tmp_path / "runs/digits/metrics.json").read_text()


# --- every command -------------------------------------------------------------------------------


def check_flags(words: list[str]) -> None:
    """Read the flags of a command as its program does, and check the config that they make."""
    if words[0] == "export":
        return
    if "=" in words[0]:  # a variable for the command
        words = words[1:]
    if words[0] == "vae-jax":
        from vae_jax.tools import console

        place = console.MODULES.get(words[1], words[1])
        words = ["python", "-m", place, *words[2:]]
    assert words[0] == "python", words
    if words[1] == "-m":
        name = words[2]
        rest = words[3:]
    else:
        name = words[1].removesuffix(".py")
        rest = words[2:]
    if "--" in rest:  # a command of its own
        at = rest.index("--")
        check_flags(["python", *rest[at + 1 :]])
        rest = rest[:at]
    module = importlib.import_module(MAINS.get(name, name))
    if not hasattr(module, "define"):  # argparse, which has each flag as a text
        source = inspect.getsource(module) + inspect.getsource(common)
        for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
            handed_on = flag.startswith("--config.") or flag == "--data_dir"
            if name == "benchmarks.seeds" and handed_on:  # to train.py
                continue
            assert f'"{flag}"' in source, f"{name} has no {flag}"
        return
    values, pairs = cli.parse([name, *rest], module.define)
    if "config" in values and values.config and not name.endswith("study"):
        config.validate(cli.apply(config.load(values.config), pairs))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_flags_of_every_command_are_known(
    page: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write_examples(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        if reason(command, NOT_RUN):
            continue
        words = shlex.split(command)
        if words[:1] == ["vae-jax"] and words[1] == "launch":
            words[words.index("train")] = "train.py"
        try:
            check_flags(words)
        except UserError as error:
            pytest.fail(f"{command}: {error}")


def test_a_reason_is_of_a_command_that_is_there():
    every = []
    for page in PAGES:
        every += commands(page)
    for words in (*NOT_RUN, *FLAGS_ONLY, ONE_OFF, *PLACES):
        assert any(words in command for command in every), words


def write_images(folder: pathlib.Path, shape: tuple[int, ...], suffix: str = "png") -> None:
    """Twenty images of noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(20):
        PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"{i}.{suffix}")


@pytest.fixture
def reader(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of someone who follows the pages: own files, images, the two commands."""
    folder = tmp_path / "reader"
    folder.mkdir()
    write_examples(folder)
    for name in ("ant", "bee"):
        write_images(folder / "path/to/images" / name, (40, 30, 3))
        write_images(folder / "path/to/faces" / name, (112, 92))
    for person in range(14):
        write_images(folder / f"faces/person_{person:02}", (112, 92))
    write_images(folder / "celeba/img_align_celeba", (218, 178, 3), "jpg")
    write_images(folder / "folder", (8, 8))
    PIL.Image.new("L", (8, 8)).save(folder / "image.png")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(folder / "my_images.npz", images=images, labels=np.arange(60) % 3)
    for name, words in (("python", ""), ("vae-jax", " -m vae_jax.tools.console")):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable}{words} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for name in ("train.py", "eval.py", "benchmark.py", "configs", "vae_jax", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def shortened(command: str, folder: pathlib.Path) -> str:
    """The command on the reader's images, with few steps of few images."""
    for place in PLACES:
        command = command.replace(place, str(folder / place.strip("~/")))
    if "benchmark.py" in command:
        return f"{command} --rounds=2 --seconds=0.01"
    if "train" in command and "--explain" not in command:
        return f"{command} {' '.join(SHORTER)}"
    return command


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(map(runs, commands(page)))], ids=lambda page: page.name
)
def test_every_command_runs(page: pathlib.Path, reader: pathlib.Path):
    """Short, in a shell; those of the page of pods with four virtual devices."""
    environment = os.environ | {
        "PATH": f"{reader}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    if page.name == "pods.md":
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    every = [command for command in commands(page) if runs(command)]
    if page.name == "evaluate.md":
        every.insert(0, "python train.py --config=digits --workdir=runs/digits")
    if page.name == "library.md":
        every = [
            line.replace(" classifier.jax", " runs/digits/export/classifier.jax") for line in every
        ]
    for command in every:
        done = subprocess.run(
            ["bash", "-c", shortened(command, reader)],
            cwd=reader,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


# --- what the pages name -------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page: pathlib.Path):
    text = "\n".join(commands(page))
    for path in re.findall(r"configs/\w+\.py|launch/[\w.]+", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert f"\n{target}:" in makefile, target


def test_the_recipes_name_what_exists():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"run: make (\w+)", workflow)
    assert targets == ["test", "docs"] and all(f"\n{name}:" in makefile for name in targets)
    pages = (ROOT / ".readthedocs.yaml").read_text()
    for name in re.findall(r"(?:requirements|configuration): (\S+)", pages):
        assert (ROOT / name).is_file(), name
    image = (ROOT / "Dockerfile").read_text()
    assert "requirements.lock" in image and 'ENTRYPOINT ["vae-jax"]' in image


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: pathlib.Path):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_paths_of_architecture_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    paths = re.findall(r"`((?:vae_jax|benchmarks|docs|launch|configs)/[\w./]*)`", text)
    assert len(paths) > 40
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 900
