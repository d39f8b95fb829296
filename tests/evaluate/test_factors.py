"""Scores of disentanglement on codes whose score is known."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import logsumexp

from vae_jax import config, data
from vae_jax.data import sprites
from vae_jax.evaluate import factors, tasks
from vae_jax.evaluate.subject import Subject
from vae_jax.train import program
from vae_jax.train import run as workdir

SIZES = (3, 6, 8, 10, 10)
ORDERED = (False, True, True, True, True)
RNG = np.random.default_rng(0)
V = np.stack([RNG.integers(0, size, 4000) for size in SIZES], -1)


def draw(rng, n):
    return np.stack([rng.integers(0, size, n) for size in SIZES], -1)


def rotated(v):
    """The last two factors mixed by a rotation of 45 degrees."""
    z = v.astype(float)
    turn = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
    z[:, 3:] = z[:, 3:] @ turn
    return z


def noise(v):
    return np.random.default_rng(len(v)).normal(size=(len(v), 5))


def permuted(v):
    """The factors in another order, with other signs and scales, and a dimension of noise."""
    z = v[:, [4, 2, 0, 3, 1]] * np.array([1.0, -0.1, 7.0, -2.0, 30.0])
    return np.concatenate([z, noise(v)[:, :1]], 1)


def scores(encode, rng=0):
    z = encode(V)
    disentanglement, completeness, informativeness = factors.dci(z, V)
    return {
        "mig": factors.mig(z, V),
        "sap": factors.sap(z, V, ORDERED),
        "disentanglement": disentanglement,
        "completeness": completeness,
        "informativeness": informativeness,
        "factor_vae": factors.factor_vae_score(encode, draw, np.random.default_rng(rng), votes=200),
    }


def test_codes_that_are_the_factors_are_perfect_in_any_order_and_scale():
    plain = scores(lambda v: v.astype(float))
    for name in ("mig", "disentanglement", "completeness", "informativeness", "factor_vae"):
        assert plain[name] > 0.98, name
    other = scores(permuted)
    for name, value in plain.items():
        assert other[name] == pytest.approx(value, abs=0.02), name
    # Four gaps of a squared correlation of 1; a threshold on one number tells 3 classes apart.
    assert plain["sap"] == pytest.approx((4 + 1 - 1 / 3) / 5, abs=0.05)


def test_noise_knows_nothing():
    value = scores(noise)
    assert value["mig"] < 0.02 and value["sap"] < 0.05
    assert value["disentanglement"] < 0.1 and value["completeness"] < 0.1
    chance = np.mean([1 / size for size in SIZES])
    assert value["informativeness"] == pytest.approx(chance, abs=0.04)
    assert value["factor_vae"] == pytest.approx(1 / 5, abs=0.1)


def test_a_rotation_costs_what_it_mixes():
    value = scores(rotated)
    assert value["mig"] == pytest.approx(3 / 5, abs=0.03), "two factors have no best dimension"
    assert value["informativeness"] > 0.8, "nothing is lost"
    assert 0.5 < value["disentanglement"] < 0.9
    # A constant factor narrows both dimensions alike: the vote is for some other one.
    assert value["factor_vae"] < 0.9


def test_a_dead_dimension_never_wins_a_vote():
    def encode(v):
        return np.concatenate([np.zeros((len(v), 2)), v], 1)

    value = factors.factor_vae_score(encode, draw, np.random.default_rng(0), votes=100)
    assert value > 0.98


def test_information_is_the_double_sum():
    z = V[:, 3:4] + 0.0
    v = V[:, 4:5] // 2 + V[:, 3:4] // 5
    joint = np.zeros((10, v.max() + 1))
    np.add.at(joint, (V[:, 3], v[:, 0]), 1 / len(v))
    product = joint.sum(1)[:, None] * joint.sum(0)
    there = joint > 0
    want = (joint[there] * np.log(joint[there] / product[there])).sum()
    assert factors.information(z, v)[0, 0] == pytest.approx(want, rel=1e-9)


def by_hand(z, v):
    """InfoMEC of discrete codes: plain sums, and scipy's minimiser for the linear classifier."""
    r = np.zeros((z.shape[1], v.shape[1]))
    for d in range(z.shape[1]):
        for f in range(v.shape[1]):
            for a in np.unique(z[:, d]):
                for b in np.unique(v[:, f]):
                    both = ((z[:, d] == a) & (v[:, f] == b)).mean()
                    if both:
                        apart = (z[:, d] == a).mean() * (v[:, f] == b).mean()
                        r[d, f] += both * np.log(both / apart)
    entropies = []
    gains = []
    rows = np.concatenate([(z[:, [d]] == np.unique(z[:, d])) for d in range(z.shape[1])], 1)
    for f in range(v.shape[1]):
        share = np.bincount(v[:, f]) / len(v)
        entropies.append(-(share * np.log(share)).sum())
        one_hot = v[:, [f]] == np.arange(len(share))

        def cost(w, one_hot=one_hot):
            logits = rows @ w.reshape(rows.shape[1], -1)
            log_p = logits - logsumexp(logits, axis=1, keepdims=True)
            slope = rows.T @ (np.exp(log_p) - one_hot) / len(rows)
            return -(one_hot * log_p).sum() / len(rows), slope.ravel()

        start = np.zeros(rows.shape[1] * len(share))
        best = optimize.minimize(cost, start, jac=True, method="L-BFGS-B")
        gains.append(1 - best.fun / entropies[-1])
    r /= np.array(entropies)
    modular = np.mean([row.max() / row.sum() for row in r])
    compact = np.mean([column.max() / column.sum() for column in r.T])
    d, f = r.shape
    return (modular - 1 / f) / (1 - 1 / f), np.mean(gains), (compact - 1 / d) / (1 - 1 / d)


