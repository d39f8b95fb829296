"""OOD scores against written-out values, closed forms and independent libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.neighbors import NearestNeighbors

from vae_jax import config, models
from vae_jax import distributions as densities
from vae_jax.evaluate import ood, ood_scores
from vae_jax.train import program

RNG = np.random.default_rng
SHAPE = (4, 4, 1)
LEVELS = 3


@pytest.fixture(scope="module")
def hierarchy():
    """(a ladder of 3 levels on 16 binary pixels, its parameters, 5 images, keys of 4 samples)."""
    c = config.default()
    c.encoder = config.call("encoder", "mlp", widths=(16, 16, 16))
    c.decoder = config.call("decoder", "ladder", latents=(2, 3, 4), width=16, inner=16)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.data.binarize = "threshold"
    model = models.build(c, shape=SHAPE, levels=256, classes=0, binary=True)
    key = jax.random.key(0)
    leaves, tree = jax.tree.flatten(program.simple(model.init)(key))
    moved = []
    for i, leaf in enumerate(leaves):  # away from where q and p are equal
        noise = jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
        moved.append(leaf + 0.3 * noise)
    x = jnp.asarray(RNG(1).integers(0, 2, (5, *SHAPE)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), (4, 5))
    return model, jax.tree.unflatten(tree, moved), x, keys


@pytest.fixture(scope="module")
def terms(hierarchy):
    """{k: (log p(x|z) KxB, log p/q KxBxL)} for k = 0, …, L, compiled once."""
    model, params, x, keys = hierarchy
    run = program.simple(lambda *arguments: ood_scores.terms_above(model, *arguments))
    return {k: run(params, x, keys, k) for k in range(LEVELS + 1)}


def test_the_level_ratio_is_the_difference_of_the_bounds_term_by_term(hierarchy, terms):
    """The upper levels' terms are the ELBO's own, the lower ones' are 0."""
    model, params, x, keys = hierarchy
    draw = program.simple(model.draw)(params, x, keys)
    own = np.asarray(draw.extra["log_pz"] - draw.extra["log_qz"])
    np.testing.assert_allclose(terms[0][0], draw.log_px, rtol=1e-4, atol=1e-3)
    for k, (log_px, log_ratio) in terms.items():
        upper = LEVELS - k
        np.testing.assert_allclose(log_ratio[..., :upper], own[..., :upper], rtol=1e-4, atol=1e-3)
        assert (log_ratio[..., upper:] == 0).all()
        assert (k == 0) == np.allclose(log_px, draw.log_px, rtol=1e-4, atol=1e-3)
    ratio = program.simple(lambda *arguments: ood_scores.level_ratio(model, *arguments))
    above = terms[2][0] + terms[2][1].sum(-1)
    want = special.logsumexp(draw.log_w, axis=0) - special.logsumexp(above, axis=0)
    np.testing.assert_allclose(ratio(params, x, keys, 2), want, rtol=1e-4, atol=1e-3)
    nothing = ratio(params, x, keys, 0)
    np.testing.assert_array_equal(nothing, np.zeros(len(x)))


def test_levels_left_to_the_prior_know_nothing_of_the_image(hierarchy, terms):
    """k = L: z is drawn from the prior, with the same noise as the model's own samples."""
    model, params, x, keys = hierarchy

    def log_px(keys_B):
        return model.likelihood.log_prob(model.decode(params, model.sample(params, keys_B)), x)

    want = program.simple(jax.vmap(log_px))(keys)
    np.testing.assert_allclose(terms[LEVELS][0], want, rtol=1e-4, atol=1e-3)


def test_scores_of_logits():
    logits = np.array([[0.0, np.log(3)], [1000.0, 0.0]])
    np.testing.assert_allclose(ood_scores.max_softmax(logits), [-0.75, -1])
    np.testing.assert_allclose(ood_scores.energy(logits), [-np.log(4), -1000])
    hot = -10 * np.log(np.exp(logits[0] / 10).sum())
    np.testing.assert_allclose(ood_scores.energy(logits, 10)[0], hot)


def test_the_distance_of_the_kth_neighbour_is_scikit_learns():
    rng = RNG(0)
    gallery = rng.normal(size=(300, 5)) * 7
    code = rng.normal(size=(40, 5))

    def unit(v):
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    search = NearestNeighbors(n_neighbors=9, algorithm="brute").fit(unit(gallery))
    want = search.kneighbors(unit(code))[0][:, -1]
    got = ood_scores.knn_distance(gallery, code, k=9)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(ood_scores.knn_distance(gallery, 100 * code, k=9), got)
    few = ood_scores.knn_distance(gallery[:3], code, k=9)
    assert few.shape == (40,) and np.isfinite(few).all()


def linear_classifier(weight_PxY):
    """A model whose logits are x W: the gradient of log S is known."""

    def classify(params, x, keys=None):
        return x.reshape(len(x), -1) @ weight_PxY

    spec = models.Spec(SHAPE, 2, 1, densities.LIKELIHOODS["bernoulli"]())
    parts = models.Parts(None, None, None, None, None)
    return models.vae(spec, parts)._replace(classify=classify)


