"""Every field of a config with its default; reading and setting fields by dotted names."""

from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, FrozenConfigDict

from vae_jax.config.errors import UserError, nearest
from vae_jax.config.sections import call, plain

UNTYPED = {"data.size"}  # a number or a tuple; its limit says what it may be


def default() -> ConfigDict:
    """Every field of a config, with the values of a small VAE on scikit-learn's digits."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 2000  # optimiser steps in all
    c.batch = 128  # examples per step, over all devices
    c.steps_per_call = 1  # optimiser steps in one compiled call (small models are dispatch-bound)
    c.accumulate = 1  # microbatches of a step, one after another: less memory, the same update
    c.compile = "auto"  # jit (the global view), shard_map, pmap; auto chooses; the same update
    c.remat = "none"  # what nets compute twice: none, full, or dots (all but products)
    c.unroll = True  # the steps of a call written out (convolutions on CPU are slow in a loop)
    c.log_every = 100  # steps between rows of metrics.jsonl

    c.data = data_defaults()
    c.latent = 16
    c.model = call("model", "vae")  # vae, vq, m2, per_class, adgm, sdgm, m1m2, …
    c.auxiliary = 0  # adgm, sdgm, m1m2: dimensions of a; 0 = as many as z has, latent
    c.dtype = "float32"  # of the nets; parameters and objectives are float32
    c.encoder = call("encoder", "mlp")
    c.decoder = call("decoder", "mlp")
    c.classifier = call("classifier", "none")
    c.posterior = call("posterior", "gaussian")
    c.prior = call("prior", "normal")
    c.likelihood = call("likelihood", "discretized_logistic")
    c.objective = call("objective", "elbo")
    c.init_from = ""  # folder of a run: parameters of equal names and shapes start there
    c.bias_from_data = False  # the decoder's output bias begins at the logit of the mean image

    c.warmup = ConfigDict()  # objective.<of> goes from 0 to its value over these steps
    c.warmup.of = "beta"
    c.warmup.steps = 0
    c.warmup.cycles = 1  # > 1: cyclical annealing, each cycle's first half rises

    c.optim = call("optim", "adamw")  # SCHEDULE in sections.py, and the optimiser's arguments

    c.mesh = ConfigDict()  # devices along each axis; -1 = all that are left
    c.mesh.data = -1  # the batch
    c.mesh.fsdp = 1  # the batch, and parameters and optimiser state with it (ZeRO-3)
    c.mesh.model = 1  # dense layers (tensor parallel)
    c.mesh.samples = 1  # importance samples K, or the labels that M2 enumerates

    c.replicas = ConfigDict()  # replicas.FIELD = values, a run for each (see replicate)

    c.eval = ConfigDict()
    c.eval.every = 500  # steps between validations; each saves a checkpoint
    c.eval.batch = 500
    c.eval.select = "loss"  # which validation metric names the best checkpoint
    c.eval.iw_k = 100  # importance samples for log p(x) on the test set
    c.lock()  # a misspelt field is an error, not a new one
    return c


def data_defaults() -> ConfigDict:
    """The section ``data``."""
    c = ConfigDict()
    # digits, a name of TFDS, cifar10_20k, sprites, scenes:BASE, folder:PATH, npz:PATH, hf:NAME,
    # file:function or synthetic
    c.name = "digits"
    c.dir = ""  # TFDS data_dir; '' = TFDS's own default
    # Images of folder and hf are resized and cropped to it; those of synthetic have it.
    c.size = FieldReference(0, field_type=object)  # pixels of a side, or (height, width)
    c.channels = 0  # folder, synthetic: 1 grey or 3 colour; 0 looks at the images
    c.validation = 0.1  # share of the training set held out, stratified
    c.labels = 0  # number of training and validation labels; 0 = all (see data.load)
    c.labels_seed = 0  # which examples have them
    c.labelled_batch = 0  # labelled examples per step, a stream beside the batch; 0 = none
    c.hold_out = ()  # classes left out of training, for evaluation: places (8, 9), or names
    c.binarize = "none"  # none, threshold, static or dynamic
    c.shift = 0  # training images are moved by up to this many pixels
    c.flip = False  # ... and mirrored
    c.memory_mb = 4096  # a larger training set is streamed
    c.on_device_mb = 1024  # a smaller one lives on the device: no host work in a step
    return c


def flatten(c: Mapping | ConfigDict, prefix: str = "") -> dict[str, object]:
    """{'optim.lr': 0.001, ...}"""
    flat = {}
    for key, value in c.items():
        if isinstance(value, dict | ConfigDict | FrozenConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def set_field(c: ConfigDict, field: str, value: object) -> None:
    """Set ``c.a.b`` by its dotted name, with the type that it has.

    Raises:
      UserError: there is no such field, or the value has another type.
    """
    *path, last = field.split(".")
    for depth, key in enumerate(path):
        if key not in c or not isinstance(c[key], ConfigDict):
            section = ".".join(path[: depth + 1])
            raise UserError(f"{section}={value}: unknown field; {nearest(key, c.keys())}")
        c = c[key]
    if last not in c:
        raise UserError(f"{field}={value}: unknown field; {nearest(last, c.keys())}")
    old = c[last]
    if isinstance(value, list):
        value = plain(value, field)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    try:
        if field in UNTYPED:
            with c.ignore_type():
                c[last] = value
        else:
            c[last] = value
    except (TypeError, ValueError):
        raise UserError(f"{field}={value!r}: want {type(old).__name__}, as {old!r}") from None
