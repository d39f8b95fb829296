"""What README tells a user to type works."""

import pathlib
import re
import subprocess
import sys


def block(language):
    text = pathlib.Path("README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_own_loss_of_readme_trains(tmp_path):
    (source,) = block("python")
    assert len(source.strip().splitlines()) <= 20
    (tmp_path / "my_loss.py").write_text(source)
    command = next(b for b in block("sh") if "my_loss:hinge_rate" in b).split()
    assert command[:2] == ["python", "train.py"]
    command = [sys.executable, str(pathlib.Path("train.py").resolve()), *command[2:]]
    config = pathlib.Path("configs/digits.py").resolve()
    short = [
        "--config.steps=40",
        "--config.eval.every=40",
        "--config.log_every=20",
        "--config.optim.warmup=0",
    ]
    done = subprocess.run(
        [*command, f"--config={config}", "--config.eval.iw_k=1", *short],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '"rate": 12.0' in (tmp_path / "runs" / "mine" / "config.json").read_text()


def test_commands_name_what_exists():
    text = "\n".join(block("sh"))
    for path in re.findall(r"configs/\w+\.py", text):
        assert pathlib.Path(path).is_file(), path
    targets = re.findall(r"^make (\w+)", text, re.M)
    makefile = pathlib.Path("Makefile").read_text()
    assert targets and all(f"\n{t}:" in makefile for t in targets)
