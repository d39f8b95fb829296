"""A grid of cells: windows, counts, a scene's density written out, a toy's exact evidence."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from benchmarks import parity
from tests.objectives.scene_models import build, moved
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models import air, grid
from vae_jax.objectives import OBJECTIVES
from vae_jax.train import program

CELLS = 4
PRESENT = 0.3
POINTS = np.linspace(-6, 6, 49)  # of what, for quadrature
PATHS = np.array(list(itertools.product((0, 1), repeat=CELLS)))  # all presences


def grid_config(**fields):
    """2x2 cells on 6x6 pixels."""
    c = config.default()
    c.latent = 1
    c.encoder = config.call("encoder", "conv", widths=(4,), strides=(3,), dense=1)
    c.decoder = config.call("decoder", "mlp", widths=(5,))
    c.likelihood = config.call("likelihood", "gaussian", logvar=0.0)
    law = {"window": 3, "units": 4, "scale": 0.5, "spread": 0.2, "present": PRESENT}
    c.model = config.call("model", "grid", **law)
    c.objective = config.call("objective", "air")
    for field, value in fields.items():
        config.set_field(c, field.replace("__", "."), value)
    config.validate(c)
    return c


@pytest.fixture(scope="module")
def small():
    """(model, parameters, 3 images)."""
    model = build(grid_config())
    x = jax.random.uniform(jax.random.key(3), (3, 6, 6, 1))
    return model, moved(model), x


def written_canvas(box_Nx4, glyph_NxGxG, present_N, side):
    """The sum of the objects, pixel by pixel: glyphs are interpolated bilinearly."""
    canvas = np.zeros((side, side))
    window = glyph_NxGxG.shape[1]
    for (left, top, w, h), glyph, present in zip(box_Nx4, glyph_NxGxG, present_N, strict=True):
        for y, x in np.ndindex(side, side):
            row = (y + 0.5 - top) / h * window - 0.5
            column = (x + 0.5 - left) / w * window - 0.5
            for i, j in np.ndindex(window, window):
                near = max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
                canvas[y, x] += present * near * glyph[i, j]
    return canvas


def test_cells_share_the_places_of_a_window():
    law = air.Law(9, 5, 4, PRESENT, 0.4, 0.2)
    where = jax.random.normal(jax.random.key(0), (400, 9, 3))
    box = np.asarray(grid.cell_windows(where, law, 50), np.float64)
    free = 50 - box[..., 2:]
    cell = np.arange(9)
    place = np.stack([cell % 3, cell // 3], -1)
    share = box[..., :2] / free * 3 - place
    assert share.min() > -1e-4 and share.max() < 1 + 1e-4
    assert stats.kstest(share.ravel(), "uniform").pvalue > 1e-3
    one = law.__class__(1, 5, 4, PRESENT, 0.4, 0.2)
    np.testing.assert_allclose(
        grid.cell_windows(where[:, :1], one, 50), air.windows(where[:, :1], one, 50), rtol=1e-6
    )


def test_a_sum_of_writes_is_written_at_once():
    rng = np.random.default_rng(0)
    glyph = jnp.asarray(rng.random((2, 5, 4, 4, 3)), jnp.float32)
    box = jnp.asarray(rng.uniform(2, 9, (2, 5, 4)), jnp.float32)

    @program.simple
    def both(glyph, box):
        apart = jax.vmap(air.write, (1, 1, None), 1)(glyph, box, 12)
        return air.write_sum(glyph, box, 12), apart.sum(1)

    together, apart = both(glyph, box)
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_the_prior_of_the_count_is_binomial_and_sums_to_one():
    law = air.Law(CELLS, 3, 4, PRESENT, 0.5, 0.2)
    prior = grid.CellPrior(law, 1)
    zero = jnp.zeros((len(PATHS), CELLS, 3))
    z = air.join(air.Latents(jnp.asarray(PATHS, jnp.float32), zero, zero[..., :1]))
    # At where = what = 0 a present object has the density (2π)⁻² besides.
    log_p = np.asarray(prior.log_prob(z), np.float64) + 2 * np.log(2 * np.pi) * PATHS.sum(1)
    counts = np.array([np.exp(log_p[PATHS.sum(1) == n]).sum() for n in range(CELLS + 1)])
    np.testing.assert_allclose(counts, stats.binom.pmf(range(CELLS + 1), CELLS, PRESENT), rtol=1e-5)
    assert counts.sum() == pytest.approx(1, rel=1e-6)
    drawn = prior.sample(jax.random.split(jax.random.key(0), 4000))[:, :CELLS]
    share = np.bincount(np.asarray(drawn).sum(1).astype(int), minlength=CELLS + 1) / 4000
    np.testing.assert_allclose(share, counts, atol=0.03)
    np.testing.assert_allclose(drawn.mean(0), PRESENT, atol=0.03)


def test_the_count_of_independent_presences_is_their_enumeration():
    logit = np.array([[0.3, -2.0, 1.5, 4.0], [-1.0, -1.0, 0.0, 30.0]])
    p = 1 / (1 + np.exp(-logit))
    each = np.where(PATHS[:, None] == 1, p, 1 - p).prod(-1)  # paths x images
    expected = np.stack([each[PATHS.sum(1) == n].sum(0) for n in range(CELLS + 1)], -1)
    log_q = np.asarray(program.simple(grid.log_count)(jnp.asarray(logit, jnp.float32)))
    np.testing.assert_allclose(np.exp(log_q), expected, rtol=1e-4, atol=1e-6)
    fitted = np.exp(air.fit_classes(jnp.asarray(log_q), 3))
    np.testing.assert_allclose(fitted[:, 2], expected[:, 2:].sum(1), rtol=1e-4)
    np.testing.assert_allclose(fitted.sum(1), 1, rtol=1e-5)


def test_the_density_of_a_scene_is_the_written_out_sum(small):
    model, params, x = small
    rng = np.random.default_rng(1)
    where = rng.normal(size=(1, CELLS, 3)).astype(np.float32)
    what = rng.normal(size=(1, CELLS, 1)).astype(np.float32)
    present = np.array([[1, 0, 1, 1]], np.float32)
    z = air.Latents(*map(jnp.asarray, (present, where, what)))
    log_joint = program.simple(model.log_joint)(params, x[:1], air.join(z))
    glyph = program.simple(model.nets.glyphs)(params, z.what)
    glyph = np.asarray(glyph, np.float64)[0, ..., 0]
    box = np.asarray(model.nets.windows(z.where, 6), np.float64)[0]
    mean = written_canvas(box, glyph, present[0], 6)
    log_px = stats.norm.logpdf(np.asarray(x[0, ..., 0]), mean, 1.0).sum()
    log_pz = 3 * np.log(PRESENT) + np.log(1 - PRESENT)
    for n in (0, 2, 3):
        log_pz += stats.norm.logpdf(np.append(where[0, n], what[0, n])).sum()
    np.testing.assert_allclose(log_joint[0], log_px + log_pz, rtol=1e-5)


def test_the_weight_of_a_draw_is_the_ratio_of_its_densities(small):
    model, params, x = small
    keys = split_keys(jax.random.split(jax.random.key(1), 3), 20)

    @program.simple
    def both(params, keys_KxB):
        d = model.draw(params, x, keys_KxB)
        return d, model.log_joint(params, x, d.z) - model.log_posterior(params, x, d.z)

    d, ratio = both(params, keys)
    assert d.log_w.shape == (20, 3) and d.kl.shape == (20, 3, 1)
    np.testing.assert_allclose(d.log_w, ratio, rtol=1e-4, atol=1e-3)
    assert len(set(np.asarray(d.z[..., :CELLS]).sum(-1).ravel())) > 2, "several counts are drawn"


def log_evidence(model, params, x):
    """log p(x) where every window is the canvas: presences enumerated, what by quadrature."""
    glyph = program.simple(model.nets.parts.glyph)(params, POINTS[:, None])
    glyph = np.asarray(glyph, np.float64).reshape(len(POINTS), -1)
    x = np.asarray(x, np.float64).ravel()
    log_p = stats.norm.logpdf(POINTS) + np.log(POINTS[1] - POINTS[0])
    # −½|x − Σ g|² by the products of pairs: no canvas for each of the points of a product grid.
    alone = log_p + glyph @ x - 0.5 * (glyph**2).sum(1)
    pair = -glyph @ glyph.T
    constant = stats.norm.logpdf(x).sum()
    terms = []
    for n in range(CELLS + 1):
        total = np.zeros((1,) * n)
        for i in range(n):
            total = total + alone.reshape([-1 if k == i else 1 for k in range(n)])
        for i, j in itertools.combinations(range(n), 2):
            shape = [len(POINTS) if k in (i, j) else 1 for k in range(n)]
            total = total + pair.reshape(shape)
        terms.append(stats.binom.logpmf(n, CELLS, PRESENT) + logsumexp(total))
    return constant + logsumexp(terms)


def test_the_bound_is_below_the_evidence_and_the_weights_mean_is_it():
    model = build(grid_config(model__scale=1.0, model__spread=0.0, model__window=6))
    params = moved(model, by=0.3)
    # q(where) = p(where): where says nothing, and the weights of draws have a variance.
    out = params["cells"]["DenseHead_0"]["Conv_1"]
    out["kernel"] = out["kernel"].at[..., 1:].set(0)
    out["bias"] = out["bias"].at[1:].set(jnp.array([0, 0, 0, 3.0, 3.0, 3.0]))
    x = jax.random.uniform(jax.random.key(5), (1, 6, 6, 1))
    keys = jax.random.split(jax.random.key(2), 20_000)
    d = program.simple(model.draw)(params, jnp.repeat(x, len(keys), axis=0), keys)
    exact = log_evidence(model, params, x)
    elbo = np.asarray(d.log_px - d.kl[:, 0], np.float64)
    assert elbo.mean() < exact - 0.1
    weight = np.exp(np.asarray(d.log_w, np.float64) - exact)
    error = weight.std() / np.sqrt(len(weight))
    assert error < 0.05 and abs(weight.mean() - 1) < 4 * error
    # The closed-form rate and the sampled log q − log p have one mean.
    gap = elbo - np.asarray(d.log_w)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_objects_come_out_as_boxes_and_scores(small):
    model, params, x = small
    d = program.simple(model.detect)(params, x)
    assert d.boxes.shape == d.windows.shape == (3, CELLS, 4) and d.logit.shape == (3, CELLS)
    np.testing.assert_array_equal(d.what.shape, (3, CELLS, 1))
    counts = program.simple(model.classify)(params, x)
    np.testing.assert_allclose(jax.nn.logsumexp(counts, -1), 0, atol=1e-4)


def test_a_pixel_belongs_to_the_brightest_object_that_is_present(small):
    model, params, x = small

    @program.simple
    def both(params):
        z, _ = model.nets.infer(params, x, model.nets.means())
        return z.present, model.nets.layers(params, z), model.nets.segment(params, x)

    present, layers, owner = map(np.asarray, both(params))
    drawn = layers[..., 0] * present[..., None, None]
    expected = np.where(drawn.max(1) > 0, drawn.argmax(1) + 1, 0)
    np.testing.assert_array_equal(owner, expected)
    assert 0 < owner.max() <= CELLS


def test_both_objectives_take_it(small):
    model, params, x = small
    batch = {"image": x, "label": jnp.arange(3), "objects": jnp.zeros((3, 2, 5)), "step": 0}
    keys = jax.random.split(jax.random.key(0), 3)

    @program.simple
    def losses(params):
        relaxed = OBJECTIVES["air"](model, params, batch, keys)
        drawn = OBJECTIVES["air_rloo"](model, params, batch, keys, samples=2)
        return relaxed, drawn

    relaxed, drawn = losses(params)
    assert relaxed.elbo is None and drawn.elbo.shape == (3,)
    assert np.isfinite(relaxed.loss).all() and np.isfinite(drawn.loss).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model__present": 0.0}, "model.present=0.0: want 0 < value < 1"),
        ({"encoder": "mlp"}, "encoder.name=mlp: model grid has cells of convolutions; want conv"),
        ({"likelihood": "discretized_logistic"}, "sums objects; want gaussian or bernoulli"),
    ],
)
def test_a_config_that_cannot_be_built_is_one_line(fields, words):
    c = grid_config()
    for field, value in fields.items():
        if field in ("likelihood", "encoder"):
            c[field] = config.call(field, value)
        else:
            config.set_field(c, field.replace("__", "."), value)
    with pytest.raises(UserError, match=re.escape(words)):
        build(c)


@pytest.mark.slow
def test_one_device_and_eight_make_the_same_update():
    c = grid_config(batch=16, model__window=8)
    c.data.name = "scenes:digits+train=64+validation=8+test=8"
    c.encoder = config.call("encoder", "conv", widths=(4,), strides=(3,), dense=1)
    reference = parity.update(c, 1)
    assert parity.largest_gap(c, reference, 8) < 1e-4
