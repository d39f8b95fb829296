"""scikit-learn's 8x8 digits: a VAE that also classifies. The default; embedded, no download.

python train.py --config=configs/digits.py --workdir=runs/digits

Under a minute on two CPU cores; figures and device: results/digits.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.steps = 3000
    c.batch = 128
    c.steps_per_call = 20
    c.unroll = False
    c.latent = 16
    c.encoder = config.call("encoder", "mlp", widths=(256, 256))
    c.decoder = config.call("decoder", "mlp", widths=(256, 256))
    c.classifier = config.call("classifier", "mlp", widths=(128,))
    c.objective = config.call("objective", "joint", gamma=50.0)
    c.data.shift = 1
    c.optim.lr = 2e-3
    c.optim.warmup = 200
    c.optim.ema = 0.995
    c.optim.weight_decay = 0.01
    c.eval.every = 500
    c.log_every = 100
    return c
