"""A trained run for the tests of evaluation."""

import jax
import numpy as np
import pytest

from vae_jax import config
from vae_jax.train import loop, step
from vae_jax.train import run as workdir


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A joint VAE on the digits 0 to 7, and what is restored of it."""
    folder = str(tmp_path_factory.mktemp("runs") / "open")
    c = config.load("configs/digits.py")
    c.encoder, c.decoder = (
        config.call(part, "mlp", widths=(64,)) for part in ("encoder", "decoder")
    )
    c.latent, c.data.hold_out, c.data.shift = 8, (8, 9), 0
    c.steps, c.eval.every, c.log_every, c.optim.warmup, c.eval.iw_k = 400, 400, 200, 20, 2
    c.mesh.data = 1
    loop.train(c, folder)
    s, state, _ = workdir.restore(folder, say=lambda _: None)
    return folder, s, jax.tree.map(np.asarray, step.averaged(state))
