"""SimCLR with the encoder of configs/mnist.py: two views of each image, no decoder.

    python -m vae_jax.data prepare mnist --data_dir=~/data
    python train.py --config=configs/simclr_mnist.py --data_dir=~/data --workdir=runs/simclr
    python -m vae_jax.evaluate.layers --workdir=runs/simclr

Another run begins with its encoder by --config.init_from=runs/simclr. Chen et al. 2020
(arXiv:2002.05709).
"""

from ml_collections import ConfigDict

from configs import mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.decoder = config.call("decoder", "none")
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", "contrastive")
    c.data.shift = 0  # the views are moved
    c.batch = 256  # each image has the others as rivals
    return c
