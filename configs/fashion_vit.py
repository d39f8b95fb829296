"""A Vision Transformer as encoder and decoder of a VAE that also classifies, on Fashion-MNIST,
sized for two CPU cores.

    python train.py --config=configs/fashion_vit.py --data_dir=~/data --workdir=runs/fashion_vit

49 patches of 4x4 pixels, 64 on cifar10_20k. Beside it, for as many FLOPs, the convolutional one,
and both on cifar10_20k:

    python train.py --config=configs/fashion_mnist.py --data_dir=~/data \
        --workdir=runs/fashion_conv --config.steps=7000
    python train.py --config=configs/fashion_vit.py --data_dir=~/data \
        --workdir=runs/cifar10_20k_vit \
        --config.data.name=cifar10_20k --config.steps=1200 --config.eval.every=400
    python train.py --config=configs/fashion_mnist.py --data_dir=~/data \
        --workdir=runs/cifar10_20k_conv \
        --config.data.name=cifar10_20k --config.steps=4000

Figures, time and device: results/fashion_vit.json, fashion_conv.json, cifar10_20k_vit.json and
cifar10_20k_conv.json.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = fashion_mnist.get_config()
    c.encoder = config.call("encoder", "vit", patch=4, width=64, depth=4, heads=2)
    c.decoder = config.call("decoder", "vit", patch=4, width=64, depth=2, heads=2)
    c.steps = 2000
    c.eval.every = 500
    c.optim.lr = 1e-3
    c.optim.clip = 1000.0
    return c
