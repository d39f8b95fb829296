"""A Vision Transformer as encoder and decoder of a VAE that also classifies, on CIFAR-10.

    python train.py --config=configs/cifar10_vit.py --data_dir=~/data --workdir=runs/cifar10_vit
    python train.py --config=configs/cifar10_vit.py --data_dir=~/data --workdir=runs/vit_20k \
        --config.data.name=cifar10_20k --config.dtype=float32

64 patches of 4x4 pixels. The convolutional one to put beside it: configs/mnist.py with
--config.data.name=cifar10.

Not run to its end yet: no file in results/.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar10"
    c.data.flip = True
    c.data.shift = 2
    c.steps = 40_000
    c.batch = 256
    c.dtype = "bfloat16"
    c.latent = 128
    c.encoder = config.call("encoder", "vit", patch=4, width=192, depth=6, heads=6)
    c.decoder = config.call("decoder", "vit", patch=4, width=192, depth=4, heads=6)
    c.classifier = config.call("classifier", "mlp", widths=(256,))
    c.likelihood = config.call("likelihood", "discretized_logistic")
    c.objective = config.call("objective", "joint", gamma=1000.0)
    c.optim.lr = 5e-4
    c.optim.warmup = 2000
    c.optim.ema = 0.999
    c.optim.clip = 1000.0
    c.optim.weight_decay = 0.05
    c.eval.every = 2000
    c.log_every = 100
    c.eval.iw_k = 20
    return c
