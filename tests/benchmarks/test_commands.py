"""Every module that the command of a published result names exists."""

import ast
import json
import pathlib
import re

import pytest

from benchmarks import common
from tests.processes import python
from vae_jax.tools import results

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = sorted((ROOT / "results").glob("*.json"))
MEASUREMENTS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)


def source_file(command: str) -> str:
    """The file that a command runs: its script, or the file of ``-m MODULE``."""
    program = re.search(r"python (?:-m ([\w.]+)|(\S+\.py))", command)
    assert program, command
    module, script = program.groups()
    return script or module.replace(".", "/") + ".py"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_command_of_a_result_names_a_module_that_exists(path: pathlib.Path) -> None:
    result = json.loads(path.read_text())
    source = ROOT / source_file(result.get("command_now", result["command"]))
    assert source.is_file(), f"{path.name}: {source} is gone; want it in command_now"
    assert '__name__ == "__main__"' in source.read_text()


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_says_its_own_command(name: str) -> None:
    """The docstring of a module names the module itself, with the flags that its parser has."""
    text = (ROOT / "benchmarks" / f"{name}.py").read_text()
    doc = ast.get_docstring(ast.parse(text))
    doc = re.sub(r"'[^'\n]*'", "", doc)  # a command within a command has flags of its own
    commands = re.findall(rf"python -m benchmarks\.{name}( .+)", doc)
    commands = [command.partition(" -- ")[0] for command in commands]
    assert commands
    source = text + (ROOT / "benchmarks" / "common.py").read_text()
    for flag in re.findall(r"--\w+", " ".join(commands)):
        assert f'"{flag}"' in source, f"{name} has no {flag}"


def test_bad_input_of_a_measurement_is_one_line(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "quality.json"
    words = [f"--runs={tmp_path / 'none'}", f"--features={tmp_path / 'none'}", f"--out={out}"]
    done = python("-m", "benchmarks.quality", *words)
    assert done.returncode == 2 and not out.exists()
    (line,) = done.stderr.splitlines()
    assert line == f"error: workdir={tmp_path / 'none'}: no run in it (no config.json)"


@pytest.mark.parametrize("name", [name for name in MEASUREMENTS if name != "kill_resume"])
def test_every_measurement_says_bad_input_in_one_line(name: str) -> None:
    text = (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert text.endswith('if __name__ == "__main__":\n    common.script(main)\n')


def test_a_measurement_goes_on_with_figures_of_its_own_commit_only(tmp_path: pathlib.Path) -> None:
    recorder = common.Recorder("modes", str(tmp_path / "modes.json"))
    assert recorder.earlier() == {}
    figures = {"gap": results.figure(1e-7, "relative")}
    recorder.write(None, figures)
    assert recorder.earlier() == figures
    content = json.loads((tmp_path / "modes.json").read_text())
    (tmp_path / "modes.json").write_text(json.dumps(content | {"commit": "0" * 40}))
    assert recorder.earlier() == {}
