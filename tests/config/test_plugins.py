"""A user's own file: imported once, with its helpers; its keywords are fields that JSON holds."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.processes import silent
from vae_jax import cli, config
from vae_jax.config import UserError
from vae_jax.train import loop
from vae_jax.train import run as run_lib

ROOT = pathlib.Path(__file__).parents[2]
LOSS = """from __future__ import annotations
import dataclasses, pathlib
import numpy as np
from vae_jax.objectives import Terms
{imports}

pathlib.Path(__file__).with_name("imports.txt").open("a").write("imported\\n")

@dataclasses.dataclass
class Weights:
    rate: float = 1.0

def loss(model, params, batch, key, *, {keywords}):
    {body}
    x = batch["image"]
    z = x.sum((1, 2, 3)) * sum(scales) * Weights().rate
    return Terms(loss=z + 0 * params["encoder"]["Layer_0"]["dense"]["bias"].sum(), elbo=-z)
"""
SHORT = (
    *("--config.steps=20", "--config.eval.every=20", "--config.log_every=20"),
    *("--config.eval.iw_k=1", "--config.optim.warmup=0"),
)


def write_loss(folder, keywords="scales=(1.0, 2.0)", imports="", body="pass"):
    folder.mkdir(exist_ok=True)
    path = folder / "my_loss.py"
    path.write_text(LOSS.format(keywords=keywords, imports=imports, body=body))
    return f"{path}:loss"


def objective(name, **flags):
    pairs = [("objective.name", name), *((f"objective.{k}", v) for k, v in flags.items())]
    return cli.apply(config.default(), pairs).objective


def test_a_file_is_imported_once_under_a_name_of_its_own(tmp_path, monkeypatch):
    name = write_loss(tmp_path)
    functions = {config.resolve("objective", name) for _ in range(3)}
    monkeypatch.chdir(tmp_path)
    functions.add(config.resolve("objective", "my_loss:loss"))
    (function,) = functions
    assert (tmp_path / "imports.txt").read_text() == "imported\n"
    assert sys.modules[function.__module__].loss is function


@pytest.mark.parametrize(
    "imports", ["import my_helper_of_losses", "from . import my_helper_of_losses"]
)
def test_helpers_beside_the_file_are_imported_from_any_folder(tmp_path, imports):
    folder = tmp_path / imports.split()[0]
    name = write_loss(folder, imports=imports)
    (folder / "my_helper_of_losses.py").write_text("FACTOR = 2\n")
    assert callable(config.resolve("objective", name))


def test_a_linen_module_with_postponed_annotations_is_an_encoder(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(
        "from __future__ import annotations\nimport flax.linen as nn\n\n"
        "class Net(nn.Module):\n    width: int = 8\n    dtype: object = None\n\n"
        "    @nn.compact\n    def __call__(self, x):\n        return nn.Dense(self.width)(x)\n"
    )
    section = config.call("encoder", f"{path}:Net", width=4)
    assert section.to_dict() == {"name": f"{path}:Net", "width": 4}
    assert config.build("encoder", section).width == 4


def test_two_files_of_one_name_are_two_modules(tmp_path):
    one, other = (write_loss(tmp_path / name) for name in "ab")
    assert config.resolve("objective", one) is not config.resolve("objective", other)


def test_what_a_keyword_holds_survives_json(tmp_path):
    numbers = "rate=np.float32(0.5), count=np.int64(3), start=None"
    keywords = f"scales=(1.0, 2.0), {numbers}, names=('a', 'b')"
    name = write_loss(tmp_path, keywords)
    c = config.default()
    c.objective = objective(name, start="0.25", scales="(3,)")
    tree = json.loads(json.dumps(config.to_json(c)))
    values = {"rate": 0.5, "count": 3, "start": 0.25, "scales": (3.0,), "names": ("a", "b")}
    for section in (c.objective, config.from_json(tree).objective):
        assert section.to_dict() == {"name": name, **values}
        assert all(type(section[key]) is type(value) for key, value in values.items())
    assert config.differences(c, config.from_json(tree)) == []


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ("rate", r"objective\.rate: the keyword has no default; want one, such as rate=1\.0"),
        ("table=np.zeros(2)", r"table=\[0\. 0\.\]: a ndarray; want a number, a word or a tuple"),
        ("table={}", r"table=\{\}: a dict; want a number, a word or a tuple"),
    ],
)
def test_a_keyword_that_a_config_cannot_hold_is_one_line(tmp_path, keywords, message):
    with pytest.raises(UserError, match=message):
        objective(write_loss(tmp_path, keywords))


def test_a_list_default_is_a_tuple_in_training_and_evaluation(tmp_path):
    c = config.default()
    c.objective = objective(write_loss(tmp_path, "scales=[1.0, 2.0]"))
    assert c.objective.scales == config.from_json(config.to_json(c)).objective.scales == (1.0, 2.0)


def test_numbers_of_numpy_in_a_config_file_survive_json():
    c = config.default()
    c.objective = config.call("objective", "elbo", beta=np.float32(0.5))
    assert config.from_json(config.to_json(c)).objective.beta == 0.5


def train(tmp_path, *flags, **variables):
    """``train.py`` from a folder that holds neither the code nor the loss."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, f"{ROOT}/train.py", f"--config={ROOT}/configs/digits.py"]
    return subprocess.run(
        [*command, "--workdir=run", *SHORT, *flags],
        cwd=elsewhere,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=600,  # without jit it takes minutes on a busy machine
    )


