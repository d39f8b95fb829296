"""A VAE as plain functions of its parameters, built from the nets that a config names."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import config as config_lib
from vae_jax import distributions as densities
from vae_jax import nets
from vae_jax.config import UserError
from vae_jax.mesh import layout


class Draw(NamedTuple):
    """One stochastic pass x → z → p(x|z) for each example; nats.

    L is the number of stochastic levels: 1 for a one-layer VAE. Objectives see only these, so they
    serve a hierarchy as they are.
    """

    log_px: jax.Array  # B      log p(x|z)
    log_pz: jax.Array  # BxL    log p(z), level by level
    log_qz: jax.Array  # BxL    log q(z|x)
    kl: jax.Array  # BxL        analytic where it is known, else log q − log p
    z: Any  # what a classifier may look at: BxD

    @property
    def log_w(self):
        """log p(x, z) − log q(z|x), shape B: the importance weight of this draw."""
        return self.log_px + jnp.sum(self.log_pz - self.log_qz, axis=-1)


def scale_gradient(z, scale):
    """z to the last bit, with gradients multiplied by ``scale`` (a constant) on their way back."""
    constant = jax.lax.stop_gradient(z)
    return constant + jax.lax.stop_gradient(scale) * (z - constant)


@dataclasses.dataclass(frozen=True)
class Model:
    """Functions of (params, ...); every density is float32 and has shape B."""

    shape: tuple[int, int, int]
    classes: int  # Y; 0 where the data has no labels
    latent: int  # D; of a hierarchy all its levels together
    likelihood: Any
    init: Callable  # key, mean training image or None → params
    encode: Callable  # params, x_BxHxWxC → q(z|x), a distribution of densities
    prior: Callable  # params → p(z)
    decode: Callable | None  # params, z_BxD → out_BxHxWxO, the parameters of p(x|z)
    classify: Callable | None  # params, z_BxD → logits_BxY
    # p(x|y,z), q(z|x,y) and q(y|x): encode and decode take a last argument y, labels of shape B or one for
    # all, and classify takes x_BxHxWxC in the place of z.
    conditional: bool = False
    levels = 1  # L
    code: int | None = (
        None  # classify and evaluation look at the first so many dimensions of z; None: at all
    )

    def log_px(self, params, x_BxHxWxC, z, y=None):
        """log p(x|z), or log p(x|y,z), of z_BxD or z_KxBxD; shape B or KxB."""
        if self.decode is None:
            raise UserError(
                "decoder.name=none: this objective needs one; want decoder.name=mlp or conv"
            )
        if z.ndim == 2:
            return self.likelihood.log_prob(self.decode(params, z, *_given(y)), x_BxHxWxC)
        # One batch of B·K rows, those of an example side by side, as the devices hold them; the outermost axis is
        # the devices' that share the samples, W of them (1 without a mesh axis for samples).
        (k, b, d), w = z.shape, layout.num_shards(len(z))
        if y is not None and jnp.ndim(y):
            y = jnp.tile(jnp.repeat(y, k // w), w)
        rows = jnp.swapaxes(z.reshape(w, k // w, b, d), 1, 2).reshape(w * b * (k // w), d)
        out = self.decode(params, layout.constrain(rows, k, batch=True), *_given(y))
        out = out.reshape(w, b, k // w, *out.shape[1:])
        log_px_WxBxK = self.likelihood.log_prob(out, x_BxHxWxC[:, None])
        return jnp.swapaxes(log_px_WxBxK, 1, 2).reshape(k, b)

    def draw(self, params, x_BxHxWxC, keys, *, y=None, stop=False, scale=None):
        """One :class:`Draw` with z ~ q(z|x); or, given labels y of a conditional model, z ~ q(z|x,y).

        ``keys``: a key for each example, keys_B; or keys_KxB for K draws, each leaf of shape K x B x …; the encoder
        runs once.
        ``stop``: the *parameters* inside log q are constants, the path through z is not (sticking the
        landing; Roeder et al. 2017, arXiv:1703.09194, eq. 7), and the KL is the sampled one.
        ``scale``, B or KxB: gradients through z are multiplied by this, values are not: the weights of a
        doubly reparameterised estimator; 0 makes z a constant, for score-function estimators.
        """
        q, p = self.encode(params, x_BxHxWxC, *_given(y)), self.prior(params)

        def latent(keys_B, scale_B):
            z, log_qz = q.sample_and_log_prob(keys_B)
            if scale_B is not None:
                z = scale_gradient(z, scale_B[:, None])
            if stop or scale_B is not None:
                log_qz = (densities.stop(q) if stop else q).log_prob(z)
            log_pz = p.log_prob(z)
            kl = None if stop or scale_B is not None else densities.kl(q, p)
            kl = log_qz - log_pz if kl is None else kl
            return z, log_pz[:, None], log_qz[:, None], kl[:, None]

        several = keys.ndim == 2
        z, log_pz, log_qz, kl = (jax.vmap(latent) if several else latent)(keys, scale)
        if several:
            z, log_pz, log_qz = layout.constrain((z, log_pz, log_qz), len(keys))
        return Draw(self.log_px(params, x_BxHxWxC, z, y), log_pz, log_qz, kl, z)

    def sample(self, params, keys_N, y=None):
        """z_NxD from the prior, a draw for each key."""
        return self.prior(params).sample(keys_N)

    def guess(self, params, x_BxHxWxC):
        """What stands for the label of an image that has none, as arguments of ``encode`` and ``decode``: the most
        probable y of q(y|x), shape B; nothing where the model is not conditional."""
        return (jnp.argmax(self.classify(params, x_BxHxWxC), -1),) if self.conditional else ()


@dataclasses.dataclass(frozen=True)
class Joint:
    """q(z|x) or p(z) of a hierarchy as one distribution of z_BxD, its levels side by side, the top one first."""

    mu: jax.Array  # BxD: each level at its mean, given the means above it
    sample_and_log_prob: Callable  # keys → z, log_prob
    log_prob: Callable  # z_BxD → B

    def sample(self, keys):
        return self.sample_and_log_prob(keys)[0]


def _drawn(q, p, keys_B):
    """A level's z ~ q, or ~ p where there is no x; with log p, log q and KL(q ‖ p), shape B."""
    z, log_prob = (p if q is None else q).sample_and_log_prob(keys_B)
    return z, (
        z,
        log_prob if q is None else p.log_prob(z),
        log_prob,
        None if q is None else densities.kl(q, p),
    )


