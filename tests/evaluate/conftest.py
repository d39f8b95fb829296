"""A trained run for the tests of evaluation."""

import jax
import numpy as np
import pytest

from vae_jax import config
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules
from vae_jax.train import loop, step
from vae_jax.train import run as workdir


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, workdir.Setup, dict]:
    """A joint VAE on the digits 0 to 7, and what is restored of it."""
    folder = str(tmp_path_factory.mktemp("runs") / "open")
    c = config.load("configs/digits.py")
    for part in ("encoder", "decoder"):
        c[part] = config.call(part, "mlp", widths=(64,))
    c.latent = 8
    c.data.hold_out = (8, 9)
    c.data.shift = 0
    c.steps = 400
    c.eval.every = 400
    c.log_every = 200
    c.optim.warmup = 20
    c.eval.iw_k = 2
    c.mesh.data = 1
    loop.train(c, folder)
    s, state, _ = workdir.restore(folder, say=lambda _: None)
    return folder, s, jax.tree.map(np.asarray, step.averaged(state))


@pytest.fixture(scope="session")
def subject(trained: tuple[str, workdir.Setup, dict]) -> Subject:
    """The trained run on one device."""
    _, s, params = trained
    mesh = rules.make_mesh(s.c.mesh, jax.devices()[:1])
    return Subject(s.c, s.model, params, s.dataset, mesh)
