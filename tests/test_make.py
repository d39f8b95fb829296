"""The Makefile, as it would run in a folder that also holds files of the user's own."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("tracked", [True, False], ids=["clone", "no git"])
def test_lint_reads_the_files_of_the_project_only(tmp_path: pathlib.Path, tracked: bool):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("train.py", "mine.py"):
        (tmp_path / name).write_text("")
    if tracked:
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        subprocess.run(["git", "add", "train.py"], cwd=tmp_path, check=True)
    command = ["make", "-n", "lint", "VENV=venv", "-o", "venv/.installed-test"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "train.py" in done.stdout
    assert "mine.py" not in done.stdout
