"""The Gaussian VAE of as many parameters as configs/codes_mnist.py, under N(0, I).

    python train.py --config=configs/codes_gaussian_mnist.py --data_dir=~/data \
        --workdir=runs/codes_gaussian_mnist
"""

from ml_collections import ConfigDict

from configs import codes_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = codes_mnist.get_config()
    c.latent = 40
    c.encoder = config.call("encoder", "mlp", widths=(352, 352))
    c.decoder = config.call("decoder", "mlp", widths=(352, 352))
    c.posterior = config.call("posterior", "gaussian")
    c.prior = config.call("prior", "normal")
    return c
