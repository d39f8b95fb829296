"""What features are worth for detection, on scenes of scikit-learn's digits: five arms on one
encoder x scenes with boxes x seeds.

    python -m vae_jax.tools.detection_study --config=configs/study_scenes.py \
        --workdir=runs/study_scenes

The VAE and the masked autoencoder learn from 10,000 scenes without their boxes; a detector begins
with their encoder and learns from the first 100 or 1,000 of these or all, with boxes. *Frozen*: the
head learns alone. The sixth arm, which no box teaches, is ``vae_jax.evaluate.sliding``.
``study`` makes the same table of other nets and data: configs/study_scenes_mnist.py.

Figures: results/study_scenes.json.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import digits
from vae_jax import config
from vae_jax.tools.study_plan import Method, Run, Study

SCENES = 10_000  # for training, with or without boxes
TEST = 1_000
STEPS = 1_000


def scenes(data: str, train: int, test: int = TEST) -> str:
    """The name of the scenes of a data set."""
    return f"scenes:{data}+boxes+train={train}+validation=200+test={test}"


def nets(steps: int = STEPS) -> ConfigDict:
    """The VAE of the scenes, without a classifier."""
    c = digits.get_config()
    c.steps = steps
    c.eval.every = c.log_every = max(20, steps // 2)
    c.batch = 64
    c.data.name = scenes("digits", SCENES)
    c.data.shift = 0
    c.latent = 64
    # Boxes want a map of cells: on the dense encoder of configs/digits.py a detector finds none.
    c.encoder = config.call("encoder", "conv", widths=(32, 64), strides=(1, 3), dense=128)
    c.unroll = True
    c.steps_per_call = 1
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", "elbo")
    c.optim.warmup = min(200, steps // 2)
    c.optim.weight_decay = 0.0  # which would move a frozen encoder
    return c


def masked(c: ConfigDict, patch: int) -> ConfigDict:
    """The masked autoencoder of the same nets."""
    c.objective = config.call("objective", "masked", patch=patch)
    return c


def detector(c: ConfigDict, canvases: int, frozen: bool, grid: int) -> ConfigDict:
    """A dense head on the encoder, and this many scenes with boxes."""
    c.decoder = config.call("decoder", "none")
    c.model = config.call("model", "detector", grid=grid, widths=(64,), frozen=frozen)
    c.objective = config.call("objective", "detection")
    c.data.name = c.data.name.replace(f"train={SCENES}", f"train={canvases}")
    return c


def study(
    title: str,
    make: Callable[[int], ConfigDict],
    patch: int,
    grid: int,
    steps: tuple[int, int] = (STEPS, STEPS),
    **changes: object,
) -> Study:
    """The table of five arms; ``make(steps)`` is the VAE, ``steps`` are its and a detector's."""
    pretraining, detecting = steps

    def arm(frozen: bool) -> Callable[[int], ConfigDict]:
        return lambda canvases: detector(make(detecting), canvases, frozen, grid)

    runs = {
        "vae": Run(lambda canvases: make(pretraining), labels=False),
        "masked": Run(lambda canvases: masked(make(pretraining), patch), labels=False),
        "scratch": Run(arm(frozen=False)),
        "random_frozen": Run(arm(frozen=True)),
        "vae_frozen": Run(arm(frozen=True), begin="vae"),
        "vae_tuned": Run(arm(frozen=False), begin="vae"),
        "masked_frozen": Run(arm(frozen=True), begin="masked"),
    }
    methods = {
        "scratch": Method("from scratch", "scratch"),
        "random_frozen": Method("random encoder, frozen", "random_frozen"),
        "vae_frozen": Method("VAE, frozen", "vae_frozen"),
        "vae_tuned": Method("VAE, fine-tuned", "vae_tuned"),
        "masked_frozen": Method("masked autoencoder, frozen", "masked_frozen"),
    }
    fields = {"budgets": (100, 1000, SCENES), "seeds": (0, 1, 2), "counts": "canvases"}
    return Study(title, runs, methods, **(fields | changes))


def get_study() -> Study:
    return study("Detection on digits", nets, patch=3, grid=6)
