"""ImageNet at 64x64: a convolutional VAE that is large enough for a pod.

    python -m vae_jax.data prepare imagenet_resized/64x64 --data_dir=~/data       # needs TensorFlow
    python train.py --config=configs/imagenet64.py --data_dir=~/data --workdir=runs/imagenet64

Parameters and optimiser state split over 8 chips of each group: --config.mesh.fsdp=8. Before a pod
is at hand: python benchmark.py --config=configs/imagenet64.py --target=v5e:16x16.

Not run here, so there is no file in results/.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "imagenet_resized/64x64"
    c.data.validation = 0.01
    c.data.flip = True
    c.steps = 250_000
    c.batch = 2048
    c.dtype = "bfloat16"
    c.latent = 512
    c.encoder = config.call(
        "encoder",
        "conv",
        widths=(128, 256, 512, 512),
        strides=(2, 2, 2, 2),
        dense=2048,
    )
    c.decoder = config.call("decoder", "conv", widths=(512, 512, 256, 128), dense=2048)
    c.posterior = config.call("posterior", "gaussian")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 10_000
    c.optim.lr = 1e-3
    c.optim.warmup = 2000
    c.optim.ema = 0.9999
    c.optim.clip = 200.0
    c.optim.weight_decay = 0.01
    c.eval.every = 5000
    c.log_every = 100
    c.eval.batch = 2048
    c.eval.iw_k = 100
    return c