def _at(q, p, z):
    """A level at a given z, with its log p and log q."""
    return z, (z, p.log_prob(z), None if q is None else q.log_prob(z), None)


def _mean(q, p, _):
    mu = (p if q is None else q).mu
    return mu, (mu, None, None, None)


def _mixed(q, p, given):
    """q's mean where ``from_q``; else p's mean + temperature · σ · ε."""
    from_q, temperature, keys_B = given
    z = p.mu + temperature * (p.sample(keys_B) - p.mu)
    z = z if q is None else jnp.where(from_q, q.mu, z)
    return z, (z, None, None, None)


@dataclasses.dataclass(frozen=True)
class Hierarchy(Model):
    """A model of L levels: p(z) = Π p(z_l | z_<l), q(z|x) = Π q(z_l | z_<l, x); nets of ``nets.topdown``.

    z_BxD is all levels flat, the top one first, so that ``encode``, ``prior`` and ``decode`` are what they are of one
    layer. ``encode(params, x).mu`` has each level at its mean given those above. Recognition and classifiers look
    at the levels of the coarsest grid, the first ``code`` dimensions. q's own layers are within ``params["decoder"]``:
    where inference and generative nets are told apart (PIWAE, gradients' noise) they count as the latter.
    """

    groups: tuple = ()  # (levels of equal shape, numbers of each), the top first
    features: Callable | None = None  # params, x_BxHxWxC → what the bottom-up net makes of x
    top_down: Callable | None = (
        None  # params, features or None, choose, given, rows, *y → out_BxHxWxO, records
    )

    @property
    def levels(self):
        return sum(n for n, _ in self.groups)

    def split(self, leaves_LxX):
        """Arrays with an entry for each level, cut into groups."""
        edges = itertools.pairwise([0, *itertools.accumulate(n for n, _ in self.groups)])
        return [jax.tree.map(lambda a, lo=lo, hi=hi: a[lo:hi], leaves_LxX) for lo, hi in edges]

    def latents(self, z_BxD):
        """z of each group, NxBxD_l."""
        sizes = [n * d for n, d in self.groups]
        parts = jnp.split(z_BxD, list(itertools.accumulate(sizes))[:-1], axis=-1)
        pairs = zip(parts, self.groups, strict=True)
        return [jnp.moveaxis(part.reshape(len(z_BxD), n, d), 1, 0) for part, (n, d) in pairs]

    def run(self, params, features, choose, given, rows, y=None):
        """One way down: out_BxHxWxO, z_BxD, and log p, log q and KL level by level, BxL each, None where not known."""
        out, records = self.top_down(params, features, choose, given, rows, *_given(y))
        z, *figures = zip(*records, strict=True)
        z_BxD = jnp.concatenate([jnp.moveaxis(a, 0, 1).reshape(rows, -1) for a in z], axis=-1)
        return out, z_BxD, *(None if f[0] is None else jnp.concatenate(f).T for f in figures)

    def at(self, params, features, z_BxD, y=None):
        """(out, log p, log q) of given latents."""
        out, _, log_pz, log_qz, _ = self.run(
            params, features, _at, self.latents(z_BxD), len(z_BxD), y
        )
        return out, log_pz, log_qz

    def draw(self, params, x_BxHxWxC, keys, *, y=None, stop=False, scale=None):
        """As :meth:`Model.draw`. With ``stop`` or ``scale`` the levels are drawn first, and log p and log q are then
        those of z as a whole: of a level's path through the levels below it nothing is lost, nothing counted twice.
        """
        features, rows = self.features(params, x_BxHxWxC), len(x_BxHxWxC)
        held = jax.lax.stop_gradient(params) if stop else params
        held_features = self.features(held, x_BxHxWxC) if stop else features

        def one(keys_B, scale_B):
            given = self.split(densities.split_keys(keys_B, self.levels))
            out, z, log_pz, log_qz, kl = self.run(params, features, _drawn, given, rows, y)
            if stop or scale_B is not None:
                z = z if scale_B is None else scale_gradient(z, scale_B[:, None])
                out, log_pz, _ = self.at(params, None, z, y)
                _, _, log_qz = self.at(held, held_features, z, y)
                kl = log_qz - log_pz
            return Draw(self.likelihood.log_prob(out, x_BxHxWxC), log_pz, log_qz, kl, z)

        if keys.ndim == 1:
            return one(keys, scale)
        if (
            len(keys) == 1
        ):  # vmap's axis would come between the rows that mlp.Dense puts in one matrix
            return jax.tree.map(
                lambda a: a[None], one(keys[0], None if scale is None else scale[0])
            )
        return layout.constrain(jax.vmap(one)(keys, scale), len(keys))

    def sample(self, params, keys_N, y=None, temperature=1.0):
        """z_NxD from the prior, each level's deviation times ``temperature``: a number, or L of them."""
        return self.complete(params, None, keys_N, y, 0, temperature)

    def complete(self, params, x_BxHxWxC, keys_B, y=None, first=0, temperature=1.0):
        """z_BxD whose ``first`` levels are q's means and whose others are from the prior, as in :meth:`sample`."""
        features = None if x_BxHxWxC is None else self.features(params, x_BxHxWxC)
        heat = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), self.levels)
        level_keys = densities.split_keys(keys_B, self.levels)
        given = self.split((jnp.arange(self.levels) < first, heat, level_keys))
        return self.run(params, features, _mixed, given, len(keys_B), y)[1]

    def joint(self, params, features, rows, y=None):
        """q(z|x), or p(z) where ``features`` is None, as a :class:`Joint`."""

        def sample_and_log_prob(keys):
            def one(keys_B):
                given = self.split(densities.split_keys(keys_B, self.levels))
                _, z, log_pz, log_qz, _ = self.run(params, features, _drawn, given, len(keys_B), y)
                return z, (log_pz if features is None else log_qz).sum(-1)

            return jax.vmap(one)(keys) if keys.ndim == 2 else one(keys)

        def log_prob(z_BxD):
            _, log_pz, log_qz = self.at(params, features, z_BxD, y)
            return (log_pz if features is None else log_qz).sum(-1)

        nothing = self.split(jnp.zeros(self.levels))
        mu = self.run(params, features, _mean, nothing, rows, y)[1]
        return Joint(mu, sample_and_log_prob, log_prob)


