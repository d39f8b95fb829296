"""Flows: they invert, their log-determinants are the Jacobian's, their densities integrate to 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vae_jax import distributions as de
from vae_jax.nets.flows import MADE, CouplingNet

KEY = jax.random.key(0)
STEPS = 2


@functools.partial(jax.jit, static_argnums=(1, 2))
def perturb(params, scale, seed=1):
    """Random numbers in place of all parameters, the zero last layers included."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    return tree.unflatten([scale * jax.random.normal(k, v.shape, v.dtype) for k, v in pairs])


def coupling_flow(d, scale=None):
    """A RealNVP prior over d dimensions; ``scale`` of the random weights, None for a fresh one."""
    net = CouplingNet(hidden=(16,), out=d)
    init = jax.jit(net.init)
    params = [init(jax.random.key(i), jnp.zeros(d))["params"] for i in range(STEPS)]
    params = params if scale is None else perturb(params, scale)
    return de.coupling_flow(
        de.Normal(jnp.zeros(d), jnp.zeros(d)), lambda p, z: net.apply({"params": p}, z), params
    )


def iaf(b, d, scale=None):
    """An IAF posterior for a batch of b, given a context of 5 numbers."""
    net = MADE(hidden=(12, 16), dim=d)

    def draw(i, *shape):
        return jax.random.normal(jax.random.key(i), shape)

    context = draw(7, b, 5)
    init = jax.jit(net.init)
    params = [init(jax.random.key(i), jnp.zeros((b, d)), context)["params"] for i in range(STEPS)]
    params = params if scale is None else perturb(params, scale)
    base = de.Normal(draw(8, b, d), 0.3 * draw(9, b, d))
    return de.autoregressive_flow(
        base, lambda p, z, c: net.apply({"params": p}, z, c), params, context
    )


def flow_of(kind, b, d, scale=None):
    return coupling_flow(d, scale) if kind == "coupling" else iaf(b, d, scale)


log_prob = jax.jit(lambda flow, z: flow.log_prob(z))
sample = jax.jit(lambda flow, keys: flow.sample_and_log_prob(keys))


def keys(*shape):
    return jax.random.split(KEY, shape)


KINDS = pytest.mark.parametrize("kind", ["coupling", "autoregressive"])


@pytest.mark.parametrize("dim, hidden", [(1, (8,)), (2, (8, 8)), (6, (24, 24)), (6, ())])
def test_made_sees_earlier_dimensions_and_all_of_the_context(dim, hidden):
    net = MADE(hidden, dim)
    z, context = jax.random.normal(KEY, (dim,)), jnp.ones(3)
    params = perturb(jax.jit(net.init)(KEY, z, context), 1.0)
    for by_z, by_context in jax.jit(jax.jacobian(lambda *a: net.apply(params, *a), (0, 1)))(
        z, context
    ):
        below = np.tri(dim, k=-1, dtype=bool)
        assert (by_z[~below] == 0).all()
        assert (by_z[below] != 0).all()
        assert (by_context != 0).all() if hidden else (by_context == 0).all()


def test_made_masks_by_hand():
    """Two dimensions, hidden degrees 0 and 1: x1 → h1 → second shift and second log-scale."""
    first, last = de.made_masks(2, (2,))
    np.testing.assert_array_equal(first, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(last, [[1, 1, 1, 1], [0, 1, 0, 1]])


@pytest.mark.parametrize("step", ["coupling", "autoregressive", "autoregressive reversed"])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_step_inverts_and_its_log_det_is_the_jacobians(step, d):
    with jax.enable_x64(True):
        w = jax.random.normal(KEY, (2, d, d), jnp.float64)
        if step == "coupling":

            def net(z):
                return (jnp.sin(z @ w[0]), jnp.cos(z @ w[1]))

            def f(z, **kw):
                return de.coupling(z, np.arange(d) % 2, net, **kw)
        else:
            w = jnp.triu(w, 1)

            def net(z):
                return (jnp.sin(z @ w[0]), jnp.cos(z @ w[1]))

            def f(z, **kw):
                return de.autoregressive(z, net, reverse="reversed" in step, **kw)

        u = 2 * jax.random.normal(jax.random.key(1), (6, d), jnp.float64)
        z, log_det = jax.jit(f)(u)
        back, log_det_back = jax.jit(lambda z: f(z, inverse=True))(z)
        np.testing.assert_allclose(back, u, atol=1e-12)
        np.testing.assert_allclose(log_det_back, -log_det, atol=1e-12)
        for kw, x, want in (({}, u, log_det), ({"inverse": True}, z, -log_det)):
            jacobian = jax.jit(jax.vmap(jax.jacobian(lambda x, kw=kw: f(x, **kw)[0])))(x)
            np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], want, atol=1e-12)


