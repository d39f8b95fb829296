"""A config's model: one short builder for each kind, and one table of checks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax import distributions, nets
from vae_jax.config import UserError
from vae_jax.models.auxiliary import auxiliary
from vae_jax.models.core import Array, Model, Params, Spec
from vae_jax.models.hierarchy import hierarchy
from vae_jax.models.labels import per_class, with_labels
from vae_jax.models.nets import AuxiliaryNets, Given, Nets
from vae_jax.models.scenes import build_air, build_grid, with_detector
from vae_jax.models.vae import vae

LABELLED = ("m2", "per_class", "adgm", "sdgm", "m1m2")
WITH_AUXILIARY = ("adgm", "sdgm", "m1m2")


def build(
    c: ConfigDict, *, shape: tuple[int, int, int], levels: int, classes: int, binary: bool
) -> Model:
    """The model of a config for images of this shape and number of grey levels.

    ``binary``: the nets are given images of {0, 1} (two-level data, or binarised).

    Raises:
      UserError: the likelihood is not one of this data, or parts do not fit each other.
    """
    levels = 2 if binary else levels
    likelihood = config_lib.build("likelihood", c.likelihood, levels=levels)
    distributions.check(likelihood, levels_of_data=levels, binarized=binary)
    check(c, classes)
    check_batch(c)
    builder = config_lib.resolve("model", c.model.name)
    fields = {key: value for key, value in c.model.items() if key != "name"}
    return builder(Given(c, shape, classes, likelihood), **fields)


def build_for(c: ConfigDict, dataset: Any) -> Model:
    """:func:`build` for a data set of ``data.load``."""
    if c.model.name == "detector" and dataset.train.objects is not None:
        kinds = int(dataset.train.objects[..., 4].max()) + 1
        if c.model.classes < kinds:
            raise UserError(
                f"model.classes={c.model.classes}: the boxes are of {kinds} classes; want {kinds}"
            )
    return build(
        c,
        shape=dataset.shape,
        levels=dataset.levels,
        classes=len(dataset.classes),
        binary=dataset.levels == 2 or c.data.binarize != "none",
    )


# --- Kinds ---


def _nets(given: Given, labelled: bool) -> tuple[Spec, Nets]:
    c = given.config
    modules = {}
    facts = {"remat": c.remat}
    modules["encoder"] = given.module("encoder", pyramid=given.hierarchical, **facts)
    if given.hierarchical:
        check_hierarchy(c, modules["encoder"])
    else:
        modules["posterior"] = given.module("posterior", shape=c.latent)
        modules["prior"] = given.module(
            "prior", shape=c.latent, image=given.shape, outputs=given.classes
        )
        check_support(c, modules["posterior"], modules["prior"])
    if c.decoder.name != "none":
        modules["decoder"] = given.module("decoder", shape=given.out_shape, **facts)
    if c.classifier.name not in ("none", "bayes"):
        modules["classifier"] = given.module("classifier", outputs=given.classes)
    if labelled:
        modules["trunk"] = modules["encoder"]
    spec = Spec(given.shape, given.classes, c.latent, given.likelihood)
    if given.hierarchical:
        groups = tuple(modules["decoder"].groups())
        latent = sum(n * d for n, d in groups)
        spec = spec._replace(groups=groups, latent=latent, code=modules["decoder"].code())
    return spec, Nets(given, modules, spec.latent, spec.code, labelled)


def _of_nets(spec: Spec, functions: Nets) -> Model:
    if functions.given.hierarchical:
        return hierarchy(spec, functions.level_parts())
    parts = functions.parts()
    return vae(spec, parts)._replace(nets=parts)


def build_vae(given: Given) -> Model:
    """p(x|z) p(z) with q(z|x): one layer, or the levels of a hierarchy."""
    return _of_nets(*_nets(given, labelled=False))


def build_m2(given: Given) -> Model:
    """p(x|y, z) p(y) p(z) with q(y|x) and q(z|x, y); ``trunk`` is the encoder of q(y|x)."""
    spec, functions = _nets(given, labelled=True)
    return with_labels(_of_nets(spec, functions), functions.classify_image)


def build_per_class(given: Given) -> Model:
    """A VAE for each label side by side, and q(y|x) beside them."""
    spec, one = _nets(given, labelled=False)
    modules = {part: module for part, module in one.modules.items() if part != "classifier"}
    side_by_side = per_class(_of_nets(spec, Nets(given, modules, one.latent)))
    own = {
        "trunk": given.module("encoder"),
        "classifier": given.module("classifier", outputs=given.classes),
    }
    label_nets = Nets(given, own, one.latent, labelled=True)

    def init(key: Array, mean_HxWxC: Array | None = None) -> Params:
        nets_key, trunk_key, head_key = jax.random.split(key, 3)
        image = jnp.zeros((1, *given.shape), given.dtype)
        features, trunk = own["trunk"].init_with_output(trunk_key, image)
        head = own["classifier"].init(head_key, features)
        own_params = {"trunk": trunk.get("params", {}), "classifier": head["params"]}
        return side_by_side.init(nets_key, mean_HxWxC) | own_params

    return with_labels(side_by_side, label_nets.classify_image)._replace(init=init)


def _build_auxiliary(given: Given, kind: str) -> Model:
    c = given.config
    size = c.auxiliary or c.latent
    trunk = nets.MLPEncoder(c.classifier.widths, c.classifier.activation, dtype=given.dtype)
    modules = {
        "encoder": given.module("encoder"),
        "posterior": given.module("posterior", shape=size),
        "prior": given.module("prior", shape=c.latent, image=given.shape, outputs=given.classes),
        "decoder": given.module("decoder", shape=given.out_shape),
        "label_trunk": trunk,
        "label": nets.MLPClassifier(given.classes, dtype=given.dtype),
        "latent_trunk": trunk,
        "latent": nets.Gaussian(c.latent, dtype=given.dtype),
        "first_trunk": trunk,
        "first": nets.Gaussian(size, dtype=given.dtype),
    }
    spec = Spec(
        given.shape, given.classes, c.latent, given.likelihood, labelled=True, auxiliary=True
    )
    return auxiliary(spec, AuxiliaryNets(given, kind, size, modules).parts(), kind)


def build_adgm(given: Given) -> Model:
    """The auxiliary deep generative model (Maaløe et al. 2016, section 2.2)."""
    return _build_auxiliary(given, "adgm")


def build_sdgm(given: Given) -> Model:
    """The skip deep generative model (Maaløe et al. 2016, section 2.4)."""
    return _build_auxiliary(given, "sdgm")


def build_m1m2(given: Given) -> Model:
    """M2 on the latent variable of a trained M1 (Kingma et al. 2014, section 3.1.3).

    M1's encoder and decoder, from ``config.init_from``, are constants; the bounds are on log p(x)
    of the images.
    """
    refuse_decay(given.config, "model.name=m1m2")
    return _build_auxiliary(given, "m1m2")


def build_detector(
    given: Given,
    *,
    grid: int = 8,
    classes: int = 10,
    widths: tuple[int, ...] = (128,),
    frozen: bool = False,
) -> Model:
    """A VAE with a detection head on its encoder; without a decoder, the head alone."""
    if frozen:
        refuse_decay(given.config, "model.frozen=True")
    spec, functions = _nets(given, labelled=False)
    head = {"grid": grid, "classes": classes, "widths": widths, "frozen": frozen}
    return with_detector(_of_nets(spec, functions), functions, **head)


MODELS: dict[str, Callable[..., Model]] = {
    "vae": build_vae,
    "m2": build_m2,
    "per_class": build_per_class,
    "adgm": build_adgm,
    "sdgm": build_sdgm,
    "m1m2": build_m1m2,
    "attend_infer_repeat": build_air,
    "grid": build_grid,
    "detector": build_detector,
}

# --- Checks ---


def check(c: ConfigDict, classes: int) -> None:
    """Raise :class:`UserError` for the first pair of fields that do not fit each other."""
    model = c.model.name
    classifier = c.classifier.name
    prior = c.prior.name
    labelled = model in LABELLED
    with_a = model in WITH_AUXILIARY
    needs = getattr(config_lib.resolve("objective", c.objective.name), "needs", "")
    wants = "want classifier.name=mlp with widths, and a decoder"
    no_hidden = classifier != "mlp" or not c.classifier.get("widths") or c.decoder.name == "none"
    rules = (
        (
            classifier != "none" and not classes,
            f"classifier.name={classifier}: data.name={c.data.name} has no labels; want none",
        ),
        (
            c.bias_from_data and (c.likelihood.name != "bernoulli" or c.decoder.name == "none"),
            "bias_from_data=True: only for likelihood.name=bernoulli and a decoder; want False",
        ),
        (
            needs == "labels" and not labelled,
            f"model.name={model}: objective {c.objective.name} learns p(x|y,z); "
            f"want one of {', '.join(LABELLED)}",
        ),
        (
            labelled and classifier == "none",
            f"classifier.name=none: model {model} learns q(y|x); want classifier.name=mlp",
        ),
        (
            labelled and prior == "vamp",
            f"prior.name=vamp: the pseudo-inputs have no label, {model} needs one; want normal",
        ),
        (
            prior == "vamp" and c.posterior.name != "gaussian",
            f"posterior.name={c.posterior.name}: VampPrior mixes diagonal ones; want gaussian",
        ),
        (
            classifier == "bayes" and (labelled or prior != "labelled"),
            f"prior.name={prior}: classifier.name=bayes reads p(y|z) off it; want labelled",
        ),
        (
            prior == "labelled" and not classes,
            f"prior.name=labelled: data.name={c.data.name} has no labels; want mixture",
        ),
        (
            c.auxiliary and not with_a,
            f"auxiliary={c.auxiliary}: model {model} has no a, as adgm, sdgm, m1m2 have; want 0",
        ),
        (with_a and no_hidden, f"classifier.name={classifier}: model {model}: {wants}"),
        (
            with_a and prior == "labelled",
            f"prior.name={prior}: model {model} wants one of z alone, such as normal",
        ),
        (
            model == "per_class" and prior != "normal",
            f"prior.name={prior}: model {model} wants normal",
        ),
    )
    for wrong, message in rules:
        if wrong:
            raise UserError(message)


def refuse_decay(c: ConfigDict, frozen: str) -> None:
    """Raise where weight decay would shrink parameters that have no gradient (``frozen``: why)."""
    if c.optim.weight_decay:
        decay = f"optim.weight_decay={c.optim.weight_decay}"
        raise UserError(f"{decay}: shrinks the constant nets of {frozen}; want 0")


def check_batch(c: ConfigDict) -> None:
    """Raise where an objective compares all examples of a batch and would see a part of them."""
    needs = getattr(config_lib.resolve("objective", c.objective.name), "needs", "")
    program = config_lib.program_name(c, 1 if c.mesh.fsdp == 1 else 2)
    if needs == "batch" and (program != "jit" or c.accumulate > 1):
        raise UserError(
            f"objective.name={c.objective.name}: compares all examples of a batch; "
            "want compile=jit and accumulate=1"
        )


def check_support(c: ConfigDict, posterior: Any, prior: Any) -> None:
    """Raise where a posterior and a prior live on different sets."""
    q_support = distributions.support(posterior)
    p_support = distributions.support(prior)
    if q_support != p_support:
        raise UserError(
            f"prior.name={c.prior.name}: lives on {p_support} z, posterior.name={c.posterior.name} "
            f"on {q_support} z; want both on one, such as gaussian with normal, "
            "or von_mises_fisher with sphere"
        )


def check_hierarchy(c: ConfigDict, encoder: Any) -> None:
    """Raise where a hierarchy's encoder has no levels, or a field of a one-layer model is set."""
    if not hasattr(encoder, "pyramid"):
        right = "mlp" if c.decoder.name == "ladder" else "residual"
        raise UserError(
            f"encoder.name={c.encoder.name}: decoder {c.decoder.name} wants features of every "
            f"level; want encoder.name={right}"
        )
    default = config_lib.default()
    own = f"decoder {c.decoder.name} has levels of its own"
    if c.latent != default.latent:
        raise UserError(f"latent={c.latent}: {own}; want the default, {default.latent}")
    for field in ("posterior", "prior"):
        if c[field] != default[field]:
            name = default[field].name
            raise UserError(f"{field}.name={c[field].name}: {own}; want the default, {name}")