def test_odin_moves_the_image_against_the_gradient():
    """Two classes: log S rises with |l1 - l0|, so x moves by ε sign(w1 - w0) of the larger one."""
    rng = RNG(0)
    weight = rng.normal(size=(16, 2)).astype(np.float32)
    x = rng.random((6, *SHAPE)).astype(np.float32)
    temperature = 10.0
    epsilon = 0.05
    got = ood_scores.odin(linear_classifier(weight), temperature, epsilon)({}, x)
    difference = x.reshape(6, -1) @ (weight[:, 1] - weight[:, 0])
    gain = epsilon * np.abs(weight[:, 1] - weight[:, 0]).sum()
    want = np.log1p(np.exp(-(np.abs(difference) + gain) / temperature))
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_typicality_of_batches():
    nats = np.array([1.0, 3.0, 8.0, 10.0, 99.0])
    np.testing.assert_allclose(ood_scores.batch_typicality(nats, np.array([5.0]), 2), [3, 4])
    alone = ood_scores.batch_typicality(nats, np.array([5.0, 7.0]), 1)
    np.testing.assert_allclose(alone, ood.typicality(nats, np.array([5.0, 7.0])))


def test_the_likelihood_ratio_is_a_difference():
    np.testing.assert_allclose(ood_scores.likelihood_ratio([3.0], [1.0]), [2.0])


def test_batches_separate_what_single_images_do_not():
    """Means of 36 have a sixth of the spread."""
    rng = RNG(0)
    reference = rng.normal(size=4000)
    inside = rng.normal(size=5000)
    outside = rng.normal(0.5, size=5000)
    rates = []
    for size in (1, 36):
        pair = [ood_scores.batch_typicality(v, reference, size) for v in (inside, outside)]
        rates.append(ood.auroc(*pair))
    assert rates[0] < 0.6 and rates[1] > 0.95


def test_contrast_is_stretched_between_the_percentiles():
    ramp = np.linspace(100, 150, 21).round().astype(np.uint8)
    image = ramp.reshape(1, 21, 1, 1)
    out = ood_scores.contrast_stretched(image, 256).ravel()
    low, high = np.percentile(ramp, (5, 95))
    want = np.rint(np.clip((ramp - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(out, want)
    dot = np.zeros((1, 10, 10, 1), np.uint8)
    dot[0, 5, 5] = 8  # both percentiles are 0: the extremes take their place
    assert ood_scores.contrast_stretched(dot, 17).max() == 16
    flat = np.full((1, 4, 4, 1), 5, np.uint8)
    np.testing.assert_array_equal(ood_scores.contrast_stretched(flat, 17), flat)


@pytest.mark.parametrize(
    "name", ["bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic", "categorical"]
)
def test_pixels_add_up_to_the_likelihood(name):
    rng = RNG(0)
    likelihood = densities.LIKELIHOODS[name](levels=17)
    image = rng.integers(0, 2 if name == "bernoulli" else 17, (3, 4, 5, 1))
    x = jnp.asarray(image / image.max(), jnp.float32)
    out = jnp.asarray(rng.normal(size=(3, 4, 5, likelihood.outputs(1))), jnp.float32)
    got = ood_scores.pixel_log_px(likelihood, out, x)
    assert got.shape == (3, 4, 5)
    np.testing.assert_allclose(got.sum((1, 2)), likelihood.log_prob(out, x), rtol=1e-4)


def test_bias_correction_by_hand():
    p = np.array([[0.5, 0.1, 0.2], [0.3, 0.4, 0.6]])
    level = np.array([[0, 0, 4], [0, 4, 4]])
    got = ood_scores.level_corrections(np.log(p), level, 5)
    black = np.log((0.3 + 0.3) / 2)  # the mean of 0.5 and 0.1 is 0.3
    white = np.log((0.2 + 0.5) / 2)
    np.testing.assert_allclose(got[[0, 4]], [black, white])
    np.testing.assert_allclose(got[2], (black + white) / 2)  # no image has level 2
    nats = -np.log(p).sum(1)
    want = nats + [2 * black + white, black + 2 * white]
    np.testing.assert_allclose(ood_scores.bias_corrected(nats, level, got), want)


def test_anomaly_maps_show_the_spot(trained):
    """A bright spot in a corner of a digit, which is black in training, stands out in each map."""
    _, s, params = trained
    x = jnp.asarray(s.dataset.test.image[:20], jnp.float32) / 16
    corner = x.at[:, :2, :2].set(1.0)
    keys = jax.random.split(jax.random.key(0), 20)
    maps = program.simple(ood_scores.anomaly_maps(s.model))(params, corner, keys)
    for name in ("reconstruction", "combined"):
        inside = np.asarray(maps[name][:, :2, :2]).mean((1, 2))
        outside = np.asarray(maps[name][:, 2:]).mean((1, 2))
        assert (inside > 2 * outside).mean() > 0.9, name
    product = maps["reconstruction"] * maps["gradient"]
    np.testing.assert_allclose(maps["combined"], product, rtol=1e-5)
    assert maps["gradient"].shape == (20, 8, 8)