def test_info_mec_is_a_second_implementation_of_it():
    """Codes that mix two factors and forget parts of them."""
    v = V[:600, :3]
    mixed = np.stack([v[:, 0] + v[:, 1] // 2, v[:, 1] % 4, (v[:, 2] + v[:, 0]) // 3], -1)
    got = factors.info_mec(mixed.astype(float), v)
    np.testing.assert_allclose(got, by_hand(mixed, v), atol=5e-3)
    assert 0.2 < got[0] < 0.95 and 0.2 < got[1] < 0.95, "else little is compared"


def test_info_mec_of_known_codes():
    """The factors are perfect, in any order; a copy costs compactness; noise knows nothing."""
    v = V[:1200, :3]
    plain = factors.info_mec(v.astype(float), v)
    assert min(plain) > 0.95
    rng = np.random.default_rng(1)
    jitter = v + 0.01 * rng.normal(size=v.shape)  # continuous codes
    np.testing.assert_allclose(factors.info_mec(jitter, v)[::2], plain[::2], atol=0.05)
    twice = factors.info_mec(np.concatenate([v[:, ::-1] * 3.0, v], 1), v)
    chance = 1 / 6  # each factor has half of its information in each of two dimensions
    assert twice[2] == pytest.approx((0.5 - chance) / (1 - chance), abs=0.03)
    assert twice[:2] == pytest.approx(plain[:2], abs=0.02)
    turn = np.array([[1, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])
    turned = factors.info_mec(jitter @ turn, v)
    assert turned[0] < plain[0] - 0.1 and turned[2] < plain[2] - 0.1
    assert factors.info_mec(rng.normal(size=v.shape), v)[1] < 0.02
    assert factors.info_mec(np.zeros(v.shape), v) == (0, 0, 0)


@pytest.fixture(scope="module")
def subject():
    """An untrained model on sprites; images are drawn when they are asked for."""
    c = config.load("configs/sprites.py")
    c.data.memory_mb = 1
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    s = workdir.setup(c)
    params = program.init(s.c, s.model, s.mesh, s.dataset)[0].params
    return Subject(s.c, s.model, params, s.dataset, s.mesh)


@pytest.mark.slow
def test_the_task_draws_its_own_images(subject, monkeypatch):
    monkeypatch.setattr(factors, "IMAGES", 600)
    monkeypatch.setattr(factors, "VOTES", 20)
    assert subject.data.shape == (32, 32, 1) and subject.data.levels == 2
    assert isinstance(subject.data.train.image, data.Stream)
    metrics, why, _ = tasks.perform(["factors"], subject)["factors"]
    assert not why and set(metrics) == set(factors._TITLES)
    assert all(0 <= value <= 1 for value in metrics.values())
    assert metrics["shape_accuracy"] > 0.3


def test_data_without_factors_are_one_line(subject):
    plain = subject.data._replace(name="mnist")
    other = Subject(subject.config, subject.model, subject.params, plain, subject.mesh)
    lines = []
    metrics, why, _ = tasks.perform(["factors"], other, say=lines.append)["factors"]
    assert metrics["mig"] is None and set(why) == set(factors._TITLES)
    assert "data.name=mnist has no known factors; want sprites" in lines[0]


def test_sprites_are_functions_of_their_factors():
    place = np.array([0, sprites.COUNT - 1, 12345])
    v = sprites.factors_of(place)
    np.testing.assert_array_equal(v[1], np.array(sprites.SIZES) - 1)
    np.testing.assert_array_equal(np.ravel_multi_index(v.T, sprites.SIZES), place)
    image = sprites.render(v, 32)
    assert image.dtype == np.uint8 and image.shape == (3, 32, 32, 1)
    np.testing.assert_array_equal(image[2], sprites.render(v[2:], 32)[0])
    np.testing.assert_array_equal(
        np.stack(sprites.sources(0).splits["train"].images([12345])), image[2:]
    )


def test_sprites_move_grow_turn_and_stay_inside():
    corner = sprites.draw_factors(np.random.default_rng(0), 3000)
    image = sprites.render(corner, 64)[..., 0]
    border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    assert not border.any() and image.any((1, 2)).all()
    middle = np.array([[s, 5, 0, 16, 16] for s in range(3)])
    area = sprites.render(middle, 64).sum((1, 2, 3))
    side = 0.2 * 64
    np.testing.assert_allclose(area[:2], [(1.4 * side) ** 2, np.pi * side**2 / 2], rtol=0.12)
    smaller = sprites.render(middle - [0, 5, 0, 0, 0], 64).sum((1, 2, 3))
    np.testing.assert_allclose(smaller, area / 4, rtol=0.15)
    columns = np.arange(64)
    left = np.array([[1, 5, 0, x, 16] for x in (0, 31)])
    image = sprites.render(left, 64)[..., 0]
    mean = (image * columns).sum((1, 2)) / image.sum((1, 2))
    np.testing.assert_allclose(mean + 0.5, [0.24 * 64, 0.76 * 64], atol=0.5)
    turned = sprites.render(np.array([[1, 5, 10, 16, 16]]), 64)[0, ..., 0]
    upright = sprites.render(middle[1:2], 64)[0, ..., 0]
    assert (upright.any(0).sum() > 1.7 * upright.any(1).sum()) and (
        turned.any(1).sum() > 1.7 * turned.any(0).sum()
    )
