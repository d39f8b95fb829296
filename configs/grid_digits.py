"""A grid of cells on scenes of 1 to 9 of scikit-learn's digits: many objects without a label.

    python train.py --config=configs/grid_digits.py --workdir=runs/grid_digits
    python eval.py --workdir=runs/grid_digits --tasks=scenes

Each of 6x6 cells has at most one object. The small sister of configs/grid_mnist.py: no download.
Attend, infer, repeat on the same scenes: configs/air_digits.py with --config.model.steps=9
--config.model.scale=0.17 and this file's data.name.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    law = "counts+least=1+most=9+size=36"
    c.data.name = f"scenes:digits+{law}+train=6000+validation=300+test=1000"
    c.steps = 4000
    c.batch = 64
    c.latent = 8
    c.model = config.call("model", "grid", window=8, units=64, scale=0.17)
    c.encoder = config.call("encoder", "conv", widths=(32, 64), strides=(2, 3), dense=1)
    c.decoder = config.call("decoder", "mlp", widths=(64,))
    c.likelihood = config.call("likelihood", "gaussian", logvar=-3.0)
    c.objective = config.call("objective", "air")
    c.optim.lr = 1e-3
    c.optim.clip = 50.0
    c.eval.every = 250
    c.log_every = 100
    c.eval.iw_k = 20
    return c