@KINDS
def test_a_flow_moves_every_dimension_and_its_log_det_is_the_jacobians(kind):
    with jax.enable_x64(True):
        flow = jax.tree.map(lambda v: v.astype(jnp.float64), flow_of(kind, 1, 4, 0.5))

        def forward(u):
            total = 0.0
            for step, params in zip(flow.steps, flow.params, strict=True):
                u, log_det = step(params, u)
                total += log_det[0]
            return u[0], total

        u = jax.random.normal(KEY, (1, 4), jnp.float64)
        z, log_det = jax.jit(forward)(u)
        jacobian = jax.jit(jax.jacobian(lambda u: forward(u)[0]))(u)[:, 0]
        np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], log_det, atol=1e-12)
        assert (np.abs(np.asarray(jacobian)) > 0).sum() > 10  # the steps' order alternates
        want = flow.base.log_prob(u) - log_det
        np.testing.assert_allclose(log_prob(flow, z[None]), want, rtol=1e-10)


@KINDS
def test_a_fresh_flow_is_its_base(kind):
    flow = flow_of(kind, 6, 5)
    z, log_q = sample(flow, keys(6))
    np.testing.assert_allclose(z, flow.base.sample(keys(6)), rtol=1e-6)
    np.testing.assert_allclose(log_q, flow.base.log_prob(z), rtol=1e-5)


@KINDS
def test_samples_come_with_their_density_in_every_layout(kind):
    flow = flow_of(kind, 6, 5, 0.3)
    z_KxBxD, log_q = sample(flow, keys(3, 6))
    assert z_KxBxD.shape == (3, 6, 5) and log_q.shape == (3, 6)
    np.testing.assert_allclose(log_prob(flow, z_KxBxD), log_q, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(flow.log_prob))(z_KxBxD), log_q, rtol=1e-3, atol=1e-3
    )
    assert (np.abs(z_KxBxD - flow.base.sample(keys(3, 6))) > 1e-2).any()


@KINDS
def test_a_flows_density_integrates_to_one_and_is_that_of_its_samples(kind):
    flow = flow_of(kind, 1, 2, 0.3)
    x = np.arange(-16, 16, 0.1, dtype=np.float32)
    grid_GxD = jnp.asarray(np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 1, 2))
    p = np.exp(np.asarray(log_prob(flow, grid_GxD)[:, 0], np.float64)) * 0.1**2
    np.testing.assert_allclose(p.sum(), 1, atol=2e-3)
    z = np.asarray(sample(flow, keys(50_000, 1))[0][:, 0], np.float64)
    for moment in (lambda v: v, np.abs, lambda v: v[:, :1] * v[:, 1:]):
        values = moment(z)
        error = values.std(0) / np.sqrt(len(values))
        assert (
            np.abs(values.mean(0) - p @ moment(np.asarray(grid_GxD)[:, 0])) < 4 * error + 2e-3
        ).all()


@KINDS
def test_stop_makes_a_flows_parameters_constant(kind):
    flow = flow_of(kind, 4, 3, 0.3)
    z = jax.random.normal(KEY, (4, 3))

    def gradients(of):
        return jax.jit(jax.grad(lambda f, z: of(f).log_prob(z).sum(), argnums=(0, 1)))(flow, z)

    by_flow, by_z = gradients(de.stop)
    assert all((g == 0).all() for g in jax.tree.leaves(by_flow))
    np.testing.assert_allclose(by_z, gradients(lambda f: f)[1], rtol=1e-6)
    moved = jax.jit(jax.grad(lambda f: f.sample_and_log_prob(keys(4))[1].sum()))(
        flow
    )  # a sample's log q
    assert any((g != 0).any() for g in jax.tree.leaves(moved.params))


@KINDS
@pytest.mark.parametrize("output", [-200.0, 0.5, 200.0])
def test_values_and_gradients_are_finite_whatever_a_conditioner_says(kind, output):
    def f(z, v):
        def net(x):
            return (jnp.full_like(x, v), jnp.full_like(x, v))

        if kind == "coupling":
            (a, b), (c, d) = (de.coupling(z, [1, 0, 1], net, inverse=i) for i in (False, True))
        else:
            (a, b), (c, d) = (de.autoregressive(z, net, inverse=i) for i in (False, True))
        return a.sum() + b.sum() + c.sum() + d.sum()

    value, gradients = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(jnp.ones((2, 3)), output)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    assert (gradients[0] != 0).all() and gradients[1] != 0


@KINDS
def test_gradients_are_those_of_finite_differences_in_float64(kind):
    with jax.enable_x64(True):
        flow = jax.tree.map(lambda v: v.astype(jnp.float64), flow_of(kind, 2, 3, 0.4))
        z = jax.random.normal(KEY, (2, 3), jnp.float64)
        for f in (lambda f, z: f.log_prob(z), lambda f, z: f.sample_and_log_prob(keys(2))):
            check_grads(
                jax.jit(f), (flow, z), order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-6
            )
