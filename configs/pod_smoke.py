"""imagenet64's network on synthetic images that live on the device: what a pod does when no data can hold it up.

    python train.py --config=configs/pod_smoke.py --workdir=runs/pod_smoke

Not run here.
"""

from configs import imagenet64
from vae_jax import config


def get_config():
    c = imagenet64.get_config()
    c.data.name, c.data.size, c.data.validation, c.data.flip = "synthetic", 64, 0.25, False
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "joint", gamma=100.0)
    c.steps, c.optim.warmup, c.warmup.steps = 500, 50, 0
    c.eval.every, c.log_every, c.eval.iw_k = 250, 50, 2
    return c
