"""Label budgets: which labels are read, and that no other is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.parity import largest_difference, trace
from tests.tiny import TRACE_TOLERANCE as TOLERANCE
from tests.tiny import semi_supervised
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.mesh import rules as sharding
from vae_jax.train import loop
from vae_jax.train import program as compile_lib

# Of 20 labels on digits.
GOLDEN_TRAIN = [249, 336, 728, 747, 787, 799, 849, 1058, 1146, 1253]
GOLDEN_VALIDATION = [6, 12, 42, 47, 49, 67, 72, 83, 115, 137]


@pytest.mark.parametrize(("labels", "judging"), [(10, 0), (19, 0), (20, 10), (60, 10), (207, 21)])
def test_a_budget_is_exact_balanced_and_within_the_splits(labels, judging):
    whole, c = data.load(config.default().data), semi_supervised(data__labels=labels)
    found = data.load(c.data)
    assert (found.train.label >= 0).sum() == labels - judging and (
        found.validation.label >= 0
    ).sum() == judging
    assert found.test.label.min() >= 0, "the test set keeps its labels"
    for split in (found.train, found.validation):
        chosen = split.label[split.label >= 0]
        count = np.bincount(chosen, minlength=10)
        assert count.max() - count.min() <= 1
        truth = {
            image.tobytes(): y
            for part in whole[4:7]
            for image, y in zip(part.image, part.label, strict=True)
        }
        assert all(
            truth[split.image[i].tobytes()] == split.label[i]
            for i in np.flatnonzero(split.label >= 0)
        )
    sizes = [(len(d.train.image), len(d.validation.image)) for d in (whole, found)]
    assert sizes[0] == sizes[1], "the images stay"


def test_the_chosen_examples_are_these_on_every_machine():
    found = data.load(semi_supervised(data__labels=20).data)
    chosen = [np.flatnonzero(s.label >= 0) for s in (found.train, found.validation)]
    np.testing.assert_array_equal(chosen[0], GOLDEN_TRAIN)
    np.testing.assert_array_equal(chosen[1], GOLDEN_VALIDATION)
    other = data.load(semi_supervised(data__labels=20, data__labels_seed=1).data)
    assert set(np.flatnonzero(other.train.label >= 0)) != set(chosen[0])
    more = data.load(semi_supervised(data__labels=200).data)
    assert set(chosen[0]) <= set(np.flatnonzero(more.train.label >= 0)), (
        "a larger budget has those of a smaller one"
    )


def test_a_class_of_few_examples_gives_what_it_has():
    label = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = data.balanced(label, 40, 3, 0)
    assert len(chosen) == len(set(chosen)) == 40
    assert sorted(np.bincount(label[chosen])) == [3, 18, 19]


def test_no_label_outside_the_budget_is_read(monkeypatch):
    """Other labels permuted: the same data set, and the same parameters to the last bit after a few
    steps.
    """
    image, label, _ = data._digits()[2]["train"]
    c = semi_supervised(steps_per_call=4)

    def load(label):
        splits = {
            "train": data.Split(image[:1400], label[:1400]),
            "test": data.Split(image[1400:], label[1400:]),
        }
        monkeypatch.setattr(data, "_digits", lambda: ((8, 8, 1), tuple("0123456789"), dict(splits)))
        return data.load(c.data)

    dataset = load(label)
    # Those that come after the last chosen one in the order of choice: earlier ones decide what is
    # chosen.
    parts = data.carve(
        data.Split(np.arange(1400), None), 0.1, data.VALIDATION_SEED, stratified=False
    )
    rng, other = np.random.default_rng(0), label.copy()
    for part, split in zip(parts, (dataset.train, dataset.validation), strict=True):
        n = len(part.image)
        order = data.shuffle(
            np.arange(n, dtype=np.uint32), np.zeros(n, np.uint32), n=n, seed=data.LABELS_SEED
        )
        last = np.flatnonzero(split.label[order] >= 0).max()
        rest = part.image[order[last + 1 :]]
        other[rest] = rng.permutation(label[rest])
    assert (other != label).sum() > 500
    again = load(other)
    for a, b in zip(jax.tree.leaves(dataset[4:7]), jax.tree.leaves(again[4:7]), strict=True):
        np.testing.assert_array_equal(a, b)

    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    model = models.build_for(c, dataset)
    fresh, places = compile_lib.init(c, model, mesh, dataset)
    program = compile_lib.training(c, model, mesh, dataset, jax.tree.map(jnp.copy, fresh), places)

    def train(d):
        return program.run(
            jax.tree.map(jnp.copy, fresh), compile_lib.resident(c, d, mesh), program.key
        )

    results = [train(d) for d in (dataset, again, load((label + 1) % 10))]
    same, moved = (largest_difference(results[0], r) for r in results[1:])
    assert same == 0 and moved > 0, "those of the budget are read"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__labels": 5}, r"data\.labels=5: want 0 \(all\) or at least 10"),
        ({"data__labels": 3000}, r"data\.labels=3000: want no more than train has"),
        ({"data__labelled_batch": 0}, r"data\.labelled_batch=0: .* such as 100"),
        (
            {"data__labels": 15, "eval__select": "accuracy"},
            r"eval\.select=accuracy: .* gives elbo, kl, log_px, loss$",
        ),
        ({"auxiliary": 3}, r"auxiliary=3: model m2 has no a, as adgm, sdgm, m1m2 have; want 0"),
        ({"encoder__widths": ()}, r"widths=\(\): a label enters the first layer"),
    ],
)
def test_what_cannot_be_meant_is_said(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        loop.train(semi_supervised(**changes), str(tmp_path / "run"))


def test_both_streams_are_the_same_on_eight_devices_and_from_the_host():
    c = semi_supervised(data__binarize="dynamic")
    losses, state = trace(c, jax.devices()[:1], 6)
    for changes, devices in (({"data__on_device_mb": 0}, 1), ({}, 8)):
        other = trace(
            semi_supervised(data__binarize="dynamic", **changes), jax.devices()[:devices], 6
        )
        np.testing.assert_allclose(other[0], losses, rtol=TOLERANCE)
        assert largest_difference(other[1].params, state.params) < 1e-4


def test_the_labelled_stream_shows_the_budget_only_and_all_of_it():
    split = data.load(semi_supervised().data).train
    batches = list(data.host_batches(split, range(5), batch=40, seed=0, labelled=40, prefetch=0))
    ids = np.concatenate([b["labelled"]["id"] for b in batches])
    assert sorted(ids[:50]) == sorted(ids[50:100]) == sorted(np.flatnonzero(split.label >= 0))
    for b in batches:
        np.testing.assert_array_equal(b["labelled"]["label"], split.label[b["labelled"]["id"]])
        np.testing.assert_array_equal(b["labelled"]["image"], split.image[b["labelled"]["id"]])
