"""Tiny models of scenes."""

from typing import Any

import jax

from vae_jax import config, models
from vae_jax.train import program

SIDE = 6


def air_config(**fields: Any) -> Any:
    """Windows that are the whole canvas: where says nothing, so the evidence is an integral."""
    c = config.default()
    c.latent = 1
    c.encoder = config.call("encoder", "mlp", widths=(5,))
    c.decoder = config.call("decoder", "mlp", widths=(5,))
    c.likelihood = config.call("likelihood", "gaussian", logvar=-1.0)
    law = {"steps": 2, "window": SIDE, "units": 4, "scale": 1.0, "spread": 0.0, "present": 0.4}
    c.model = config.call("model", "attend_infer_repeat", **law)
    c.objective = config.call("objective", "air")
    for field, value in fields.items():
        config.set_field(c, field.replace("__", "."), value)
    config.validate(c)
    return c


def build(c: Any, side: int = SIDE, classes: int = 3) -> models.Model:
    return models.build(c, shape=(side, side, 1), levels=256, classes=classes, binary=False)


def moved(model: models.Model, by: float = 0.5) -> Any:
    """Parameters away from where they begin."""

    @program.simple
    def parameters(key: jax.Array) -> Any:
        leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
        rows = []
        for i, leaf in enumerate(leaves):
            rows.append(leaf + by * jax.random.normal(jax.random.fold_in(key, i), leaf.shape))
        return jax.tree.unflatten(tree, rows)

    return parameters(jax.random.key(7))
