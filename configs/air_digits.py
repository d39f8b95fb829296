"""Attend, infer, repeat on scenes of 0 to 2 of scikit-learn's digits: counts without a label.

    python train.py --config=configs/air_digits.py --workdir=runs/air_digits
    python eval.py --workdir=runs/air_digits --tasks=scenes

The small sister of configs/air_mnist.py: no download.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "scenes:digits+train=10000+validation=500+test=1000"
    c.steps = 4000
    c.batch = 64
    c.steps_per_call = 20
    c.unroll = False
    c.latent = 8
    c.model = config.call("model", "attend_infer_repeat", window=8, units=64, scale=0.43)
    c.encoder = config.call("encoder", "mlp", widths=(128,))
    c.decoder = config.call("decoder", "mlp", widths=(64,))
    c.likelihood = config.call("likelihood", "gaussian", logvar=-3.0)
    c.objective = config.call("objective", "air")
    c.optim.lr = 1e-3
    c.optim.clip = 50.0
    c.eval.every = 400
    c.log_every = 100
    c.eval.iw_k = 20
    return c
