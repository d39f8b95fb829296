"""The CNN baseline on MNIST: encoder and classifier of configs/mnist.py, cross-entropy only.

    python train.py --config=configs/mnist_cnn.py --data_dir=~/data --workdir=runs/mnist_cnn

Training images are shifted by up to two pixels; --config.data.shift=0 is the same without
augmentation.

Figures, time and device: results/mnist_cnn.json.
"""

from ml_collections import ConfigDict

from configs import mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.decoder = config.call("decoder", "none")
    c.objective = config.call("objective", "supervised")
    return c
