"""Fashion-MNIST in 256 grey levels: a convolutional VAE that also classifies.

    python train.py --config=configs/fashion_mnist.py --data_dir=~/data --workdir=runs/fashion_mnist

Figures, time and device: results/fashion_mnist.json.
"""

from ml_collections import ConfigDict

from configs import mnist


def get_config() -> ConfigDict:
    c = mnist.get_config()
    c.data.name = "fashion_mnist"
    c.data.flip = True
    c.steps = 5000
    c.eval.every = 1000
    return c
