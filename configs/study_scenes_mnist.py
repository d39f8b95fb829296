"""configs/study_scenes.py on MNIST, with the convolutional encoder of configs/detect_mnist.py.

    python -m vae_jax.data prepare mnist --data_dir=~/data
    python -m vae_jax.tools.detection_study --config=configs/study_scenes_mnist.py \
        --data_dir=~/data --workdir=runs/study_scenes_mnist

No figures of it are published yet.
"""

from ml_collections import ConfigDict

from configs import detect_mnist, study_scenes
from vae_jax import config
from vae_jax.tools.study_plan import Study


def nets(steps: int) -> ConfigDict:
    """The VAE of the scenes on the detector's encoder."""
    c = detect_mnist.get_config()
    c.steps = steps
    c.eval.every = c.log_every = steps // 2
    c.data.name = study_scenes.scenes("mnist", study_scenes.SCENES)
    c.model = config.call("model", "vae")
    c.decoder = config.call("decoder", "conv", widths=(64, 64, 32), dense=128)
    c.objective = config.call("objective", "elbo")
    return c


def get_study() -> Study:
    return study_scenes.study("Detection on MNIST", nets, patch=8, grid=8, steps=(2000, 1000))
