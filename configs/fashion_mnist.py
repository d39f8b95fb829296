"""Fashion-MNIST in 256 grey levels: a convolutional VAE that also classifies."""

from configs import mnist


def get_config():
    c = mnist.get_config()
    c.data.name = "fashion_mnist"
    c.data.flip = True
    c.steps, c.eval.every = 5000, 1000
    return c
