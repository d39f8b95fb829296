"""The Hamiltonian VAE: its volume, its bound where the evidence is known, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.objectives.linear import BATCH, LOG_PX, MODEL, OTHER, B, D, batch_keys, jit
from vae_jax import config, models
from vae_jax.config import UserError
from vae_jax.models.hamiltonian import Dynamics
from vae_jax.objectives import OBJECTIVES

X = BATCH["image"]
DRAWS = 4000
# q(z0|x) is the prior.
WIDE = OTHER | {
    "encoder": {"a": jnp.zeros_like(OTHER["encoder"]["a"]), "c": jnp.zeros(D)},
    "posterior": {"logvar": jnp.zeros(D)},
}


def draws(model, seed=0):
    """log w of :data:`DRAWS` draws of each example, in float64."""
    keys = jax.random.split(jax.random.key(seed), (DRAWS, B))
    log_w = jit(lambda keys: model.draw(WIDE, X, keys).log_w)(keys)
    return np.asarray(log_w, np.float64)


@pytest.mark.parametrize("beta0", [1.0, 0.3])
def test_the_log_determinant_is_that_of_the_tempering(beta0):
    dynamics = Dynamics(MODEL, 3, 0.3, beta0)
    point = jax.random.normal(jax.random.key(0), (1, 2 * D))

    def moved(point):
        z, momentum = dynamics.move(OTHER, X[:1], point[:, :D], point[:, D:])
        return jnp.concatenate([z, momentum], axis=-1)[0]

    jacobian = jit(jax.jacrev(moved))(point)[:, 0]
    sign, log_det = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    assert sign == 1
    assert log_det == pytest.approx(0.5 * D * np.log(beta0), abs=1e-5)
    assert np.prod(dynamics.cooling()) == pytest.approx(beta0**0.5)


def test_small_steps_keep_the_energy():
    dynamics = Dynamics(MODEL, 5, 0.05, 1.0)
    z, momentum = jax.random.normal(jax.random.key(1), (2, B, D))
    z_end, momentum_end = jit(lambda z, m: dynamics.move(OTHER, X, z, m))(z, momentum)

    def energy(z, momentum):
        return 0.5 * (momentum**2).sum(-1) - MODEL.log_joint(OTHER, X, z)

    assert (np.abs(z_end - z).max(-1) > 0.05).all()
    np.testing.assert_allclose(energy(z_end, momentum_end), energy(z, momentum), rtol=0.01)


@pytest.mark.parametrize("beta0", [1.0, 0.3])
def test_the_weights_average_to_the_evidence_and_the_bound_lies_below(beta0):
    """Also: a q(z0|x) that is too wide gains by the tempering, and by nothing else.

    Dynamics that keep volume and energy keep the KL to p(z, ρ|x).
    """
    log_w = draws(models.hamiltonian(MODEL, 4, 0.2, beta0))
    ratio = np.exp(log_w - LOG_PX)
    error = ratio.std(0) / np.sqrt(DRAWS)
    assert (np.abs(ratio.mean(0) - 1) < 4 * error).all() and (error < 0.2).all()
    bound_error = log_w.std(0) / np.sqrt(DRAWS)
    assert (log_w.mean(0) < LOG_PX - 4 * bound_error).all()
    plain = draws(MODEL)
    gain = log_w.mean(0) - plain.mean(0)
    if beta0 < 1:
        assert (gain > 1.5).all()
    else:
        assert (np.abs(gain) < 0.4).all()


def test_tiny_steps_are_the_models_own_draw():
    """ε → 0: z stays, and the momentum's densities cancel."""
    model = models.hamiltonian(MODEL, 1, 1e-6, 1.0)

    @jit
    def run(keys):
        moved = model.draw(OTHER, X, keys)
        log_q = MODEL.log_posterior(OTHER, X, moved.z)
        return moved, MODEL.log_joint(OTHER, X, moved.z) - log_q

    moved, log_w = run(batch_keys(jax.random.key(2)))
    np.testing.assert_allclose(moved.log_w, log_w, atol=1e-4)
    np.testing.assert_allclose(moved.log_px - moved.kl[:, 0], moved.log_w, rtol=1e-6)


NETS = {
    "mlp": ({"widths": (6,), "activation": "tanh"}, {"widths": (6,), "activation": "tanh"}),
    "conv": ({"widths": (4,), "strides": (2,), "dense": 6}, {"widths": (16, 16), "dense": 6}),
}


def built(net="mlp", **changes):
    c = config.default()
    c.latent = 3
    for part, fields in zip(("encoder", "decoder"), NETS[net], strict=True):
        c[part] = config.call(part, net, **fields)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.model = config.call("model", "hamiltonian", steps=1, step_size=0.1)
    for field, value in changes.items():
        config.set_field(c, field.replace("__", "."), value)
    return models.build(c, shape=(4, 4, 1), levels=2, classes=0, binary=True)


@pytest.mark.parametrize("net", ["mlp", pytest.param("conv", marks=pytest.mark.slow)])
def test_gradients_go_through_the_leapfrog(net):
    """Reverse mode over reverse mode through the forms for CPU, against a finite difference."""
    m = built(net)
    x = jax.random.bernoulli(jax.random.key(0), 0.4, (3, 4, 4, 1)).astype(jnp.float32)
    keys = batch_keys(jax.random.key(1))
    flat, unravel = ravel_pytree(jax.jit(m.init)(jax.random.key(2)))
    flat = flat + 0.05 * jax.random.normal(jax.random.key(3), flat.shape)

    @jax.jit
    def value_and_grad(flat):
        def loss(flat):
            return OBJECTIVES["elbo"](m, unravel(flat), {"image": x}, keys).loss.sum()

        return jax.value_and_grad(loss)(flat)

    gradient = np.asarray(value_and_grad(flat)[1], np.float64)
    direction = gradient / np.linalg.norm(gradient)
    step = 1e-2
    ends = [float(value_and_grad(flat + s * step * direction)[0]) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=0.02)


@pytest.mark.parametrize(
    ("objective", "numbers", "message"),
    [
        ("iwae", {"estimator": "dreg"}, "log q.* is not known"),
        ("beta_tcvae", {}, "diagonal Gaussians"),
        ("free_bits", {}, "per=level"),
    ],
)
def test_objectives_that_need_the_density_of_z_are_refused(objective, numbers, message):
    m = models.hamiltonian(MODEL, 2, 0.1, 0.5)
    keys = batch_keys(jax.random.key(0))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: OBJECTIVES[objective](m, OTHER, BATCH, keys, **numbers))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__step_size": 0.0}, r"model\.step_size=0\.0: want"),
        ({"model__beta0": 2.0}, r"model\.beta0=2\.0: want"),
        ({"decoder": config.call("decoder", "ladder")}, "decoder.name=ladder: model hamiltonian"),
    ],
)
def test_what_it_is_not_made_for_is_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        built(**changes)
