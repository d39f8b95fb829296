"""Labels as latent variables: wrappers that take a model of p(x|y, z) and give one of p(x)."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions import Normal
from vae_jax.mesh import layout
from vae_jax.models.core import Array, Draw, Model, Params, over_samples


def over_labels(log_q_BxY: Array, log_px_YxB: Array, kl_YxB: Array) -> tuple[Array, Array]:
    r"""(log_px, kl), shape B each, of an example whose label is latent: U = log_px − kl.

    .. math:: \sum_y q(y|x) \log p(x|y,z_y), \qquad
              \sum_y q(y|x) \big(KL(q(z|x,y) \| p(z)) + \log q(y|x) - \log p(y)\big)

    The entropy of q(y|x) is in the second, as KL(q(y|x) ‖ p(y)). A q(y|x) that underflows to 0 adds
    0.
    """
    log_q_YxB = log_q_BxY.T
    q_YxB = jnp.exp(log_q_YxB)
    rate_YxB = kl_YxB + log_q_YxB + math.log(len(log_q_YxB))
    return jnp.sum(q_YxB * log_px_YxB, 0), jnp.sum(q_YxB * rate_YxB, 0)


@dataclasses.dataclass(frozen=True)
class WithLabels:
    """The functions of a model whose label is a latent variable."""

    conditional: Model  # of p(x|y, z) and q(z|x, y)
    classifier: Callable[..., Array]  # params, x → logits of q(y|x), BxY

    @property
    def classes(self) -> int:
        return self.conditional.spec.classes

    def draw(self, params: Params, x: Array, keys: Array, y: Array | None = None) -> Draw:
        if y is not None:
            return self.conditional.draw(params, x, keys, y)
        logits_BxY = self.classifier(params, x)
        return over_samples(functools.partial(self.sum_over_labels, params, x, logits_BxY), keys)

    def sum_over_labels(self, params: Params, x: Array, logits_BxY: Array, keys_B: Array) -> Draw:
        r"""One pass over all labels, which share their noise: U(x) = log_px − kl, and the weight

        .. math:: w = \sum_y p(y)\, \frac{p(x|y,z_y)\, p(z_y)}{q(z_y|x,y)},
                  \qquad z_y \sim q(z|x,y)

        E[w] = p(x), since each term's expectation is p(x, y) (Burda et al. 2016, arXiv:1509.00519,
        eq. 8). q(y|x) is not in it: a classifier that is sure and wrong costs U, not this bound. z
        is that of the most probable label.
        """
        classes = self.classes
        labels = layout.constrain(jnp.arange(classes), classes)
        d = jax.vmap(functools.partial(self.conditional.draw, params, x, keys_B))(labels)
        terms = (d.log_px, d.kl.sum(-1), d.log_w)
        log_px_YxB, kl_YxB, log_w_YxB = layout.constrain(terms, classes)
        log_px, kl = over_labels(jax.nn.log_softmax(logits_BxY), log_px_YxB, kl_YxB)
        log_w = jax.nn.logsumexp(log_w_YxB, axis=0) - math.log(classes)
        z = d.z[jnp.argmax(logits_BxY, -1), jnp.arange(len(x))]
        return Draw(log_px, kl[:, None], log_w, z)

    def log_joint(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        of_label = functools.partial(self.conditional.log_joint, params, x, z)
        if y is not None:
            return of_label(y)
        log_p_YxB = jax.vmap(of_label)(jnp.arange(self.classes))
        return jax.nn.logsumexp(log_p_YxB, axis=0) - math.log(self.classes)

    def log_posterior(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        of_label = functools.partial(self.conditional.log_posterior, params, x, z)
        if y is not None:
            return of_label(y)
        log_q_YxB = jax.vmap(of_label)(jnp.arange(self.classes))
        log_q_BxY = jax.nn.log_softmax(self.classifier(params, x))
        return jax.nn.logsumexp(log_q_YxB + jnp.expand_dims(log_q_BxY.T, range(1, z.ndim - 1)), 0)

    def classify(self, params: Params, x: Array, keys: Array | None = None) -> Array:
        return self.classifier(params, x)


def with_labels(model: Model, classify: Callable[..., Array]) -> Model:
    """A model of p(x|y, z) p(y) p(z) with q(y|x) and q(z|x, y); p(y) is uniform.

    ``draw`` without labels sums over y exactly. Kingma et al. 2014 (arXiv:1406.5298), eqs. 6 and 7.
    """
    functions = WithLabels(model, classify)
    return model._replace(
        spec=model.spec._replace(labelled=True),
        draw=functions.draw,
        log_joint=functions.log_joint,
        log_posterior=functions.log_posterior,
        classify=functions.classify,
        head=None,
    )


def per_class(model: Model) -> Model:
    """A model of p(x|y, z) made of Y models: parameters ``per_class`` with a leading axis Y.

    Of labels of shape B each net computes its own rows, in a place for twice as many as an even
    batch has of a label; a batch that is more uneven is computed for all Y and picked from.
    """
    classes = model.spec.classes

    def of(function: Callable[..., object]) -> Callable[..., object]:
        def run(params: Params, v: Array, y: Array | None = None) -> object:
            if y is None:
                raise UserError("model.name=per_class: p(x|y,z) and q(z|x,y) want a label")
            if not jnp.ndim(y):
                return function(jax.tree.map(lambda p: p[y], params["per_class"]), v)
            return _by_class(function, params["per_class"], v, y, classes)

        return run

    def init(key: Array, mean_HxWxC: Array | None = None) -> Params:
        keys = jax.random.split(key, classes)
        return {"per_class": jax.vmap(lambda key: model.init(key, mean_HxWxC))(keys)}

    zero = jnp.zeros(model.spec.latent)
    parts = model.nets._replace(
        init=init,
        encode=of(lambda params, x: model.encode(params, x)),
        prior=lambda params: Normal(zero, zero),
        decode=of(lambda params, z: model.decode(params, z)),
        head=None,
    )
    from vae_jax.models.vae import vae

    return vae(model.spec, parts)._replace(nets=parts)


def _by_class(
    function: Callable[..., object], params_Y: Params, v_B: Array, y_B: Array, classes: int
) -> object:
    """``function`` of each row by the parameters of its label; see :func:`per_class`."""
    rows = jnp.arange(len(y_B))
    capacity = 2 * -(-len(y_B) // classes)
    one_hot = jax.nn.one_hot(y_B, classes, dtype=jnp.int32)
    rank_B = jnp.cumsum(one_hot, axis=0)[rows, y_B] - 1  # among the rows of its label

    def own_rows(params: Params, v: Array) -> object:
        row_YxR = jnp.zeros((classes, capacity), jnp.int32).at[y_B, rank_B].set(rows, mode="drop")
        return jax.tree.map(lambda a: a[y_B, rank_B], jax.vmap(function)(params, v[row_YxR]))

    def all_rows(params: Params, v: Array) -> object:
        return jax.tree.map(lambda a: a[y_B, rows], jax.vmap(function, (0, None))(params, v))

    if capacity >= len(y_B):
        return all_rows(params_Y, v_B)
    return jax.lax.cond(jnp.max(rank_B) < capacity, own_rows, all_rows, params_Y, v_B)