def _given(y):
    return () if y is None else (y,)


def _logit_bias(mean_HxWxC, shape):
    """The output bias with which a Bernoulli decoder that ignores z gives the training mean."""
    mean = jnp.clip(mean_HxWxC, 1e-3, 1 - 1e-3)
    pixels = jnp.log(mean) - jnp.log1p(-mean)
    if pixels.size == math.prod(shape):
        return pixels.reshape(shape)
    return jnp.tile(pixels.mean((0, 1)), shape[0] // pixels.shape[-1])


def build(c, *, shape, levels, classes, binary):
    """The model of a config for images of this shape and number of grey levels.

    ``binary``: the nets see images of {0, 1} (two-level data, or binarised).

    Where the objective has an attribute ``conditional`` that is true, so is the model. q(y|x) is then a net of
    its own: a second one like the encoder, ``trunk``, and on its features the classifier. Where it is a name in
    :data:`SEES`, the model is that one, an :class:`Auxiliary`; where it is "apart", each label has nets of its own.

    Raises:
      UserError: the likelihood is not one of this data, or a part that another one needs is missing.
    """
    levels = 2 if binary else levels
    likelihood = config_lib.build("likelihood", c.likelihood, levels=levels)
    densities.check(likelihood, levels_of_data=levels, binarized=binary)
    if c.classifier.name != "none" and not classes:
        raise UserError(
            f"classifier.name={c.classifier.name}: data.name={c.data.name} has no labels; want none"
        )
    if c.bias_from_data and (c.likelihood.name != "bernoulli" or c.decoder.name == "none"):
        raise UserError(
            "bias_from_data=True: only for likelihood.name=bernoulli and a decoder; want False"
        )
    conditional = getattr(config_lib.resolve("objective", c.objective.name), "conditional", False)
    if conditional and c.classifier.name == "none":
        raise UserError(
            f"classifier.name=none: objective {c.objective.name} learns q(y|x); want classifier.name=mlp"
        )
    if conditional and c.prior.name == "vamp":
        raise UserError(
            f"prior.name=vamp: the pseudo-inputs have no label, {c.objective.name} needs one; want normal"
        )
    if c.prior.name == "vamp" and c.posterior.name != "gaussian":
        raise UserError(
            f"posterior.name={c.posterior.name}: a VampPrior mixes diagonal posteriors; want gaussian"
        )
    bayes = c.classifier.name == "bayes"
    if bayes and (conditional or c.prior.name != "labelled"):
        raise UserError(
            f"prior.name={c.prior.name}: classifier.name=bayes reads p(y|z) off it; want labelled"
        )
    if c.prior.name == "labelled" and not classes:
        raise UserError(f"prior.name=labelled: data.name={c.data.name} has no labels; want mixture")
    if c.auxiliary and conditional not in SEES:
        kinds = ", ".join(SEES)
        raise UserError(
            f"auxiliary={c.auxiliary}: objective {c.objective.name} has no a, as {kinds} have; want 0"
        )
    if conditional == "apart":
        return _apart(c, shape=shape, levels=levels, classes=classes, binary=binary)
    if conditional in SEES:
        return _auxiliary(c, conditional, shape=shape, classes=classes, likelihood=likelihood)
    dtype = jnp.dtype(c.dtype)
    height, width, channels = shape
    hierarchical = hasattr(config_lib.resolve("decoder", c.decoder.name), "groups")
    given = {"dtype": dtype, "remat": c.remat}
    modules = {"encoder": config_lib.build("encoder", c.encoder, pyramid=hierarchical, **given)}
    if hierarchical:
        _check_hierarchy(c, modules["encoder"])
    else:
        modules["posterior"] = config_lib.build(
            "posterior", c.posterior, shape=c.latent, dtype=dtype
        )
        modules["prior"] = config_lib.build(
            "prior", c.prior, shape=c.latent, image=shape, outputs=classes, dtype=dtype
        )
        _check_support(c, modules["posterior"], modules["prior"])
    if c.decoder.name != "none":
        out = (height, width, likelihood.outputs(channels))
        modules["decoder"] = config_lib.build("decoder", c.decoder, shape=out, **given)
    if c.classifier.name not in ("none", "bayes"):
        modules["classifier"] = config_lib.build(
            "classifier", c.classifier, outputs=classes, dtype=dtype
        )
    if conditional:
        modules["trunk"] = modules["encoder"]
    latent, code = c.latent, None
    if hierarchical:
        groups = tuple(modules["decoder"].groups())
        latent = sum(n * d for n, d in groups)
        code = modules["decoder"].code()

    def one_hot(y):
        if conditional and not y:
            raise UserError(
                f"objective.name={c.objective.name}: this model's p(x|y,z) and q(z|x,y) want a label"
            )
        return tuple(jax.nn.one_hot(label, classes, dtype=dtype) for label in y)

    # Rematerialised nets keep what goes into them, or also their products; the rest is computed again for gradients.
    policy = jax.checkpoint_policies.dots_saveable if c.remat == "dots" else None

    def apply(part, params, *args):
        run = lambda params, *args: modules[part].apply({"params": params}, *args)  # noqa: E731
        # Posterior and prior make distributions, not arrays; a net with the field ``remat`` does it block by block.
        if (
            c.remat != "none"
            and part not in ("posterior", "prior")
            and not hasattr(modules[part], "remat")
        ):
            run = jax.checkpoint(run, policy=policy)
        return run(params[part], *args)

    def encode(params, x, *y):
        return apply("posterior", params, apply("encoder", params, x.astype(dtype), *one_hot(y)))

    def prior(params):
        found = apply("prior", params)
        if isinstance(found, jax.Array):  # pseudo-inputs of a VampPrior
            q = encode(params, found)
            return densities.MixtureOfNormals(jnp.zeros(len(found)), q.mu, q.logvar)
        return found

    def decode(params, z, *y):
        return apply("decoder", params, z.astype(dtype), *one_hot(y)).astype(jnp.float32)

    def classify(params, z):
        if bayes:  # log p(z|y) for every y, p(y) being uniform
            p = prior(params)
            return densities.label_normal(jnp.arange(classes), p.mu, p.logvar).log_prob(
                z[..., None, :]
            )
        z = z.astype(dtype)
        seen = top(apply("trunk", params, z)) if conditional else z[..., :code]
        return apply("classifier", params, seen).astype(jnp.float32)

    def top(features):
        """What a classifier of images sees: of a hierarchy's features those of the coarsest grid."""
        return features[-1].reshape(len(features[-1]), -1) if hierarchical else features

    def init(key, mean_HxWxC=None):
        x, z = jnp.zeros((1, *shape), dtype), jnp.zeros((1, latent), dtype)
        keys = {part: jax.random.fold_in(key, i) for i, part in enumerate(sorted(nets.PARTS))}
        y = (jnp.zeros(classes, dtype),) if conditional else ()
        features, encoder = modules["encoder"].init_with_output(
            keys["encoder"], x, *(() if hierarchical else y)
        )
        inputs = {"posterior": (features,), "prior": (), "decoder": (z, *y), "trunk": (x,)}
        inputs["classifier"] = (top(features),) if conditional else (z[:, :code],)
        if hierarchical:
            level_keys = [jax.random.split(key, (n, 1)) for n, _ in groups]
            inputs["decoder"] = (features, _drawn, level_keys, 1, *y)
        variables = {"encoder": encoder}
        for part in modules:
            if part != "encoder":
                variables[part] = modules[part].init(keys[part], *inputs[part])
        params = {part: v.get("params", {}) for part, v in variables.items()}
        if mean_HxWxC is not None:
            params["decoder"]["out"]["bias"] = _logit_bias(
                mean_HxWxC, params["decoder"]["out"]["bias"].shape
            )
        return params

    common = {
        "shape": shape,
        "classes": classes,
        "latent": latent,
        "likelihood": likelihood,
        "init": init,
        "classify": classify if bayes or "classifier" in modules else None,
        "conditional": conditional,
    }
    if not hierarchical:
        decode = decode if "decoder" in modules else None
        return Model(encode=encode, prior=prior, decode=decode, **common)

    # A label enters the way down, from which both q and p are read off; what the encoder makes of x is without it.
    def features(params, x):
        return apply("encoder", params, x.astype(dtype))

    def top_down(params, features, choose, given, rows, *y):
        variables = {"params": params["decoder"]}
        out, records = modules["decoder"].apply(
            variables, features, choose, given, rows, *one_hot(y)
        )
        return out.astype(jnp.float32), records

    made = Hierarchy(
        encode=lambda params, x, *y: made.joint(params, features(params, x), len(x), *y),
        prior=lambda params, *y: made.joint(params, None, 1, *y),
        decode=lambda params, z, *y: made.at(params, None, z, *y)[0],
        code=code,
        groups=groups,
        features=features,
        top_down=top_down,
        **common,
    )
    return made


def _check_support(c, posterior, prior):
    q_support, p_support = densities.support(posterior), densities.support(prior)
    if q_support != p_support:
        raise UserError(
            f"prior.name={c.prior.name}: lives on {p_support} z, posterior.name={c.posterior.name} on {q_support} z; "
            "want both on one, such as gaussian with normal or von_mises_fisher with sphere"
        )


def _check_hierarchy(c, encoder):
    if not hasattr(encoder, "pyramid"):
        raise UserError(
            f"encoder.name={c.encoder.name}: decoder {c.decoder.name} wants features of every level; want "
            f"encoder.name={'mlp' if c.decoder.name == 'ladder' else 'residual'}"
        )
    default = config_lib.default()
    own = f"decoder {c.decoder.name} has levels of its own"
    if c.latent != default.latent:
        raise UserError(f"latent={c.latent}: {own}; want the default, {default.latent}")
    for field in ("posterior", "prior"):
        if c[field] != default[field]:
            raise UserError(
                f"{field}.name={c[field].name}: {own}; want the default, {default[field].name}"
            )


def build_for(c, dataset):
    """:func:`build` for a data set of ``data.load``."""
    binary = dataset.levels == 2 or c.data.binarize != "none"
    return build(
        c,
        shape=dataset.shape,
        levels=dataset.levels,
        classes=len(dataset.classes),
        binary=binary,
    )


# The variables that q(y|·), q(z|·), p(a|·) and p(x|·) of a model with an auxiliary variable a are given.
SEES = {
    "adgm": ("xa", "xay", "xyz", "yz"),  # Maaløe et al. 2016 (arXiv:1602.05473), section 2.2
    "sdgm": ("xa", "xay", "yz", "ayz"),  # there, section 2.4: x below a, with skip connections
    "m1m2": (
        "a",
        "ay",
        "yz",
        "a",
    ),  # Kingma et al. 2014 (arXiv:1406.5298), section 3.1.3: a is M1's latent variable
}


@dataclasses.dataclass(frozen=True)
class Auxiliary(Model):
    r"""A conditional model with a second latent variable a between x and (y, z):

    .. math:: p(x, y, a, z) = p(x|\cdot)\, p(a|\cdot)\, p(y)\, p(z), \qquad
              q(a, y, z|x) = q(a|x)\, q(y|\cdot)\, q(z|\cdot)

    :data:`SEES` says what stands for each dot. A draw has two levels, a and z. Without a key the label is judged at
    the mean of q(a|x), and ``encode`` and ``decode`` go through the means of a.
    """

    first: Callable | None = None  # params, x_BxHxWxC → q(a|x)
    latent_given: Callable | None = None  # params, x, a, y → q(z|·)
    first_given: Callable | None = None  # params, x, y, z → p(a|·)
    image_given: Callable | None = None  # params, a, y, z → out_BxHxWxO

    def draw(self, params, x_BxHxWxC, keys, *, y):
        """One :class:`Draw` with a ~ q(a|x), z ~ q(z|·), or K for keys_KxB. Under the same keys all y meet one a."""
        q, p = self.first(params, x_BxHxWxC), self.prior(params)

        def one(keys_B):
            a, log_qa = q.sample_and_log_prob(densities.fold_keys(keys_B, 0))
            qz = self.latent_given(params, x_BxHxWxC, a, y)
            z, log_qz = qz.sample_and_log_prob(densities.fold_keys(keys_B, 1))
            log_pa, log_pz = self.first_given(params, x_BxHxWxC, y, z).log_prob(a), p.log_prob(z)
            kl = densities.kl(qz, p)
            log_px = self.likelihood.log_prob(self.image_given(params, a, y, z), x_BxHxWxC)
            levels = (
                (log_pa, log_pz),
                (log_qa, log_qz),
                (log_qa - log_pa, log_qz - log_pz if kl is None else kl),
            )
            return Draw(log_px, *(jnp.stack(pair, -1) for pair in levels), z)

        return (jax.vmap(one) if keys.ndim == 2 else one)(keys)


def _auxiliary(c, kind, *, shape, classes, likelihood):
    """The :class:`Auxiliary` of a config: z has ``latent`` dimensions, a has ``auxiliary``, or as many. q(a|x) is
    ``encoder`` and ``posterior``, p(x|·) is ``decoder``, as in a VAE of a alone; the nets of the others have the hidden
    layers of ``classifier``. In m1m2 the former are constants, M1's as they were trained.
    """
    size = c.auxiliary or c.latent
    if c.classifier.name != "mlp" or not c.classifier.widths or c.decoder.name == "none":
        right = "classifier.name=mlp with widths, and a decoder"
        raise UserError(
            f"classifier.name={c.classifier.name}: objective {c.objective.name} wants {right}"
        )
    if c.prior.name in ("vamp", "labelled"):
        raise UserError(
            f"prior.name={c.prior.name}: objective {c.objective.name} wants one of z alone, such as normal"
        )
    dtype = jnp.dtype(c.dtype)
    to_y, to_z, to_a, to_x = SEES[kind]
    build = lambda part, **given: config_lib.build(part, c[part], dtype=dtype, **given)  # noqa: E731
    trunk = nets.MLPEncoder(c.classifier.widths, c.classifier.activation, dtype=dtype)
    height, width, channels = shape
    modules = {
        "encoder": build("encoder"),
        "posterior": build("posterior", shape=size),
        "prior": build("prior", shape=c.latent, image=shape, outputs=classes),
        "decoder": build("decoder", shape=(height, width, likelihood.outputs(channels))),
        "label_trunk": trunk,
        "label": nets.MLPClassifier(classes, dtype=dtype),
        "latent_trunk": trunk,
        "latent": nets.Gaussian(c.latent, dtype=dtype),
        "first_trunk": trunk,
        "first": nets.Gaussian(size, dtype=dtype),
    }
    frozen = ("encoder", "posterior", "decoder") if kind == "m1m2" else ()

    def seen(sees, **variables):
        """Arguments of a net: what it is given as one row, and the label as one-hot."""
        row = [variables[v].astype(dtype) for v in sees if v != "y"]
        row = jnp.concatenate([v.reshape(len(v), -1) for v in row], axis=-1)
        return (
            (row, jax.nn.one_hot(variables["y"], classes, dtype=dtype)) if "y" in sees else (row,)
        )

    def apply(part, params, *args):
        given = jax.lax.stop_gradient(params[part]) if part in frozen else params[part]
        return modules[part].apply({"params": given}, *args)

    def first(params, x):
        return apply("posterior", params, apply("encoder", params, x.astype(dtype)))

    def latent_given(params, x, a, y):
        return apply("latent", params, apply("latent_trunk", params, *seen(to_z, x=x, a=a, y=y)))

    def first_given(params, x, y, z):
        return apply("first", params, apply("first_trunk", params, *seen(to_a, x=x, y=y, z=z)))

    def image_given(params, a, y, z):
        return apply("decoder", params, *seen(to_x, a=a, y=y, z=z)).astype(jnp.float32)

    def decode(params, z, y):
        return image_given(
            params, first_given(params, None, y, z).mu if "a" in to_x else None, y, z
        )

    def classify(params, x, keys=None):
        q = first(params, x)
        judge = lambda a: apply(
            "label", params, apply("label_trunk", params, *seen(to_y, x=x, a=a))
        )
        if keys is None:
            return judge(q.mu).astype(jnp.float32)

        def one(keys_B):
            return judge(q.sample(densities.fold_keys(keys_B, 0))).astype(jnp.float32)

        return (jax.vmap(one) if keys.ndim == 2 else one)(keys)

    def init(key, mean_HxWxC=None):
        x, y = jnp.zeros((1, *shape)), jnp.zeros(1, int)
        variables = {"x": x, "a": jnp.zeros((1, size)), "y": y, "z": jnp.zeros((1, c.latent))}
        features, row = (
            jnp.zeros((1, c.classifier.widths[-1]), dtype),
            lambda sees: seen(sees, **variables),
        )
        inputs = {
            "encoder": (x.astype(dtype),),
            "prior": (),
            "decoder": row(to_x),
            "label_trunk": row(to_y),
        }
        inputs |= {
            "latent_trunk": row(to_z),
            "first_trunk": row(to_a),
            **dict.fromkeys(("label", "latent", "first"), (features,)),
        }
        params = {}
        for part, key in zip(modules, jax.random.split(key, len(modules)), strict=True):  # noqa: B020
            given = (
                inputs[part]
                if part in inputs
                else (modules["encoder"].apply({"params": params["encoder"]}, x),)
            )
            params[part] = modules[part].init(key, *given).get("params", {})
        if mean_HxWxC is not None:
            params["decoder"]["out"]["bias"] = _logit_bias(
                mean_HxWxC, params["decoder"]["out"]["bias"].shape
            )
        return params

    return Auxiliary(
        shape=shape,
        classes=classes,
        latent=c.latent,
        likelihood=likelihood,
        init=init,
        encode=lambda params, x, y: latent_given(params, x, first(params, x).mu, y),
        prior=lambda params: apply("prior", params),
        decode=decode,
        classify=classify,
        conditional=True,
        first=first,
        latent_given=latent_given,
        first_given=first_given,
        image_given=image_given,
    )


def _apart(c, *, shape, levels, classes, binary):
    """A conditional model of Y models side by side, parameters ``apart`` with a leading axis Y: p(x|y,z) and q(z|x,y)
    are the nets of label y. Of labels of shape B each net computes its own rows, in a place for twice as many as
    an even batch has of a label; a batch that is more uneven is computed for all Y and picked from.
    """
    if c.prior.name != "normal":
        raise UserError(f"prior.name={c.prior.name}: objective {c.objective.name} wants normal")
    alone = config_lib.override(c, {})
    alone.objective, alone.classifier = (
        config_lib.call("objective", "elbo"),
        config_lib.call("classifier", "none"),
    )
    one = build(alone, shape=shape, levels=levels, classes=classes, binary=binary)
    trunk = config_lib.build("encoder", c.encoder, dtype=jnp.dtype(c.dtype))
    head = config_lib.build("classifier", c.classifier, outputs=classes, dtype=jnp.dtype(c.dtype))

    def of(function):
        def run(params, v, y):
            if not jnp.ndim(y):
                return function(jax.tree.map(lambda p: p[y], params["apart"]), v)
            rows, room = jnp.arange(len(y)), 2 * -(-len(y) // classes)
            rank_B = (
                jnp.cumsum(jax.nn.one_hot(y, classes, dtype=jnp.int32), axis=0)[rows, y] - 1
            )  # among its label's

            def own(params, v):
                row_YxR = jnp.zeros((classes, room), jnp.int32).at[y, rank_B].set(rows, mode="drop")
                return jax.tree.map(lambda a: a[y, rank_B], jax.vmap(function)(params, v[row_YxR]))

            def every(params, v):
                return jax.tree.map(lambda a: a[y, rows], jax.vmap(function, (0, None))(params, v))

            if room >= len(y):
                return every(params["apart"], v)
            return jax.lax.cond(jnp.max(rank_B) < room, own, every, params["apart"], v)

        return run

    def classify(params, x):
        features = trunk.apply({"params": params["trunk"]}, x.astype(c.dtype))
        return head.apply({"params": params["classifier"]}, features).astype(jnp.float32)

    def init(key, mean_HxWxC=None):
        nets_key, *keys = jax.random.split(key, 3)
        features, of_trunk = trunk.init_with_output(keys[0], jnp.zeros((1, *shape), c.dtype))
        apart = jax.vmap(lambda k: one.init(k, mean_HxWxC))(jax.random.split(nets_key, classes))
        head_params = head.init(keys[1], features)["params"]
        return {"apart": apart, "trunk": of_trunk.get("params", {}), "classifier": head_params}

    return dataclasses.replace(
        one,
        init=init,
        encode=of(one.encode),
        prior=lambda params: densities.Normal(jnp.zeros(c.latent), jnp.zeros(c.latent)),
        decode=of(one.decode),
        classify=classify,
        conditional=True,
    )
