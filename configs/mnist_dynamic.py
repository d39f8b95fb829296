"""MNIST, binarised anew at each step: the MLP 784-200-200-z50 of Burda et al. 2016, for five
minutes.

    python train.py --config=configs/mnist_dynamic.py --data_dir=~/data --workdir=runs/mnist_dynamic

Figures, time and device: results/mnist_dynamic.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.steps = 50_000
    c.batch = 100
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 50
    c.encoder = config.call("encoder", "mlp", widths=(200, 200), activation="tanh")
    c.decoder = config.call("decoder", "mlp", widths=(200, 200), activation="tanh")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.optim.lr = 2e-3
    c.optim.warmup = 1000
    c.optim.ema = 0.999
    c.eval.every = 5000
    c.log_every = 1000
    c.eval.iw_k = 1000
    return c
