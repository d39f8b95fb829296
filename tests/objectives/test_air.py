"""Attend, infer, repeat: windows, counts, a toy's evidence by quadrature, both gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from tests.objectives.scene_models import air_config, build, moved
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models import air
from vae_jax.objectives import OBJECTIVES
from vae_jax.train import program

STEPS = 2
GRID = np.linspace(-6, 6, 121)  # of what, for quadrature


@pytest.fixture(scope="module")
def toy():
    """(model, parameters, an image of two objects)."""
    model = build(air_config())
    params = moved(model)
    # q(where) = p(where): the weights of draws have a variance.
    out = params["attend"]["out"]
    out["kernel"] = out["kernel"].at[:, 1:].set(0)
    out["bias"] = out["bias"].at[1:].set(jnp.array([0, 0, 0, 3.0, 3.0, 3.0]))
    rng = np.random.default_rng(0)
    what = jnp.array([[[0.8], [-0.5]]])
    latents = air.Latents(jnp.ones((1, 2)), jnp.zeros((1, 2, 3)), what)
    x = program.simple(model.decode)(params, air.join(latents))
    x = x + 0.3 * rng.normal(size=x.shape)
    return model, params, jnp.asarray(x, jnp.float32)


def log_evidence(model, params, x):
    """log p(x) by quadrature over what, the sum over n written out."""
    glyph = np.asarray(program.simple(model.nets.parts.glyph)(params, GRID[:, None]), np.float64)
    glyph = glyph.reshape(len(GRID), -1)
    log_p = stats.norm.logpdf(GRID) + np.log(GRID[1] - GRID[0])
    x = np.asarray(x, np.float64).ravel()

    def log_px(mean):
        return stats.norm.logpdf(x, mean, np.exp(-0.5)).sum(-1)

    pairs = log_px(glyph[:, None] + glyph[None]) + log_p[:, None] + log_p
    terms = [
        np.log(0.6) + log_px(0 * x),
        np.log(0.4 * 0.6) + logsumexp(log_px(glyph) + log_p),
        np.log(0.4**2) + logsumexp(pairs),
    ]
    return logsumexp(terms)


def copies(x, n, seed):
    return jnp.repeat(x, n, axis=0), jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize(("length", "corner"), [(5, (2, 3)), (15, (1, 4))])
def test_reading_what_was_written_gives_it_back(length, corner):
    glyph = jnp.asarray(np.random.default_rng(0).random((2, 5, 5, 3)), jnp.float32)
    box = jnp.array([[*corner, length, length]] * 2, jnp.float32)

    @program.simple
    def there_and_back(glyph):
        canvas = air.write(glyph, box, 24)
        return canvas, air.read(canvas, box, 5)

    canvas, again = there_and_back(glyph)
    np.testing.assert_allclose(again, glyph, atol=1e-5)
    x, y = corner
    outside = np.array(canvas)
    tail = length // 10  # bilinear: half a pixel of the glyph
    outside[:, y - tail : y + length + tail, max(x - tail, 0) : x + length + tail] = 0
    assert outside.max() == 0 and canvas.shape == (2, 24, 24, 3)


def test_windows_gradients_are_finite_differences():
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.random((1, 12, 12, 1)), jnp.float32)
    glyph = jnp.asarray(rng.random((1, 5, 5, 1)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(1, 12, 12, 1)), jnp.float32)
    box = jnp.array([[2.3, 3.6, 6.7, 6.7]])

    def of_box(box):
        seen = air.read(image, box, 5) * weight[:, :5, :5]
        return jnp.sum(air.write(glyph, box, 12) * weight) + jnp.sum(seen)

    value = program.simple(of_box)
    slope = program.simple(jax.grad(of_box))(box)[0]
    for i in range(4):
        step = jnp.zeros((1, 4)).at[0, i].set(2e-3)
        difference = (value(box + step) - value(box - step)) / 4e-3
        np.testing.assert_allclose(slope[i], difference, rtol=0.03, atol=0.02)


def test_a_window_of_the_prior_lies_within_the_canvas():
    law = air.Law(2, 5, 4, 0.5, 0.4, 0.2)
    where = jax.random.normal(jax.random.key(0), (500, 3))
    box = np.asarray(air.windows(where, law, 50))
    assert (box[:, :2] >= 0).all() and (box[:, :2] + box[:, 2:] <= 50.001).all()
    assert np.median(box[:, 2]) == pytest.approx(20, rel=0.05)


def test_the_prior_of_the_count_and_q_of_it_sum_to_one(toy):
    model, params, x = toy
    for steps in (1, 2, 5):
        assert np.exp(air.log_count(0.4, steps)).sum() == pytest.approx(1, rel=1e-6)
    logits = jnp.array([[0.3, -2.0], [1.0, 4.0]])
    np.testing.assert_allclose(np.exp(air.count_of_logits(logits)).sum(1), 1, rtol=1e-6)
    p = jax.nn.sigmoid(logits[0])
    expected = [1 - p[0], p[0] * (1 - p[1]), p[0] * p[1]]
    np.testing.assert_allclose(np.exp(air.count_of_logits(logits))[0], expected, rtol=1e-6)
    counted = program.simple(model.classify)(params, x)
    np.testing.assert_allclose(jax.nn.logsumexp(counted, -1), 0, atol=1e-5)
    z = model.sample(params, jax.random.split(jax.random.key(0), 4000))
    share = np.bincount(np.asarray(z[:, :STEPS]).sum(1).astype(int)) / 4000
    np.testing.assert_allclose(share, np.exp(air.log_count(0.4, STEPS)), atol=0.03)
    assert (np.asarray(z[:, 1]) <= np.asarray(z[:, 0])).all(), "no step after an absent one"


def test_latents_are_joined_and_divided():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(4, 2, size)).astype(np.float32) for size in (3, 5)]
    latents = air.Latents(np.ones((4, 2), np.float32), *parts)
    again = air.divide(air.join(latents), 2)
    jax.tree.map(np.testing.assert_array_equal, again, latents)


def test_the_weight_of_a_draw_is_the_ratio_of_its_densities(toy):
    model, params, x = toy
    x, keys = copies(x, 40, 1)

    @program.simple
    def both(params, keys_KxB):
        d = model.draw(params, x, keys_KxB)
        ratio = model.log_joint(params, x, d.z) - model.log_posterior(params, x, d.z)
        return d, ratio

    d, ratio = both(params, split_keys(keys, 3))
    assert d.log_w.shape == (3, 40) and d.kl.shape == (3, 40, 1)
    np.testing.assert_allclose(d.log_w, ratio, rtol=1e-4, atol=1e-3)
    counts = np.asarray(d.z[..., :STEPS]).sum(-1)
    assert set(counts.ravel()) == {0, 1, 2}


def test_the_bound_is_below_the_evidence_and_the_weights_mean_is_it(toy):
    model, params, x = toy
    x, keys = copies(x, 40_000, 2)
    d = program.simple(model.draw)(params, x, keys)
    exact = log_evidence(model, params, x[:1])
    elbo = np.asarray(d.log_px - d.kl[:, 0], np.float64)
    assert elbo.mean() < exact - 0.1
    weight = np.exp(np.asarray(d.log_w, np.float64) - exact)
    assert abs(weight.mean() - 1) < 4 * weight.std() / np.sqrt(len(weight))
    assert weight.std() / np.sqrt(len(weight)) < 0.1
    # The closed-form rate and the sampled log q − log p have one mean.
    gap = elbo - np.asarray(d.log_w)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


@pytest.mark.slow
def test_rloo_has_the_gradient_of_the_enumerated_bound(toy):
    model, params, x = toy
    inside = model.nets
    groups = 40
    size = 100

    def enumerated(params, keys_B, x_B):
        """Σ over presences q(n) f(n), for the noise of these keys."""
        draws = inside.draws(keys_B)
        total = 0
        for path in ((0, 0), (1, 0), (1, 1)):

            def choose(t, q, logit=None, path=path):
                if logit is None:
                    return draws(t, q)
                return jnp.full(len(x_B), float(path[t])), draws(t, q, logit)[1]

            z, q = inside.infer(params, x_B, choose)
            value = inside.log_px(params, x_B, z) - inside.rate(z, q)
            total += jnp.exp(air.log_presence(z.present, q.logit)) * value
        return -jnp.mean(total)

    def sampled(params, keys_B, x_B):
        batch = {"image": x_B, "label": jnp.zeros(len(x_B), int), "step": 0}
        terms = OBJECTIVES["air_rloo"](model, params, batch, keys_B, samples=2)
        return jnp.mean(terms.loss)

    x, keys = copies(x, size, 3)
    keys = split_keys(keys, groups)
    rows = []
    for loss in (enumerated, sampled):
        slope = program.simple(jax.grad(loss))
        flat = []
        for group in keys:
            leaves = jax.tree.leaves(slope(params, group, x))
            flat.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
        rows.append(np.stack(flat))
    exact, estimate = (row.astype(np.float64) for row in rows)
    alive = exact.std(0) > 1e-6
    difference = (estimate.mean(0) - exact.mean(0))[alive]
    error = np.sqrt((estimate.var(0) + exact.var(0)) / groups)[alive]
    assert alive.sum() > 50
    z = difference / error
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.5
    without_score = np.abs(exact.mean(0)[alive]) / error
    assert without_score.max() > 8, "the test can tell a gradient from none"


def test_relaxed_presences_go_to_drawn_ones(toy):
    model, params, x = toy
    x, keys = copies(x, 64, 4)
    cold = program.simple(lambda p: model.nets.relaxed(p, x, keys, 1e-4))(params)
    hard = program.simple(lambda p: model.draw(p, x, keys))(params)
    np.testing.assert_allclose(cold.log_px, hard.log_px, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(cold.kl, hard.kl, rtol=1e-3, atol=1e-2)


def test_lit_boxes():
    lit = np.zeros((3, 7, 9), bool)
    lit[0, 2:5, 1:8] = True
    lit[1, 6, 8] = True
    boxes = np.asarray(air.lit_boxes(jnp.asarray(lit)))
    np.testing.assert_array_equal(boxes, [[1, 2, 7, 3], [8, 6, 1, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__present": 1.0}, "model.present=1.0: want 0 < value < 1"),
        ({"likelihood": "discretized_logistic"}, "sums objects; want gaussian or bernoulli"),
        ({"decoder": "none"}, "decoder.name=none: model attend_infer_repeat draws one object"),
    ],
)
def test_a_config_that_cannot_be_built_is_one_line(fields, words):
    c = air_config()
    for field, value in fields.items():
        if field in ("likelihood", "decoder"):
            c[field] = config.call(field, value)
        else:
            config.set_field(c, field.replace("__", "."), value)
    with pytest.raises(UserError, match=re.escape(words)):
        build(c)


def test_an_objective_that_cannot_be_meant_is_one_line(toy):
    model, params, x = toy
    batch = {"image": x, "label": jnp.zeros(1, int)}
    _, keys = copies(x, 1, 0)
    with pytest.raises(UserError, match=r"objective\.samples=1: air_rloo compares draws"):
        OBJECTIVES["air_rloo"](model, params, batch, keys, samples=1)
    for name in ("air", "air_rloo"):
        with pytest.raises(UserError, match=r"want model\.name=attend_infer_repeat"):
            OBJECTIVES[name](model._replace(nets=None), params, batch, keys)
