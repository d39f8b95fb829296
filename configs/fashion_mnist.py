"""Fashion-MNIST in 256 grey levels: a convolutional VAE that also classifies.

    python train.py --config=configs/fashion_mnist.py --data_dir=~/data --workdir=runs/fashion_mnist

Figures, time and device: results/fashion_mnist.json.
"""

from configs import mnist


def get_config():
    c = mnist.get_config()
    c.data.name = "fashion_mnist"
    c.data.flip = True
    c.steps, c.eval.every = 5000, 1000
    return c
