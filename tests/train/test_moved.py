"""A run finds its images, its loss and its nets from any directory, and after they have moved."""

import importlib
import json

import numpy as np
import pytest

from tests.data.common import folder_of_images
from tests.processes import one_line, silent
from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.train import loop
from vae_jax.train import run as run_lib

LOSS = """
import jax.numpy as jnp
from vae_jax.objectives import Terms

def loss(model, params, batch, keys, *, scale=1.0):
    d = model.draw(params, batch["image"], keys)
    elbo = d.log_px - d.kl.sum(-1)
    return Terms(loss=-scale * elbo, elbo=elbo)
"""


def tiny(name, **fields):
    c = config_lib.default()
    c.steps = c.eval.every = c.log_every = 20
    c.batch = 8
    c.latent = 2
    c.mesh.data = 1
    c.data.name = name
    c.data.size = 8
    c.encoder = config_lib.call("encoder", "mlp", widths=(4,))
    c.decoder = config_lib.call("decoder", "mlp", widths=(4,))
    for field, value in fields.items():
        config_lib.set_field(c, field, value)
    return c


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a folder of images and the same images as arrays."""
    folder = tmp_path / "here"
    folder_of_images(folder / "images", {"dark": 8, "bright": 8})
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (40, 8, 8), np.uint8))
    text = (
        "import numpy as np\n\ndef get():\n    return dict(np.load(__file__[:-7] + 'images.npz'))\n"
    )
    (folder / "mine.py").write_text(text)
    (folder / "loss.py").write_text(LOSS)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["folder:images", "npz:images.npz", "mine:get"])
def test_relative_paths_are_found_from_another_directory(here, tmp_path, monkeypatch, name):
    c = tiny(name)
    assert loop.train(c, str(tmp_path / "run"), silent)
    assert c.data.name == name, "the caller's config stays as it is"
    monkeypatch.chdir(tmp_path)
    assert run_lib.restore(str(tmp_path / "run"), say=silent).meta["step"] == 20
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["name"]
    assert str(here) in kept


def moved(here, workdir, old, new):
    """The error of a run whose file has moved."""
    (here / old).rename(here / new)
    with pytest.raises(UserError) as error:
        run_lib.restore(workdir, say=silent)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("folder:images", "images", "photos"),
        ("npz:images.npz", "images.npz", "other.npz"),
        ("mine.py:get", "mine.py", "ours.py"),
    ],
)
def test_a_flag_says_where_the_images_are_now(here, tmp_path, name, old, new):
    workdir = str(tmp_path / "run")
    assert loop.train(tiny(name), workdir, silent)
    if name.startswith("mine"):  # the function's own file moves, the arrays beside it stay
        text = (here / old).read_text().replace("__file__[:-7]", repr(f"{here}/"))
        (here / old).write_text(text)
    message = moved(here, workdir, old, new)
    assert message.startswith("data.name=") and f"{here}/{old}" in message
    assert "--data_path=PATH says where" in message
    files = run_lib.Files(data_path=new)
    assert run_lib.restore(workdir, files=files, say=silent).meta["step"] == 20
    c = tiny(name.replace(old, new))
    assert loop.train(c, workdir, silent), "training goes on with them"
    assert run_lib.restore(workdir, say=silent).meta["step"] == 20, "and remembers the place"


def test_other_images_are_refused_unless_a_person_accepts_them(here, tmp_path):
    workdir = str(tmp_path / "run")
    c = tiny("folder:images")
    assert loop.train(c, workdir, silent)
    folder_of_images(here / "more", {"dark": 8, "bright": 9})
    files = {"data_path": "more"}
    with pytest.raises(UserError, match=r"changed since .*--accept_changed_data if you mean it"):
        run_lib.restore(workdir, files=run_lib.Files(**files), say=silent)
    lines = []
    accepted = run_lib.Files(accept_changed=True, **files)
    run_lib.restore(workdir, files=accepted, say=lines.append)
    assert len(lines) == 1 and lines[0].endswith("; accepted")
    c.data.name = "folder:more"
    with pytest.raises(UserError, match="changed since it was trained"):
        loop.train(c, workdir, silent)
    assert loop.train(c, workdir, silent, accept_changed=True)
    run_lib.restore(workdir, say=silent)


def test_an_own_loss_is_found_and_may_move_but_not_change(here, tmp_path, monkeypatch):
    workdir = str(tmp_path / "run")
    c = tiny("digits")
    c.objective = config_lib.call("objective", "loss.py:loss", scale=2.0)
    assert loop.train(c, workdir, silent)
    monkeypatch.chdir(tmp_path)
    run_lib.restore(workdir, say=silent)
    (here / "other").mkdir()
    message = moved(here, workdir, "loss.py", "other/loss.py")
    assert "objective.name=" in message and "--code_path=FOLDER says where" in message
    files = run_lib.Files(code_path=str(here / "other"))
    assert run_lib.restore(workdir, files=files, say=silent).meta["step"] == 20
    (here / "changed").mkdir()
    (here / "changed" / "loss.py").write_text(LOSS + "# another\n")
    with pytest.raises(UserError, match=r"objective\.name=.*: text .* -> "):
        run_lib.restore(workdir, files=run_lib.Files(code_path=f"{here}/changed"), say=silent)


def test_without_data_json_other_images_are_another_config(here, tmp_path):
    workdir = str(tmp_path / "run")
    c = tiny("folder:images")
    assert loop.train(c, workdir, silent)
    (tmp_path / "run" / "data.json").unlink()
    assert loop.train(c, workdir, silent)
    (tmp_path / "run" / "data.json").unlink()
    folder_of_images(here / "more", {"dark": 8, "bright": 9})
    c.data.name = "folder:more"
    with pytest.raises(UserError, match=r"another config \(data\.name: .*images -> .*more\)"):
        loop.train(c, workdir, silent)


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (["--data_path=none"], r"data_path=none: no such file or folder"),
        (["--code_path=none"], r"code_path=none: the run has no loss or net of a file"),
    ],
)
def test_flags_that_cannot_be_meant_are_one_line(here, tmp_path, flags, pattern):
    workdir = str(tmp_path / "run")
    assert loop.train(tiny("folder:images"), workdir, silent)
    run = importlib.import_module("eval").run
    one_line(run, ["eval.py", f"--workdir={workdir}", *flags], pattern)


def test_data_of_a_name_have_no_path(tmp_path):
    run = importlib.import_module("train").run
    argv = ["train.py", f"--workdir={tmp_path}", f"--data_path={tmp_path}"]
    one_line(run, argv, r"data_path=.*: data\.name=digits has no path to images; want none")
