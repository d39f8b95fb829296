"""What README and the pages of docs tell a user to type works."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = (
    "--config.steps=40",
    "--config.eval.every=40",
    "--config.log_every=20",
    "--config.optim.warmup=0",
    "--config.eval.iw_k=1",
)


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands(page: pathlib.Path) -> list[str]:
    """The lines of a page's shell blocks."""
    return "\n".join(blocks(page, "sh")).splitlines()


def write_example(page: pathlib.Path, name: str, folder: pathlib.Path) -> None:
    """The block of a page that begins with the file's name, as that file."""
    (source,) = (text for text in blocks(page, "python") if text.startswith(f"# {name}\n"))
    assert len(source.strip().splitlines()) <= 20
    (folder / name).write_text(source)


def run(folder: pathlib.Path, command: list[str]) -> None:
    """Run ``python SCRIPT …`` of a page in another folder."""
    assert command[0] == "python"
    command = [sys.executable, str(ROOT / command[1]), *command[2:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def command_with(page: pathlib.Path, words: str) -> list[str]:
    """The first command of a page that holds these words."""
    return next(line for line in commands(page) if words in line).split()


def test_the_own_loss_of_readme_trains(tmp_path):
    page = ROOT / "README.md"
    write_example(page, "my_loss.py", tmp_path)
    command = command_with(page, "my_loss:hinge_rate")
    run(tmp_path, [*command, f"--config={ROOT}/configs/digits.py", *SHORT])
    assert '"rate": 12.0' in (tmp_path / "runs/mine/config.json").read_text()


def test_the_own_net_data_and_metric_of_the_pages_run(tmp_path):
    nets, data, evaluate = (ROOT / f"docs/{name}.md" for name in ("nets", "data", "evaluate"))
    write_example(nets, "my_nets.py", tmp_path)
    write_example(data, "my_data.py", tmp_path)
    write_example(evaluate, "my_metrics.py", tmp_path)
    command = command_with(nets, "my_nets:Encoder")
    command += [flag for flag in command_with(data, "my_data:stripes") if "data.name" in flag]
    workdir = "--workdir=runs/digits"  # as the page of evaluation calls it; the last flag wins
    run(tmp_path, [*command, workdir, f"--config={ROOT}/configs/digits.py", *SHORT])
    config = (tmp_path / "runs/digits/config.json").read_text()
    assert '"width": 128' in config and '"name": "my_data:stripes"' in config
    run(tmp_path, command_with(evaluate, "my_metrics.py:mean_pixel"))
    assert '"mean_pixel"' in (tmp_path / "runs/digits/metrics.json").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page):
    text = "\n".join(commands(page))
    for path in re.findall(r"configs/\w+\.py|launch/[\w.]+", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.M):
        assert f"\n{target}:" in makefile, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
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
