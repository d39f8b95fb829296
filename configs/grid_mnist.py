"""A grid of cells on scenes of 1 to 9 small MNIST digits: many objects without a label.

    python -m vae_jax.data prepare mnist --data_dir=~/data
    python train.py --config=configs/grid_mnist.py --data_dir=~/data --workdir=runs/grid_mnist
    python eval.py --workdir=runs/grid_mnist --tasks=scenes

Each of 7x7 cells has at most one object (SPACE's foreground, Lin et al. 2020, arXiv:2001.02407).
Attend, infer, repeat on the same scenes: configs/air_mnist.py with --config.model.steps=9
--config.model.scale=0.17 --config.model.window=10 and this file's data.name.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    law = "counts+least=1+most=9+size=50+scale=40"
    c.data.name = f"scenes:mnist+{law}+train=20000+validation=500+test=2000"
    c.steps = 10_000
    c.batch = 32
    c.latent = 16
    c.model = config.call("model", "grid", window=10, units=128, scale=0.17)
    widths = (32, 64, 64)
    c.encoder = config.call("encoder", "conv", widths=widths, strides=(2, 2, 2), dense=1)
    c.decoder = config.call("decoder", "mlp", widths=(128,))
    c.likelihood = config.call("likelihood", "gaussian", logvar=-2.4)
    c.objective = config.call("objective", "air")
    c.optim.lr = 5e-4
    c.optim.clip = 100.0
    c.eval.every = 1000
    c.log_every = 100
    c.eval.iw_k = 20
    return c
