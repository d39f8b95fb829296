"""Attend, infer, repeat (Eslami et al. 2016, arXiv:1603.08575) on scenes of 0 to 2 MNIST digits.

    python -m vae_jax.data prepare mnist --data_dir=~/data
    python train.py --config=configs/air_mnist.py --data_dir=~/data --workdir=runs/air_mnist
    python eval.py --workdir=runs/air_mnist --tasks=scenes

No label is used. Presences are relaxed in training; --config.objective.name=air_rloo draws them
and takes the score function's gradient.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "scenes:mnist"
    c.steps = 8000
    c.batch = 64
    c.steps_per_call = 20
    c.unroll = False
    c.latent = 20
    c.model = config.call("model", "attend_infer_repeat", window=20, units=256, scale=0.43)
    c.encoder = config.call("encoder", "mlp", widths=(256,))
    c.decoder = config.call("decoder", "mlp", widths=(256,))
    c.likelihood = config.call("likelihood", "gaussian", logvar=-2.4)
    c.objective = config.call("objective", "air")
    c.optim.lr = 1e-3
    c.optim.clip = 100.0
    c.eval.every = 1000
    c.log_every = 100
    c.eval.iw_k = 20
    return c
