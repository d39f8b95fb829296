"""A finished run of digits that the tests of the loop and of checkpoints share."""

import pathlib
import shutil

import pytest

from benchmarks import kill_resume
from tests.processes import python


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """(The folder of a finished run of 200 steps, what it printed)."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = python(*kill_resume.COMMAND, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture
def workdir(finished: tuple[pathlib.Path, str], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished[0], tmp_path / "run")
