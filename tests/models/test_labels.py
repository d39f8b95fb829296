"""M2: its bound against quadrature and sums written out, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, logsumexp

from tests.tiny import LABEL, PIXELS, SEED, SHAPE, X, batch_of, log_evidence, semi_supervised
from tests.tiny import m2 as tiny
from vae_jax import config, models, nets
from vae_jax.config import UserError
from vae_jax.evaluate import evaluate, likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.objectives import OBJECTIVES, Terms, sample_k
from vae_jax.objectives.terms import bound
from vae_jax.train import flops as count
from vae_jax.train import loop, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

jit = compile_lib.simple
KEY = jax.random.key(SEED)
KEYS = jax.random.split(KEY, 5)


def test_the_unlabelled_bound_is_the_sum_over_labels_written_out():
    model, params = tiny()
    batch = batch_of(X, jnp.full(5, -1), X[:3], LABEL[:3])

    @jit
    def run(params):
        terms = OBJECTIVES["m2"](model, params, batch, KEYS, alpha=7.0, labelled=0.5, samples=2)
        each = [bound(sample_k(model, params, X, KEYS, 2, y=jnp.full(5, y)))[0] for y in (0, 1)]
        labelled = bound(sample_k(model, params, X[:3], batch["labelled"]["keys"], 2, y=LABEL[:3]))[
            0
        ]
        return terms, each, labelled, model.classify(params, X)

    terms, each, labelled, logits = run(params)
    log_q = log_softmax(np.asarray(logits, np.float64), axis=1)
    log_p = np.log(0.5)
    want = sum(np.exp(log_q[:, y]) * (np.asarray(each[y], np.float64) + log_p) for y in (0, 1))
    want += -(np.exp(log_q) * log_q).sum(1)
    np.testing.assert_allclose(terms.elbo, want, rtol=1e-5)
    np.testing.assert_allclose(terms.loss, -want, rtol=1e-5)
    ce = -log_q[np.arange(3), LABEL[:3]]
    np.testing.assert_allclose(terms.labelled.elbo, labelled + log_p, rtol=1e-5)
    np.testing.assert_allclose(terms.labelled.loss, 7 * ce - 0.5 * (labelled + log_p), rtol=1e-5)
    np.testing.assert_allclose(terms.labelled.extra["cross_entropy"], ce, rtol=1e-5)


def test_with_a_sure_classifier_the_unlabelled_bound_is_the_labelled_one():
    model, params = tiny()
    params["classifier"]["out"] = {
        "kernel": jnp.zeros((4, 2)),
        "bias": jnp.array([-200.0, 200.0]),
    }  # q(y = 1|x) = 1

    def run(params):
        terms = OBJECTIVES["m2"](model, params, batch_of(X, LABEL, X, LABEL), KEYS)
        same_noise = bound(sample_k(model, params, X, KEYS, 1, y=jnp.ones(5, int)))[0]
        return terms.elbo, same_noise - jnp.log(2.0)

    np.testing.assert_allclose(*jit(run)(params), rtol=1e-6)
    gradient = jit(
        jax.grad(
            lambda p: OBJECTIVES["m2"](model, p, batch_of(X, LABEL, X, LABEL), KEYS).loss.sum()
        )
    )(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient)), "0 log 0"


def test_the_bound_is_below_the_exact_evidence_which_importance_weights_reach():
    """log p(x) by quadrature over z and the sum over y."""
    model, params = tiny()
    exact = logsumexp(
        log_evidence(model, params, np.asarray(X).reshape(5, PIXELS)) + np.log(0.5), axis=1
    )
    d = jit(lambda x: likelihood.draws(model, params, x, jnp.arange(5), KEY, 0, 4000))(X)
    elbo = np.asarray(d.log_px - d.kl[..., 0], np.float64)
    log_w = np.asarray(d.log_w, np.float64)
    assert (elbo.mean(1) < exact - 0.01).all(), "a bound, and here not a tight one"
    w = np.exp(log_w - exact[:, None])
    error = w.std(1) / np.sqrt(w.shape[1])
    assert (error < 0.1).all()
    np.testing.assert_array_less(abs(w.mean(1) - 1), 4 * error)


def test_with_exact_posteriors_both_bounds_are_the_evidence():
    """p(x|y,z) = N(w z + c_y, s²): a mixture of two Gaussians, whose q(z|x,y) and q(y|x) these nets
    can be.
    """
    rng = np.random.default_rng(0)
    s2 = 0.3
    parts = {
        "likelihood": config.call("likelihood", "gaussian", logvar=float(np.log(s2))),
        "encoder": config.call("encoder", "mlp", widths=(2 * PIXELS,), activation="relu"),
    }
    model, _ = tiny(**parts)
    w, c = rng.normal(size=PIXELS), rng.normal(size=(2, PIXELS))
    cov = np.outer(w, w) + s2 * np.eye(PIXELS)
    x = np.concatenate([rng.multivariate_normal(m, cov, 3) for m in c])
    exact = logsumexp([stats.multivariate_normal(m, cov).logpdf(x) for m in c], axis=0) - np.log(2)
    variance = 1 / (1 + w @ w / s2)
    both = np.concatenate([np.eye(PIXELS), -np.eye(PIXELS)], 1)  # relu(h), relu(-h): a linear layer
    gain = variance * w / s2
    to_y = np.linalg.solve(cov, c.T)  # P x Y

    def layer(kernel):
        return {"kernel": kernel, "bias": np.zeros(kernel.shape[1])}

    params = {
        "encoder": {"Layer_0": {"dense": layer(both), "label": {"kernel": -c @ both}}},
        "posterior": {
            "Dense_0": {
                "kernel": np.stack([np.r_[gain, -gain], np.zeros(2 * PIXELS)], 1),
                "bias": np.array([0, np.log(variance)]),
            }
        },
        "trunk": {"Layer_0": {"dense": layer(both)}},
        "classifier": {
            "out": {
                "kernel": np.concatenate([to_y, -to_y]),
                "bias": -0.5 * np.einsum("yp,py->y", c, to_y),
            }
        },
        "decoder": {
            "Layer_0": {
                "dense": layer(np.array([[1.0, -1, 0, 0]])),
                "label": {"kernel": np.eye(4)[2:]},
            },
            "out": layer(np.stack([w, -w, *c])),
        },
        "prior": {},
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    images = jnp.asarray(x, jnp.float32).reshape(6, *SHAPE)
    d = jit(lambda x: likelihood.draws(model, params, x, jnp.arange(6), KEY, 0, 2000))(images)
    np.testing.assert_allclose(
        d.log_w, np.tile(exact[:, None], 2000), rtol=2e-5, atol=2e-4
    )  # each draw alone
    elbo = np.asarray(d.log_px - d.kl[..., 0], np.float64)
    error = elbo.std(1) / np.sqrt(2000)
    np.testing.assert_array_less(abs(elbo.mean(1) - exact), 4 * error + 1e-4)
    assert elbo.std(1).max() < 1.5


@pytest.mark.parametrize("activation", ["softplus", "gated"])
def test_the_split_first_layer_is_that_of_the_joined_input(activation):
    name = "gated" if activation == "gated" else "dense"
    net = nets.MLPEncoder(widths=(7, 5), activation=activation)
    y = jax.nn.one_hot(LABEL, 2)
    apply, params = jit(net.apply), jit(net.init)(KEY, X, y)["params"]
    first = params["Layer_0"][name]
    first["bias"] += 0.1
    kernel = jnp.concatenate([first["kernel"], params["Layer_0"]["label"]["kernel"]])
    joined = params | {"Layer_0": {name: {"kernel": kernel, "bias": first["bias"]}}}
    want = apply({"params": joined}, jnp.concatenate([X.reshape(5, -1), y], 1))
    np.testing.assert_allclose(apply({"params": params}, X, y), want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_the_image_meets_the_encoder_once_for_all_labels(net):
    """Products of the enumeration over 3 labels, by rows: those of an image's own layers have 5,
    one for each image.
    """
    fields = dict(widths=(4, 3)) if net == "conv" else dict(widths=(11,))
    model, _ = tiny(labels=3, encoder=config.call("encoder", net, **fields))
    params = jax.eval_shape(model.init, KEY)

    def every(p, x):
        return jax.vmap(lambda y: model.encode(p, x, y).mu)(jnp.arange(3))

    products = [
        e
        for e in every_equation(jax.make_jaxpr(every)(params, X).jaxpr)
        if e.primitive.name in ROWS
    ]
    rows = [
        int(np.prod([e.invars[0].aval.shape[d] for d in ROWS[e.primitive.name](e)]))
        for e in products
    ]
    # The label's row alone has 3; of conv the dense layer is the image's too. Then the posterior's
    # head, for all.
    assert rows == ([5, 5] if net == "conv" else []) + [5, 3, 15]


def every_equation(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in count.inner(eqn):
            yield from every_equation(inner)


# The dimensions of the first operand of a product that are no part of its sums.
ROWS = {
    "dot_general": lambda e: (
        set(range(e.invars[0].aval.ndim)) - set(e.params["dimension_numbers"][0][0])
    ),
    "conv_general_dilated": lambda e: (e.params["dimension_numbers"].lhs_spec[0],),
}


def test_convolutional_nets_take_labels():
    conv = {part: config.call(part, "conv", widths=(4, 3)) for part in ("encoder", "decoder")}
    model, params = tiny(**conv)
    a, b = (jit(lambda p, y: model.draw(p, X, KEYS, y=y))(params, y) for y in (0, 1))
    assert (np.abs(a.log_px - b.log_px) > 1e-4).all() and (np.abs(a.kl - b.kl) > 1e-6).all()
    with pytest.raises(UserError, match="want a label"):
        model.encode(params, X)


@pytest.mark.parametrize("name", ["joint", "supervised"])
def test_other_objectives_learn_from_the_labelled_examples_only(name):
    model, params = tiny(name)
    fields = {"gamma": 5.0} if name == "joint" else {}

    @jit
    def run(label, labelled):
        batch = batch_of(X, label, X[:2], labelled)
        split = OBJECTIVES[name](model, params, batch, KEYS, **fields)
        whole = OBJECTIVES[name](
            model, params, {"image": X, "label": jnp.abs(label)}, KEYS, **fields
        )
        return split, whole, model.classify(params, X[:2])

    split, whole, logits = run(jnp.array([-1, 1, -1, 0, 1]), LABEL[:2])
    hidden, _, _ = run(jnp.full(5, -1), LABEL[:2])
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(hidden), strict=True):
        np.testing.assert_array_equal(a, b, "the labels of the batch are not looked at")
    weight = fields.get("gamma", 1.0)
    np.testing.assert_allclose(
        split.loss, whole.loss - weight * whole.extra["cross_entropy"], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        split.labelled.loss, weight * split.labelled.extra["cross_entropy"], rtol=1e-6
    )
    if name == "supervised":  # at the mean: nothing is sampled
        ce = -log_softmax(np.asarray(logits, np.float64), 1)[[0, 1], LABEL[:2]]
        np.testing.assert_allclose(split.labelled.loss, ce, rtol=1e-5)


def test_each_part_is_averaged_over_its_own_examples():
    label, mask = jnp.array([1, -1, 0, -1, 1]), jnp.array([True, True, True, True, False])
    value = jnp.array([1.0, 2.0, 4.0, 8.0, 99.0])
    labelled = jnp.array(
        [10.0, jnp.nan, 30.0, jnp.nan, 99.0]
    )  # what is said of the unlabelled is not counted
    terms = Terms(
        value,
        elbo=-value,
        labelled=Terms(labelled, elbo=-labelled, extra={"accuracy": labelled / 30}),
    )

    def means(label):
        return step.divided(
            jax.tree.map(
                np.asarray,
                step.eval_step(None, {"label": label, "mask": mask}, None, terms=lambda *_: terms),
            )
        )

    assert means(label) == pytest.approx(
        {"loss": 15 / 4 + 20, "elbo": -15 / 4, "labelled_elbo": -20, "accuracy": 2 / 3}
    )
    assert means(-jnp.ones(5, int)) == pytest.approx({"loss": 15 / 4, "elbo": -15 / 4}), (
        "no label, no figure of labels"
    )


@pytest.mark.slow
def test_sixty_labels_are_enough_to_read_most_digits(tmp_path):
    """Chance is 10 %. Evaluation reads q(y|x), and its bounds are in their order."""
    c = semi_supervised(steps=400, eval__every=200, log_every=200, steps_per_call=20, unroll=False)
    assert loop.train(c, str(tmp_path / "run"), say=lambda _: None)
    s, state, _ = workdir.restore(str(tmp_path / "run"))
    subject = Subject(s.c, s.model, step.averaged(state), s.dataset, s.mesh)
    metrics, _, _ = evaluate(subject, iw_k=c.eval.iw_k)
    assert metrics["accuracy"] > 0.6
    assert metrics["elbo_nats"] < metrics["iw_nats"] < -5
    assert None not in (metrics["ece"], metrics["knn_accuracy"], metrics["bits_per_dim"])
    rows = [
        r
        for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if '"validation"' in r
    ]
    assert '"labelled_elbo"' in rows[0] and '"accuracy"' in rows[0]


@pytest.mark.parametrize(
    "model", [config.call("model", "m1m2"), config.call("model", "detector", frozen=True)]
)
def test_weight_decay_of_constant_nets_is_refused(model):
    c = config.default()
    c.model = model
    c.classifier = config.call("classifier", "mlp", widths=(16,))
    c.optim.weight_decay = 1e-4
    with pytest.raises(UserError, match="shrinks the constant nets"):
        models.build(c, shape=(8, 8, 1), levels=256, classes=10, binary=False)
