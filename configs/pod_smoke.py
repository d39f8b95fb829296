"""imagenet64's network on synthetic images that live on the device: what a pod does when no data
can hold it up.

    python train.py --config=configs/pod_smoke.py --workdir=runs/pod_smoke

Not run here.
"""

from ml_collections import ConfigDict

from configs import imagenet64
from vae_jax import config


def get_config() -> ConfigDict:
    c = imagenet64.get_config()
    c.data.name = "synthetic"
    c.data.size = 64
    c.data.validation = 0.25
    c.data.flip = False
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "joint", gamma=100.0)
    c.steps = 500
    c.optim.warmup = 50
    c.warmup.steps = 0
    c.eval.every = 250
    c.log_every = 50
    c.eval.iw_k = 2
    return c