def test_a_loss_with_a_tuple_trains_and_is_evaluated_in_one_import(tmp_path):
    """``scales`` must be a tuple wherever the loss runs, and its file runs once."""
    name = write_loss(tmp_path, body="assert isinstance(scales, tuple)")
    done = train(tmp_path, f"--config.objective.name={name}", "--config.objective.scales=(2.0,)")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imports.txt").read_text() == "imported\n"


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("z", r"returned an array of shape \(3,\); want vae_jax\.objectives\.Terms\(loss="),
        ("(z, {'mean': z})", r"returned a tuple; want vae_jax\.objectives\.Terms\(loss="),
        ("{'loss': z}", r"returned a dict; want vae_jax\.objectives\.Terms\(loss="),
        ("None", r"returned a NoneType; want vae_jax\.objectives\.Terms\(loss="),
        ("Terms(loss=None, elbo=z)", r"returned Terms without a loss"),
        ("Terms(loss=z, extra=[z])", r"Terms\.extra is a list; want a dict of arrays"),
        ("Terms(loss=z, extra={'parts': [z]})", r"Terms\.parts is a list; want an array"),
        (
            "Terms(loss=z, extra={'loss': z})",
            r"Terms\.extra has 'loss'; want a word that is none of",
        ),
        ("Terms(loss=z, extra={'step': z})", r"Terms\.extra has 'step'; want a word"),
        ("Terms(loss=z, extra={3: z, 'a': z})", r"Terms\.extra has 3; want a word"),
        ("Terms(loss=z.astype('int32'))", r"Terms\.loss is int32; want floating point"),
        ("Terms(loss=z.mean())", r"loss has shape \(\); want one number per example"),
        ("Terms(loss=z, labelled=z)", r"labelled: returned an array"),
    ],
)
def test_a_loss_that_returns_no_terms_is_one_line_at_the_start(tmp_path, result, message):
    path = tmp_path / "my_loss.py"
    path.write_text(
        "from vae_jax.objectives import Terms\n\n"
        "def loss(model, params, batch, keys):\n"
        f"    z = batch['image'].sum((1, 2, 3))\n    return {result}\n"
    )
    c = config.default()
    c.objective = objective(f"{path}:loss")
    with pytest.raises(UserError, match=message) as error:
        run_lib.setup(c)
    assert str(error.value).startswith("objective") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("def loss(model, params, batch):", "but too many positional arguments; want def loss"),
        ("def loss(model, params, batch, keys, extra):", "a required argument: 'extra'"),
        ("class loss:", "but too many positional arguments"),
    ],
)
def test_a_loss_of_other_arguments_is_one_line_at_the_start(tmp_path, definition, message):
    path = tmp_path / "my_loss.py"
    path.write_text(f"{definition}\n    pass\n")
    c = config.default()
    c.objective = objective(f"{path}:loss")
    with pytest.raises(UserError, match=message) as error:
        run_lib.setup(c)
    assert str(error.value).startswith("objective.name=") and "\n" not in str(error.value)


