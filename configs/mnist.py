"""MNIST in 256 grey levels: a convolutional VAE that also classifies.

    python -m vae_jax.data prepare mnist --data_dir=~/data
    python train.py --config=configs/mnist.py --data_dir=~/data --workdir=runs/mnist

Figures, time and device: results/mnist.json. XLA_FLAGS as in its command: XLA's own
convolutions on CPU were the faster ones there.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.shift = 2
    c.steps = 6000
    c.batch = 128
    c.latent = 32
    c.encoder = config.call("encoder", "conv", widths=(32, 64), dense=256)
    c.decoder = config.call("decoder", "conv", widths=(64, 32), dense=256)
    c.classifier = config.call("classifier", "mlp", widths=(256,))
    c.objective = config.call("objective", "joint", gamma=1000.0)
    c.optim.lr = 2e-3
    c.optim.warmup = 500
    c.optim.ema = 0.999
    c.optim.weight_decay = 0.02
    c.eval.every = 1000
    c.log_every = 100
    c.eval.iw_k = 20
    return c
