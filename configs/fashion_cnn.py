"""The CNN baseline on Fashion-MNIST: encoder and classifier of fashion_mnist.py, cross-entropy only."""

from configs import fashion_mnist
from vae_jax import config


def get_config():
    c = fashion_mnist.get_config()
    c.decoder = config.call("decoder", "none")
    c.objective = config.call("objective", "supervised")
    return c
