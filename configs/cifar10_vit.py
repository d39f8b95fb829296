"""A Vision Transformer as encoder and decoder of a VAE that also classifies, on CIFAR-10.

    python train.py --config=configs/cifar10_vit.py --data_dir=~/data --workdir=runs/cifar10_vit
    python train.py --config=configs/cifar10_vit.py --data_dir=~/data --workdir=runs/vit_20k \
        --config.data.name=cifar10_20k --config.dtype=float32

64 patches of 4x4 pixels. The convolutional one to put beside it: configs/mnist.py with --config.data.name=cifar10.

Not run to its end yet: no file in results/.
"""

from vae_jax import config


def get_config():
    c = config.default()
    c.data.name, c.data.flip, c.data.shift = "cifar10", True, 2
    c.steps, c.batch, c.dtype = 40_000, 256, "bfloat16"
    c.latent = 128
    c.encoder = config.call("encoder", "vit", patch=4, width=192, depth=6, heads=6)
    c.decoder = config.call("decoder", "vit", patch=4, width=192, depth=4, heads=6)
    c.classifier = config.call("classifier", "mlp", widths=(256,))
    c.likelihood = config.call("likelihood", "discretized_logistic")
    c.objective = config.call("objective", "joint", gamma=1000.0)
    c.optim.lr, c.optim.warmup, c.optim.ema, c.optim.clip = 5e-4, 2000, 0.999, 1000.0
    c.optim.weight_decay = 0.05
    c.eval.every, c.log_every, c.eval.iw_k = 2000, 100, 20
    return c
