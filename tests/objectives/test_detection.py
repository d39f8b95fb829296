"""The loss of a dense head beside a plain loop, and that it learns to find boxes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.objectives.scene_models import build
from vae_jax import config, data
from vae_jax.config import UserError
from vae_jax.evaluate.average_precision import average_precision, true_boxes
from vae_jax.evaluate.scenes import Boxes
from vae_jax.models import boxes as boxes_lib
from vae_jax.objectives import OBJECTIVES
from vae_jax.train import program

GRID = 4
SIDE = 18


def detector_config(**fields):
    c = config.default()
    c.data.name = "scenes:digits+boxes+train=8+validation=2+test=2"
    c.encoder = config.call("encoder", "mlp", widths=(64,))
    c.decoder = config.call("decoder", "none")
    c.model = config.call("model", "detector", grid=GRID, widths=(64,), **fields)
    c.objective = config.call("objective", "detection")
    config.validate(c)
    return c


@pytest.fixture(scope="module")
def setup():
    c = detector_config()
    split = data.load(c.data).train
    model = build(c, SIDE, classes=4)
    batch = {
        "image": jnp.asarray(split.image, jnp.float32) / 16,
        "objects": jnp.asarray(split.objects),
    }
    return model, model.init(jax.random.key(0)), batch


def loss_of(model, params, batch, **numbers):
    keys = jax.random.split(jax.random.key(0), len(batch["image"]))
    return OBJECTIVES["detection"](model, params, batch, keys, **numbers)


def written_out(d, objects, focus, box, label):
    """The loss of one image, cell by cell and object by object."""
    p = 1 / (1 + np.exp(-np.asarray(d.logit, np.float64)))
    side = SIDE / GRID
    loss = 0
    owner = {}
    for x, y, w, h, kind in objects:
        if kind >= 0:
            cell = int((y + h / 2) // side) * GRID + int((x + w / 2) // side)
            owner.setdefault(cell, (np.array([x, y, w, h], float), kind))
    for cell in range(GRID * GRID):
        true = p[cell] if cell in owner else 1 - p[cell]
        loss -= (1 - true) ** focus * np.log(true)
        if cell in owner:
            target, kind = owner[cell]
            logits = np.asarray(d.class_logits[cell], np.float64)
            ce = np.log(np.exp(logits).sum()) - logits[kind]
            giou = float(boxes_lib.generalised_iou(jnp.asarray(target), d.boxes[cell]))
            loss += box * (1 - giou) + label * ce
    return loss


def test_the_loss_is_the_written_out_one(setup):
    model, params, batch = setup
    numbers = {"focus": 1.5, "box": 2.0, "label": 0.7}
    terms, d = program.simple(
        lambda p: (loss_of(model, p, batch, **numbers), model.detect(p, batch["image"]))
    )(params)
    for i, objects in enumerate(np.asarray(batch["objects"])):
        one = jax.tree.map(lambda a, i=i: a[i], d)
        assert terms.loss[i] == pytest.approx(written_out(one, objects, **numbers), rel=1e-4)


def test_of_two_objects_in_a_cell_the_first_is_learnt(setup):
    model, params, batch = setup
    objects = np.array(batch["objects"])
    objects[:, 0] = [6, 6, 4, 4, 1]
    objects[:, 1] = [6, 6, 5, 5, 2]
    objects[:, 2] = [0, 0, 0, 0, -1]
    both = loss_of(model, params, batch | {"objects": jnp.asarray(objects)})
    objects[:, 1] = [0, 0, 0, 0, -1]
    first = loss_of(model, params, batch | {"objects": jnp.asarray(objects)})
    np.testing.assert_allclose(both.loss, first.loss, rtol=1e-6)


def test_a_head_learns_eight_scenes(setup):
    """All boxes of the training scenes are found, with their classes."""
    model, params, batch = setup
    tx = optax.adam(3e-3)

    def update(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: loss_of(model, p, batch).loss.mean())(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    @program.simple
    def train(params):
        (params, _), losses = jax.lax.scan(update, (params, tx.init(params)), length=600)
        d = model.detect(params, batch["image"])
        label = jnp.argmax(d.class_logits, -1)
        return losses, d, label, jax.vmap(boxes_lib.suppress)(d.boxes, d.logit, label)

    losses, d, label, keep = train(params)
    assert losses[-1] < 0.1 * losses[0]
    detections = []
    for i, mine in enumerate(np.asarray(keep)):
        parts = (d.boxes[i], label[i], d.logit[i])
        detections.append(Boxes(*(np.asarray(part)[mine] for part in parts)))
    truth = [true_boxes(one) for one in np.asarray(batch["objects"])]
    ap = average_precision(detections, truth)
    assert ap[0] > 0.9
    counts = (np.asarray(keep) & (np.asarray(d.logit) > 0)).sum(1)
    assert (counts == [len(true.label) for true in truth]).mean() > 0.8


def test_a_frozen_encoder_has_no_gradient(setup):
    _, params, batch = setup
    frozen = build(detector_config(frozen=True), SIDE, classes=4)
    slope = program.simple(jax.grad(lambda p: loss_of(frozen, p, batch).loss.mean()))(params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(slope["encoder"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(slope["detector"]))


def test_a_convolutional_head_stands_on_the_last_map(setup):
    """Its cell says the same of a scene that was moved by a cell; frozen, the map is a constant."""
    _, _, batch = setup
    c = detector_config(frozen=True)
    c.encoder = config.call("encoder", "conv", widths=(4, 4), strides=(2, 2), dense=3, kernel=3)
    c.model.widths = (6,)
    image = jnp.zeros((1, 24, 24, 1)).at[:, 6:12, 6:12].set(batch["image"][:1, 6:12, 6:12])
    c.model.grid = 6
    model = build(c, 24, classes=4)

    @program.simple
    def both(key):
        params = model.init(key)
        moved = jnp.roll(image, (4, 4), (1, 2))
        slope = jax.grad(lambda p: model.detect(p, image).boxes.sum())(params)
        return model.detect(params, image), model.detect(params, moved), slope

    here, there, slope = both(jax.random.key(0))
    logit = np.asarray(here.logit).reshape(6, 6)[1:4, 1:4]
    np.testing.assert_allclose(np.asarray(there.logit).reshape(6, 6)[2:5, 2:5], logit, atol=1e-5)
    assert np.ptp(logit) > 1e-4
    assert not any(leaf.any() for leaf in jax.tree.leaves(slope["encoder"]))
    c.model.grid = 5
    with pytest.raises(UserError, match=r"model\.grid=5: the encoder's last map is 6x6; want"):
        build(c, 24, classes=4).init(jax.random.key(0))


def test_what_detection_needs_is_one_line(setup):
    model, params, batch = setup
    with pytest.raises(UserError, match=re.escape("detection learns from boxes; want scenes")):
        loss_of(model, params, {"image": batch["image"]})
    with pytest.raises(UserError, match=r"want model\.name=detector"):
        loss_of(model._replace(detect=None), params, batch)
