"""A VAE on statically binarised MNIST (Larochelle's files): two layers of 400 units, z40;
published about 89.9 nats.

    python train.py --config=configs/static_mnist.py --data_dir=~/data --workdir=runs/static_mnist

The figure is that of Rezende & Mohamed 2015 (arXiv:1505.05770, table 3, diagonal covariance),
whose layers of 400 are maxout units over four pieces and whose 500,000 updates are 1,000 epochs;
here they are gated, for 80 epochs with a cosine, and the KL is warmed up.

Figures, time and device: results/static_mnist.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "binarized_mnist"
    c.steps = 40_000
    c.batch = 100
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 40
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(400, 400), activation="gated")
    c.decoder = config.call("decoder", "mlp", widths=(400, 400), activation="gated")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 10_000
    c.optim.name = "adam"
    c.optim.schedule = "cosine"
    c.optim.ema = 0.999
    c.eval.every = 2000
    c.log_every = 500
    c.eval.iw_k = 200
    return c
