"""The CNN baseline on Fashion-MNIST: encoder and classifier of fashion_mnist.py, cross-entropy
only.

    python train.py --config=configs/fashion_cnn.py --data_dir=~/data --workdir=runs/fashion_cnn

Figures, time and device: results/fashion_cnn.json.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = fashion_mnist.get_config()
    c.decoder = config.call("decoder", "none")
    c.objective = config.call("objective", "supervised")
    return c
