"""A model of tiny binary images with three classes."""

import jax.numpy as jnp
import numpy as np

from vae_jax import config, models

B = 3
LATENT = 5
SHAPE = (4, 4, 1)
Y = 3
FLOWS = {"iaf": {"hidden": (6,), "context": 4}, "realnvp": {"hidden": (6,), "steps": 2}}
COMPONENTS = {"mixture": {"components": 4}, "vamp": {"components": 4}}


def built(posterior: str, prior: str, classifier: str = "mlp") -> models.Model:
    c = config.default()
    c.latent = LATENT
    c.data.binarize = "static"
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.classifier = config.call("classifier", classifier)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.posterior = config.call("posterior", posterior, **FLOWS.get(posterior, {}))
    c.prior = config.call("prior", prior, **(FLOWS | COMPONENTS).get(prior, {}))
    config.validate(c)
    return models.build(c, shape=SHAPE, levels=17, classes=Y, binary=True)


def images() -> dict:
    """A batch of B examples."""
    x = np.random.default_rng(0).random((B, *SHAPE)) < 0.5
    return {"image": jnp.asarray(x, jnp.float32), "label": jnp.arange(B) % Y, "n": 10}
