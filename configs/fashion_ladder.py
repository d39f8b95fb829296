"""Three dense levels on Fashion-MNIST binarised at each step, to tell what is no garment.

    python train.py --config=configs/fashion_ladder.py --data_dir=~/data --workdir=runs/ladder
    python -m vae_jax.evaluate.ood_benchmark --workdir=runs/ladder --near=mnist --far=textures

Latents of 8, 16 and 8 numbers, as in Havtorn et al. 2021 (arXiv:2102.08248), whose score LLR>k asks
how much the k lowest levels know that the others do not: a low level rebuilds any image, and only
a high one knows garments. Their nets are convolutions and deeper, and they keep levels in use by
free bits, where here KL is warmed up over the first tenth of the run.

Figures, time and device: results/ood_fashion_ladder.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "fashion_mnist"
    c.data.binarize = "dynamic"
    c.steps = 20_000
    c.batch = 128
    c.steps_per_call = 50
    c.unroll = False
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(512, 256, 256), activation="silu")
    c.decoder = config.call("decoder", "ladder", latents=(8, 16, 8), width=256, inner=256)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.warmup.steps = 2000
    c.optim.lr = 1e-3
    c.optim.warmup = 500
    c.optim.ema = 0.999
    c.optim.clip = 200.0
    c.eval.every = 5000
    c.log_every = 1000
    c.eval.iw_k = 100
    return c
