"""A VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) on Fashion-MNIST in 256 grey levels.

    python train.py --config=configs/vq_fashion.py --data_dir=~/data --workdir=runs/vq_fashion
    python eval.py --workdir=runs/vq_fashion --tasks=codes,clusters

16 tokens of 256 codes each, 8 numbers a code. The bound counts the bits of the codes under a
learned distribution of each token.

Figures of 10,000 steps, time and device: results/vq_fashion.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "fashion_mnist"
    c.steps = 20_000
    c.batch = 64
    c.latent = 128
    c.encoder = config.call("encoder", "conv")
    c.decoder = config.call("decoder", "conv")
    c.model = config.call("model", "vq", codes=256, width=8)
    c.objective = config.call("objective", "vq")
    c.eval.every = 2000
    c.log_every = 500
    c.eval.select = "elbo"  # the loss has distances of the codebook in it
    c.eval.iw_k = 1  # the draw is always the same
    return c
