"""Boxes and classes of 1 to 3 MNIST digits by a dense head on a convolutional encoder.

    python -m vae_jax.data prepare mnist --data_dir=~/data
    python train.py --config=configs/detect_mnist.py --data_dir=~/data --workdir=runs/detect_mnist
    python eval.py --workdir=runs/detect_mnist --tasks=scenes

That is the encoder from scratch. With the encoder of a VAE of the same scenes:
--config.init_from=RUN, and as a constant --config.model.frozen=True besides. Fewer scenes with
boxes: --config.data.name=scenes:mnist+boxes+train=1000.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "scenes:mnist+boxes"
    c.steps = 6000
    c.batch = 64
    c.latent = 64
    c.model = config.call("model", "detector", grid=8, widths=(128, 128))
    widths = (32, 64, 64)
    c.encoder = config.call("encoder", "conv", widths=widths, strides=(2, 2, 2), dense=128)
    c.decoder = config.call("decoder", "none")
    c.objective = config.call("objective", "detection")
    c.optim.lr = 1e-3
    c.optim.warmup = 200
    c.optim.ema = 0.995
    c.eval.every = 500
    c.log_every = 100
    return c
