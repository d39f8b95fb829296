"""Tiny models and configs that several test files share.

Those that ``benchmarks/`` measures too are in :mod:`benchmarks.parity`. Nothing here asks for a
device while it is imported: several processes must have met before.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import stats
from scipy.special import logsumexp

from benchmarks import parity
from vae_jax import config, data, models
from vae_jax.mesh import rules
from vae_jax.train import program

# Relative, over 20 steps: float32 sums in another order.
TRACE_TOLERANCE = 2e-5
STEPS = 12
EVERY = 4


def short(
    devices: int, *, from_host: bool = False, steps: int = STEPS, **fields: Any
) -> ConfigDict:
    """A run of a few seconds.

    One optimiser step per call and plain Adam steps: float32 sums in another order stay small.
    """
    c = parity.small(
        steps=steps,
        log_every=1,
        eval__every=EVERY,
        eval__batch=24,
        eval__iw_k=2,
        mesh__data=devices,
        **fields,
    )
    c.data.on_device_mb = 0 if from_host else 1024
    return c


def lowered(c: ConfigDict) -> tuple[str, str]:
    """The text of a training program before and after XLA, on eight devices."""
    from benchmarks import target

    dataset = data.load(c.data)
    mesh = rules.make_mesh(c.mesh)
    m = models.build_for(c, dataset)
    state, places = program.shapes(c, m, mesh)
    source = target.source_shapes(c, dataset)
    compiled = program.program(c, m, mesh, dataset, state, places, source)
    text = compiled.jitted.lower(*compiled.arguments)
    return text.as_text(), text.compile().as_text()


# --- M2 on 6 binary pixels, whose evidence is known by quadrature ---

SEED = 3
SHAPE = (2, 3, 1)
PIXELS = 6
LABEL = np.array([0, 1, 1, 0, 1])
X = np.random.default_rng(1).integers(0, 2, (5, *SHAPE)).astype(np.float32)


def semi_supervised(**fields: Any) -> ConfigDict:
    """M2 on digits with 60 labels."""
    c = config.default()
    c.data.binarize = "threshold"
    c.data.labels = 60
    c.data.labelled_batch = 40
    c.latent = 8
    c.batch = 40
    c.encoder = config.call("encoder", "mlp", widths=(64,))
    c.decoder = config.call("decoder", "mlp", widths=(64,))
    c.classifier = config.call("classifier", "mlp")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.model = config.call("model", "m2")
    c.objective = config.call("objective", "m2", alpha=20.0)
    c.optim.lr = 3e-3
    c.optim.schedule = "constant"
    c.eval.iw_k = 5
    for field, value in fields.items():
        config.set_field(c, field.replace("__", "."), value)
    config.validate(c)
    return c


def batch_of(
    x: np.ndarray, label: np.ndarray, labelled_x: np.ndarray, labelled_y: np.ndarray
) -> dict[str, Any]:
    """A batch with a labelled stream, which has keys of its own."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), 1), len(labelled_y))
    labelled = {"image": labelled_x, "label": labelled_y, "keys": keys}
    return {"image": x, "label": label, "labelled": labelled}


def m2(kind: str = "m2", labels: int = 2, **sections: ConfigDict) -> tuple[models.Model, Any]:
    """A model of 6 pixels and z of 1 dimension, and its parameters away from where they begin."""
    c = config.default()
    c.latent = 1
    c.encoder = config.call("encoder", "mlp", widths=(4,))
    c.decoder = config.call("decoder", "mlp", widths=(4,))
    c.classifier = config.call("classifier", "mlp")
    c.likelihood = config.call("likelihood", "bernoulli")
    if kind in models.MODELS:
        c.model = config.call("model", kind)
        c.objective = config.call("objective", "m2")
    else:
        c.objective = config.call("objective", kind)
    for section, value in sections.items():
        c[section] = value
    binary = c.likelihood.name == "bernoulli"
    m = models.build(c, shape=SHAPE, levels=256, classes=labels, binary=binary)

    @program.simple
    def parameters(key: jax.Array) -> Any:
        leaves, tree = jax.tree.flatten(m.init(jax.random.key(0)))
        moved = []
        for i, leaf in enumerate(leaves):
            noise = jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
            moved.append(leaf + 0.7 * noise)
        return jax.tree.unflatten(tree, moved)

    return m, parameters(jax.random.key(SEED))


def log_evidence(m: models.Model, params: Any, x_NxP: np.ndarray) -> np.ndarray:
    """log p(x|y) of a tiny model for both labels, Nx2, by quadrature over z.

    x l - log(1 + e^l) is also taken of grey pixels.
    """
    z = np.linspace(-9, 9, 3001)

    @program.simple
    def decode(y: jax.Array) -> jax.Array:
        return m.decode(params, jnp.asarray(z, jnp.float32)[:, None], y)

    log_p_z = stats.norm.logpdf(z) + np.log(z[1] - z[0])
    columns = []
    for y in (0, 1):
        logits = np.asarray(decode(y), np.float64).reshape(len(z), 1, PIXELS)
        log_px = (x_NxP * logits - np.logaddexp(0, logits)).sum(-1)
        columns.append(logsumexp(log_px + log_p_z[:, None], axis=0))
    return np.stack(columns, 1)
