"""MNIST, binarised anew at each step: the MLP 784-200-200-z50 of Burda et al. 2016, for five minutes.

    python train.py --config=configs/mnist_dynamic.py --data_dir=~/data --workdir=runs/mnist_dynamic

Figures, time and device: results/mnist_dynamic.json.
"""

from vae_jax import config


def get_config():
    c = config.default()
    c.data.name, c.data.binarize = "mnist", "dynamic"
    c.steps, c.batch, c.steps_per_call, c.unroll = 50_000, 100, 50, False
    c.latent = 50
    c.encoder = config.call("encoder", "mlp", widths=(200, 200), activation="tanh")
    c.decoder = config.call("decoder", "mlp", widths=(200, 200), activation="tanh")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.optim.lr, c.optim.warmup, c.optim.ema = 2e-3, 1000, 0.999
    c.eval.every, c.log_every, c.eval.iw_k = 5000, 1000, 1000
    return c
