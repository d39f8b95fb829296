"""The nets of a hierarchy: what each level may and may not touch, its labels, its run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import parity
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.evaluate import generation, likelihood
from vae_jax.evaluate.run import level_rates
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules as sharding
from vae_jax.models.hierarchy import Levels
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.terms import bound
from vae_jax.train import step

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def batch_keys(seed, n):
    return jax.random.split(jax.random.key(seed), n)


def small(kind, **fields):
    c = config.default()
    if kind == "ladder":
        c.encoder = config.call("encoder", "mlp", widths=(16, 16, 16))
        c.decoder = config.call("decoder", "ladder", latents=(2, 3, 4), width=8, inner=8, **fields)
    else:
        c.encoder = config.call("encoder", "residual", widths=(4, 4), depths=(1, 1), patch=2)
        c.decoder = config.call(
            "decoder", "vdvae", widths=(4, 4), depths=(2, 1), channels=2, patch=2, **fields
        )
    return c


def built(kind, shape=(8, 8, 1), classes=0, **changes):
    c = small("vdvae", scan=True) if kind == "scan" else small(kind)
    for field, value in changes.items():
        c[field] = value
    m = models.build(c, shape=shape, levels=17, classes=classes, binary=False)
    shapes = jax.eval_shape(m.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(
        0
    )  # a fresh prior does not depend on what is above it: not what a test wants
    return (
        c,
        m,
        jax.tree.unflatten(
            tree, [jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype) for a in leaves]
        ),
    )


@pytest.mark.parametrize("kind", ["ladder", "vdvae", "scan"])
def test_a_levels_latent_moves_no_level_above_it(kind):
    """∂ log q_l / ∂ z_m and ∂ log p_l / ∂ z_m: nothing for m > l, something for m = l and for each
    m < l.
    """
    _, m, params = built(kind)
    x = jax.random.uniform(jax.random.key(1), (1, 8, 8, 1))
    z = jax.random.normal(jax.random.key(2), (1, m.latent))
    sizes = [d for n, d in m.spec.groups for _ in range(n)]
    levels = Levels(m.spec, m.nets)

    def log_qz(z):
        return levels.at(params, m.nets.features(params, x), z, None).log_qz[0]

    def log_pz(z):
        return levels.at(params, None, z, None).log_pz[0]

    for density in (log_qz, log_pz):
        jacobian = jit(jax.jacrev(density))(z)[:, 0]
        norms = np.array(
            [
                [np.abs(part).sum() for part in np.split(row, np.cumsum(sizes)[:-1])]
                for row in jacobian
            ]
        )
        assert (norms[np.triu_indices(len(sizes), 1)] == 0).all()
        assert (norms[np.tril_indices(len(sizes))] > 1e-6).all()


@pytest.mark.parametrize("kind", ["ladder", "vdvae"])
def test_one_draw_is_the_first_of_several(kind):
    _, m, params = built(kind)
    x, keys = (
        jax.random.uniform(jax.random.key(0), (5, 8, 8, 1)),
        jax.random.split(jax.random.key(1), (2, 5)),
    )

    def densities_of(params, keys):
        d = m.draw(params, x, keys)
        path = m.log_joint(params, x, d.z) - m.log_posterior(params, x, d.z)
        return *d, path

    one = jit(densities_of)(params, keys[:1])
    two = jit(densities_of)(params, keys)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.shape == (1, *b.shape[1:])
        np.testing.assert_allclose(a[0], b[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(two[-1], two[2], rtol=1e-4, atol=1e-3)  # the importance weight


@pytest.mark.parametrize(("kind", "second"), [("ladder", "level_1"), ("vdvae", "level_0_1")])
def test_a_level_whose_posterior_is_its_prior_costs_nothing(kind, second):
    m = models.build(small(kind), shape=(8, 8, 1), levels=17, classes=0, binary=False)
    params = jit(m.init)(jax.random.key(0))  # a fresh prior is N(0, I)
    last = params["decoder"][second]["posterior"]["Dense_1"]
    params["decoder"][second]["posterior"]["Dense_1"] = jax.tree.map(jnp.zeros_like, last)
    d = jit(m.draw)(params, jax.random.uniform(jax.random.key(1), (5, 8, 8, 1)), batch_keys(2, 5))
    assert (d.kl[:, 1] == 0).all() and (d.kl[:, [0, 2]] > 0).all()
    np.testing.assert_array_equal(d.extra["log_qz"][:, 1], d.extra["log_pz"][:, 1])


def test_first_levels_from_the_image_the_others_from_the_prior_with_a_temperature():
    _, m, params = built("vdvae")
    x, keys = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1)), batch_keys(2, 3)
    complete = jit(lambda first, t: m.complete(params, x, keys, first=first, temperature=t))
    sizes = [d for n, d in m.spec.groups for _ in range(n)]
    mu, cold = jit(lambda p: (m.encode(p, x).mu, m.prior(p).mu))(params)
    half = complete(1, 0.0)
    np.testing.assert_allclose(complete(m.levels, 1.0), mu, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        complete(0, 0.0), np.broadcast_to(cold, mu.shape), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(half[:, : sizes[0]], mu[:, : sizes[0]], rtol=1e-5, atol=1e-5)
    assert np.abs(half - mu)[:, sizes[0] :].max() > 1e-3
    warm = complete(0, jnp.array([0.0, 1.0, 0.0]))  # one temperature for each level
    np.testing.assert_allclose(
        warm[:, : sizes[0]], np.broadcast_to(cold, mu.shape)[:, : sizes[0]], atol=1e-5
    )
    assert np.abs(warm - cold)[:, sizes[0] : sizes[0] + sizes[1]].min(1).max() > 0


@pytest.mark.slow
def test_levels_in_a_loop_and_rematerialised_are_the_same_levels():
    _, m, params = built("vdvae")
    x, keys = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1)), batch_keys(2, 2)

    def run(m):
        return jit(jax.value_and_grad(lambda p: -m.draw(p, x, keys).log_w.mean()))

    value, gradient = run(m)(params)
    for remat, scan in (("full", False), ("full", True)):
        c, theirs = small("vdvae", scan=scan), params
        c.remat = remat
        other = models.build(c, shape=(8, 8, 1), levels=17, classes=0, binary=False)

        def stack(tree):
            return {k: v for k, v in tree.items() if not k.startswith("level_")} | {
                f"levels_{i}": jax.tree.map(
                    lambda *a: jnp.stack(a), *[tree[f"level_{i}_{j}"] for j in range(n)]
                )
                for i, n in enumerate((2, 1))
            }

        want = gradient
        if scan:
            theirs, want = ({**t, "decoder": stack(t["decoder"])} for t in (params, gradient))
        got, back = run(other)(theirs)
        np.testing.assert_allclose(got, value, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), back, want
        )


CONDITIONAL = {
    "model": config.call("model", "m2"),
    "objective": config.call("objective", "m2"),
    "classifier": config.call("classifier", "mlp"),
}


@pytest.mark.parametrize("kind", ["ladder", "vdvae"])
def test_labels_shape_the_prior_and_the_bound_of_a_conditional_hierarchy(kind):
    _, m, params = built(kind, classes=3, **CONDITIONAL)
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    sample = jit(lambda y: m.sample(params, batch_keys(0, 2), y))
    assert np.abs(sample(jnp.array([0, 0])) - sample(jnp.array([1, 1]))).max() > 1e-3
    z, image = (
        sample(jnp.array([0, 0])),
        jit(lambda z, y: m.likelihood.mean(m.decode(params, z, y))),
    )
    assert (
        np.abs(image(z, jnp.array([0, 0])) - image(z, jnp.array([1, 0])))[0].max() > 1e-3
    )  # p(x|y,z)
    batch = {"image": x, "label": jnp.array([0, 2])}
    terms = jit(lambda p: OBJECTIVES["m2"](m, p, batch, batch_keys(2, 2)))(params)
    assert np.isfinite(terms.loss).all() and terms.loss.shape == (2,)
    d = jit(lambda p: likelihood.draws(m, p, x, jnp.arange(2), jax.random.key(3), 0, 2))(params)
    assert d.log_w.shape == (2, 2) and np.isfinite(d.log_w).all()
    assert jax.eval_shape(m.classify, params, x).shape == (2, 3)


def test_the_levels_of_a_labelled_bound_sum_to_its_kl():
    """Example by example, as the bound of m2 has it; without a label no level is known."""
    c, m, params = built("ladder", classes=3, **CONDITIONAL)
    rng, mesh = np.random.default_rng(0), sharding.make_mesh(c.mesh, jax.devices()[:1])
    split = data.Split(
        rng.integers(0, 17, (6, 8, 8, 1)).astype(np.uint8), np.array([0, 2, 1, -1, 2, 0], np.int32)
    )
    dataset = data.Dataset("", (8, 8, 1), 17, (), split, split, split)
    subject = Subject(c, m, params, dataset, mesh)
    rates_L = level_rates(subject, split)
    known, key = data.labelled(split), step.stream(c.seed, "levels")

    @jit
    def rate(x, i, y):  # of one image, with the noise that is its own
        keys = jax.random.fold_in(jax.random.fold_in(key, i), 0)[None, None]
        return bound(m.draw(params, x[None] / 16, keys, y=y[None]))[2][0]

    def kl(label):
        return np.mean(
            [rate(x, i, y) for i, (x, y) in enumerate(zip(known.image, label, strict=True))]
        )

    assert rates_L.shape == (3,) and (rates_L > 0).all() and len(known.label) == 5
    np.testing.assert_allclose(rates_L.sum(), kl(known.label), rtol=1e-5)
    assert abs(kl((known.label + 1) % 3) / rates_L.sum() - 1) > 1e-3
    for label in (None, np.full(6, -1, np.int32)):
        assert level_rates(subject, split._replace(label=label)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": config.call("encoder", "conv")}, "encoder.name=conv: decoder ladder wants"),
        (
            {"encoder": config.call("encoder", "mlp")},
            r"decoder.latents=\(2, 3, 4\): want as many levels as",
        ),
        ({"latent": 7}, "latent=7: decoder ladder has levels of its own"),
        ({"prior": config.call("prior", "vamp")}, "prior.name=vamp: decoder ladder has levels"),
    ],
)
def test_what_does_not_fit_a_hierarchy_is_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=message):
        built("ladder", **change)


def test_the_code_of_a_hierarchy_is_its_coarsest_levels():
    _, m, params = built("vdvae", classes=4, classifier=config.call("classifier", "mlp"))
    assert m.spec.code == 2 * 2 * 2 * 2 and m.latent == m.spec.code + 4 * 4 * 2
    assert params["classifier"]["out"]["kernel"].shape == (m.spec.code, 4)
    z = jax.random.normal(jax.random.key(0), (3, m.latent))
    head = jit(m.head)
    np.testing.assert_array_equal(head(params, z), head(params, z[:, : m.spec.code]))


def ladder_step(**changes):
    c = parity.small(**changes)
    c.latent = 16
    c.encoder, c.decoder = small("ladder").encoder, small("ladder").decoder
    config.validate(c)
    return c


@pytest.mark.slow
def test_one_device_eight_shards_and_microbatches_make_the_same_trace():
    one, _ = parity.trace(ladder_step(), jax.devices()[:1], 5)
    eight, _ = parity.trace(ladder_step(compile="shard_map", accumulate=2), jax.devices()[:8], 5)
    np.testing.assert_allclose(eight, one, rtol=2e-5)


@pytest.mark.slow
def test_bfloat16_nets_keep_the_loss_of_float32_within_half_a_percent():
    """The mean loss over the last quarter of 200 steps; the noise of both is the same."""
    (a, _), (b, _) = (
        parity.trace(
            ladder_step(dtype=dtype, steps_per_call=20, unroll=False), jax.devices()[:1], 10
        )
        for dtype in ("float32", "bfloat16")
    )
    assert a[-50:].mean() < 0.9 * a[0]  # it learns
    assert abs(b[-50:].mean() / a[-50:].mean() - 1) < 0.005


def test_pictures_of_a_hierarchy():
    _, m, params = built("ladder")
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    found = generation.pictures(m, params, x, jax.random.key(2), samples=6, columns=3)
    assert len(found["levels"]) == 1 + m.levels + 1 and len(found["temperatures"]) == len(
        generation.TEMPERATURES
    )
    np.testing.assert_allclose(found["levels"][-1], found["reconstructions"], rtol=1e-5, atol=1e-5)
    masked, whole = found["inpainting"]
    np.testing.assert_array_equal(masked[:, :4], x[:, :4])
    np.testing.assert_array_equal(whole[:, :4], x[:, :4])
    assert (masked[:, 4:] == 0.5).all() and whole[:, 4:].std() > 0
    train = np.random.default_rng(0).integers(0, 17, (50, 8, 8, 1)).astype(np.uint8)
    near = generation.nearest(train[[7, 31]] / 16 + 0.01, train, 17, chunk=13)
    np.testing.assert_allclose(near, train[[7, 31]] / 16, atol=1e-6)
