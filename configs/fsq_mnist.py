"""Finite scalar quantisation (Mentzer et al. 2024, arXiv:2309.15505) on dynamic MNIST.

    python train.py --config=configs/fsq_mnist.py --data_dir=~/data --workdir=runs/fsq_mnist
    python eval.py --workdir=runs/fsq_mnist --tasks=codes

Five tokens of 1,000 codes each, (8, 5, 5, 5) values of four numbers. The encoder has no noise, so
the rate is the code's length under the prior: a learned distribution of each number.
"""

from ml_collections import ConfigDict

from configs import categorical_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = categorical_mnist.get_config()
    c.latent = 20
    c.posterior = config.call("posterior", "fsq", grid=(8, 5, 5, 5))
    c.prior = config.call("prior", "grid", grid=(8, 5, 5, 5), learn=True)
    c.warmup.steps = 0
    c.eval.iw_k = 1  # the draw is always the same
    return c
