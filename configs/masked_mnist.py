"""A masked autoencoder with the encoder and decoder of configs/mnist.py: no noise, no bound.

    python -m vae_jax.data prepare mnist --data_dir=~/data
    python train.py --config=configs/masked_mnist.py --data_dir=~/data --workdir=runs/masked
    python -m vae_jax.evaluate.layers --workdir=runs/masked

Another run begins with its encoder by --config.init_from=runs/masked. He et al. 2022
(arXiv:2111.06377) mask three quarters of a photograph; half of a digit is left here.
"""

from ml_collections import ConfigDict

from configs import mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", "masked", patch=4, share=0.5)
    return c
