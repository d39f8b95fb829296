"""How many functions of ours lie between ``train.py`` and a layer of a user's net."""

import json
import pathlib

from tests.processes import ROOT, python

MOST = 15
MOST_CLOSURES = 0

# It leaves when the training step is traced first, and writes the functions that called it.
NET = """
import json
import os
import sys

import jax.numpy as jnp
from flax import linen as nn


class Probe(nn.Module):
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        frames = []
        frame = sys._getframe(1)
        while frame is not None:
            frames.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        if any(name == "train_step" for _, name in frames):
            with open(os.environ["FRAMES"], "w") as file:
                json.dump(frames, file)
            raise RuntimeError("a layer that fails")
        return nn.Dense(4)(x.reshape(len(x), -1))
"""


def test_few_functions_lie_between_the_script_and_a_layer(tmp_path, monkeypatch):
    net = tmp_path / "net.py"
    net.write_text(NET)
    path = tmp_path / "frames.json"
    monkeypatch.setenv("FRAMES", str(path))
    workdir = f"--workdir={tmp_path / 'run'}"
    name = f"--config.encoder.name={net}:Probe"
    done = python("train.py", "--config=configs/digits.py", name, workdir)
    assert "a layer that fails" in done.stderr
    names = []
    for file, name in json.loads(path.read_text()):
        file = pathlib.Path(file).resolve()
        if file == ROOT / "train.py" or file.is_relative_to(ROOT / "vae_jax"):
            names.append(f"{file.relative_to(ROOT).as_posix()}:{name}")
    closures = [name for name in names if "<locals>" in name or "<lambda>" in name]
    assert names[-1] == "train.py:<module>"
    assert len(names) <= MOST, names
    assert len(closures) <= MOST_CLOSURES, closures
