"""A VDVAE on CIFAR-10 (Child 2021, arXiv:2011.10650: 2.87 bits/dim with 39 million parameters and 45 levels).

    python train.py --config=configs/cifar10_vdvae.py --data_dir=~/data --workdir=runs/cifar10_vdvae

21 levels on grids from 1x1 to 32x32, bfloat16 nets, for one GPU: the levels of a grid are one scan. On a CPU want
--config.decoder.scan=False --config.dtype=float32. Memory for time: --config.remat=full (block by block),
--config.accumulate=4.

Not run to its end yet: no file in results/.
"""

from vae_jax import config


def get_config():
    c = config.default()
    c.data.name, c.data.flip = "cifar10", True
    c.steps, c.batch, c.dtype = 300_000, 128, "bfloat16"
    c.encoder = config.call("encoder", "residual", widths=(256,) * 6, depths=(4, 4, 4, 2, 2, 1), bottleneck=4)
    c.decoder = config.call("decoder", "vdvae", widths=(256,) * 6, depths=(1, 2, 3, 5, 5, 5), bottleneck=4, scan=True)
    c.likelihood = config.call("likelihood", "discretized_mix_logistic", components=10)
    c.objective = config.call("objective", "elbo")
    c.optim.lr, c.optim.warmup, c.optim.ema = 4e-4, 1000, 0.9998
    c.optim.b2, c.optim.weight_decay = 0.9, 0.01
    # VDVAE's 200 and 400 are of a loss in nats per dimension, of which an image has 3,072.
    c.optim.clip, c.optim.skip, c.optim.skip_above = 200.0 * 3072, 50, 400.0 * 3072
    c.eval.every, c.log_every, c.eval.batch, c.eval.iw_k = 5000, 100, 250, 20
    return c
