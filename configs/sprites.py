"""A beta-VAE on sprites: five known factors (Higgins et al. 2017; Kim & Mnih 2018).

    python train.py --config=configs/sprites.py --workdir=runs/sprites
    python eval.py --workdir=runs/sprites --tasks=factors

``--config.objective.beta=1`` is the VAE; ``--config.objective.name=beta_tcvae`` and ``factor_vae``
are trained on the same nets. ``--config.data.size=64`` draws 64x64 pixels, as published, with
``--config.data.memory_mb=1`` anew in each step instead of into a cache of 3 GB.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "sprites"
    c.data.validation = 0.02
    c.steps = 50_000
    c.batch = 64
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 10
    c.encoder = config.call("encoder", "mlp", widths=(512, 512))
    c.decoder = config.call("decoder", "mlp", widths=(512, 512, 512), activation="tanh")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo", beta=4.0)
    c.optim.lr = 5e-4
    c.eval.every = 10_000
    c.log_every = 1000
    return c
