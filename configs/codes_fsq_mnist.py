"""Codes of a grid under an autoregressive prior (Mentzer et al. 2024, arXiv:2309.15505), on MNIST
binarised at each step.

    python train.py --config=configs/codes_fsq_mnist.py --data_dir=~/data \
        --workdir=runs/codes_fsq_mnist
    python eval.py --workdir=runs/codes_fsq_mnist --tasks=codes

Five tokens of 1,000 codes each; the prior takes their 20 numbers one after the other. It learns the
codes of the encoder as they are, in the same run: rounding has no gradient of the code's length.
The nets are wider than in configs/codes_mnist.py, so that all parameters are as many.
"""

from ml_collections import ConfigDict

from configs import codes_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = codes_mnist.get_config()
    c.latent = 20
    c.encoder = config.call("encoder", "mlp", widths=(304, 304))
    c.decoder = config.call("decoder", "mlp", widths=(304, 304))
    c.posterior = config.call("posterior", "fsq", grid=(8, 5, 5, 5))
    c.prior = config.call("prior", "autoregressive", grid=(8, 5, 5, 5), hidden=(512,))
    c.warmup.steps = 0
    c.eval.iw_k = 1  # the draw is always the same
    return c