def test_a_run_goes_on_with_the_loss_that_it_was_trained_with(tmp_path):
    """A helper beside the loss counts too; a fresh run may begin from the parameters."""
    name = write_loss(tmp_path, imports="import helper_of_a_changed_loss as helper")
    helper = tmp_path / "helper_of_a_changed_loss.py"
    helper.write_text("FACTOR = 2\n")
    c = config.default()
    c.steps = c.eval.every = c.log_every = 20
    c.encoder = config.call("encoder", "mlp", widths=(4,))
    c.objective = objective(name)
    c.mesh.data = 1
    workdir = str(tmp_path / "run")
    assert loop.train(c, workdir, silent)
    for path in (helper, tmp_path / "my_loss.py"):
        text = path.read_text()
        path.write_text(text + "# edited\n")
        for use in (
            lambda: loop.train(c, workdir, silent),
            lambda: run_lib.restore(workdir, say=silent),
        ):
            with pytest.raises(UserError, match=r"objective\.name=.*my_loss\.py:loss: text"):
                use()
        path.write_text(text)
    assert run_lib.restore(workdir, say=silent).meta["step"] == 20
    (tmp_path / "my_loss.py").write_text((tmp_path / "my_loss.py").read_text() + "# edited\n")
    c.init_from = workdir
    assert loop.train(c, str(tmp_path / "fresh"), silent)
    lines = []
    files = run_lib.Files(accept_changed=True)
    assert run_lib.restore(workdir, files=files, say=lines.append).meta["step"] == 20
    assert len(lines) == 1 and lines[0].endswith("; accepted")


@pytest.mark.slow
def test_a_loss_can_be_stepped_through_without_jit(tmp_path):
    """A few steps of training and an evaluation; the loss sees numbers, not tracers."""
    body = "print('traced' if 'Tracer' in type(batch['image']).__name__ else 'numbers')"
    name = write_loss(tmp_path, body=body)
    flags = ["--config.steps_per_call=1", "--config.steps=2", "--config.eval.every=2"]
    flags += ["--config.log_every=1", "--config.mesh.data=1", "--config.encoder.widths=(4,)"]
    flags += ["--config.decoder.widths=(4,)", f"--config.objective.name={name}"]
    done = train(tmp_path, *flags, JAX_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("numbers") >= 3, "two steps and a validation"


def test_an_exception_in_the_file_shows_its_own_line(tmp_path):
    name = write_loss(tmp_path, imports="1 / 0  # while it is imported")
    done = train(tmp_path, f"--config.objective.name={name}")
    assert done.returncode == 1
    assert "my_loss.py" in done.stderr and "1 / 0  # while it is imported" in done.stderr


def test_an_exception_in_the_loss_shows_its_own_line(tmp_path):
    name = write_loss(tmp_path, body="params['none']")
    done = train(tmp_path, f"--config.objective.name={name}")
    assert done.returncode == 1
    assert all(words in done.stderr for words in ("my_loss.py", "params['none']", "KeyError"))


def test_an_exception_in_a_config_file_shows_its_own_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {}['none']\n")
    with pytest.raises(KeyError, match="none") as error:
        config.load(str(path))
    assert error.traceback[-1].path == path
    lines = ("from vae_jax import config", "def get_config():", " c = config.default()")
    path.write_text("\n".join([*lines, " c.optim.lrr = 1"]))
    with pytest.raises(UserError, match=r"mine\.py: line 4: .*lrr"):
        config.load(str(path))


def test_a_file_with_a_syntax_error_is_one_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\ndef f(:\n")
    with pytest.raises(UserError, match=r"objective\.name=.*broken\.py: line 2: "):
        config.resolve("objective", f"{path}:f")
