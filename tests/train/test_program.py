"""The same update however a step is compiled: modes, meshes, microbatches, a user's own noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.parity import MODES, built, largest_gap, objective, small, update
from vae_jax import config
from vae_jax.distributions import example_keys
from vae_jax.mesh import layout

# Relative, in float32: sums in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def one():
    """Name of an objective → its update under jit on one device."""
    return {name: update(objective(name), 1) for name in ("joint", "m2", "iwae")}


def mode_cases():
    """Every mode of every objective; of the slow ones, the fast suite has those with ``samples``.

    The joint objective has one sample, which no axis can split.
    """
    cases = [pytest.param("joint", mode) for mode in MODES if "samples" not in mode]
    for name in ("m2", "iwae"):
        for mode in MODES:
            fast = mode in ("jit data=4 samples=2", "shard_map fsdp=2 samples=2")
            cases.append(pytest.param(name, mode, marks=[] if fast else [pytest.mark.slow]))
    return cases


@pytest.mark.parametrize(("name", "mode"), mode_cases())
def test_every_mode_makes_the_same_update(one, name, mode):
    fields, devices = MODES[mode]
    assert largest_gap(objective(name, **fields), one[name], devices) <= TOLERANCE


TINY = {
    "vit": {"patch": 4, "width": 8, "depth": 1, "heads": 2},
    "residual": {"widths": (4, 8), "depths": (1, 1), "dense": 8},
}


def deep(net, **fields):
    c = objective("joint", **fields)
    c.encoder = config.call("encoder", net, **TINY[net])
    c.decoder = config.call("decoder", net, **TINY[net])
    return c


@pytest.mark.slow
@pytest.mark.parametrize("net", TINY)
def test_remat_and_microbatches_leave_the_update_of_a_deep_net(net):
    """Its blocks are rematerialised one by one; a dense net is rematerialised whole."""
    plain = update(deep(net), 1)
    for fields in ({"remat": "full"}, {"accumulate": 2}):
        assert largest_gap(deep(net, **fields), plain, 1) <= TOLERANCE, fields


def test_every_row_has_its_place_in_the_global_batch():
    """Blocks of shards, strides of microbatches: together every place once."""

    def places(shard):
        return layout.places(6, "data")

    shards = jax.vmap(places, axis_name="data")(jnp.zeros(2))
    np.testing.assert_array_equal(np.concatenate(shards), layout.places(12))
    microbatches = layout.microbatches(jnp.arange(12), 3)
    np.testing.assert_array_equal(microbatches, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])


# A loss and a posterior as a user writes them, with noise that is not ours.
OWN = """
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.objectives import Terms


class Shifted(NamedTuple):
    mu: Any

    def sample_and_log_prob(self, keys):
        shape = self.mu.shape[-1:]
        flat = jax.vmap(lambda key: jax.random.gamma(key, 2.0, shape))(keys.reshape(-1))
        noise = flat.reshape(*keys.shape, -1)
        return self.mu + noise, jnp.sum(jnp.log(noise) - noise, -1)

    def log_prob(self, z):
        return jnp.sum(jnp.log(z - self.mu) - (z - self.mu), -1)


class Head(nn.Module):
    shape: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        return Shifted(nn.Dense(self.shape)(h))


def loss(model, params, batch, keys):
    d = model.draw(params, batch["image"], keys)
    numbers = jnp.arange(20.0)
    extra = {
        "gamma": jax.vmap(lambda key: jax.random.gamma(key, 2.0))(keys),
        "uniform": jax.vmap(jax.random.uniform)(keys),
        "permuted": jax.vmap(lambda key: jax.random.permutation(key, numbers)[0])(keys),
    }
    return Terms(extra["gamma"] * d.kl.sum(-1) - d.log_px, extra=extra)
"""


OWN_MODES = {
    "jit 8": MODES["jit 8"],
    "jit data=2 fsdp=4": MODES["jit data=2 fsdp=4"],
    "shard_map 8": MODES["shard_map 8"],
    "pmap 8": MODES["pmap 8"],
    "jit 4, accumulate 4": MODES["jit 4, accumulate 4"],
    "bfloat16": ({"dtype": "bfloat16"}, 8),
    "bfloat16, accumulate 2": ({"dtype": "bfloat16", "accumulate": 2}, 4),
}


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


def with_own_noise(own_file, **fields):
    c = objective("joint", **fields)
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", f"{own_file}:loss")
    c.posterior = config.call("posterior", f"{own_file}:Head")
    return c


@pytest.fixture(scope="module")
def own_updates(own_file):
    """dtype → the update under jit on one device."""
    updates = {}
    for dtype in ("float32", "bfloat16"):
        updates[dtype] = update(with_own_noise(own_file, dtype=dtype), 1)
    return updates


@pytest.mark.parametrize("mode", OWN_MODES)
def test_a_users_own_noise_is_the_same_in_every_mode_and_shared_by_no_two_examples(
    own_file, own_updates, mode
):
    fields, devices = OWN_MODES[mode]
    dtype = fields.get("dtype", "float32")
    # Gradients of bfloat16 nets are sums of rounded numbers; the noise itself meets no net.
    tolerance = TOLERANCE if dtype == "float32" else 2e-2
    c = with_own_noise(own_file, **fields)
    state, run = built(c, devices)
    _, values = run.run(state, run.source, run.key)
    metrics = dict(zip(run.names, np.asarray(values)[0], strict=True))
    want = dict(zip(run.names, own_updates[dtype][0], strict=True))
    for name in ("gamma", "uniform", "permuted"):
        np.testing.assert_allclose(metrics[name], want[name], rtol=1e-5)
    assert largest_gap(c, own_updates[dtype], devices) <= tolerance


def gamma(key):
    return jax.random.gamma(key, 2.0)


@pytest.mark.parametrize("draw", [jax.random.uniform, jax.random.normal, gamma])
def test_keys_of_one_example_draw_for_no_other(draw):
    keys_B = example_keys(jax.random.key(0), jnp.arange(8))
    assert len(np.unique(jax.vmap(draw)(keys_B))) == 8
    with pytest.raises(ValueError, match="vmap"):
        gamma(keys_B)


@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_the_state_is_donated_in_every_mode(mode):
    state, run = built(small(compile=mode, accumulate=2))
    leaf = state.params["encoder"]["Layer_0"]["dense"]["kernel"]
    run.run(state, run.source, run.key)
    assert leaf.is_deleted()


@pytest.mark.parametrize("name", [pytest.param("imagenet64", marks=pytest.mark.slow), "pod_smoke"])
def test_pod_configs_step_on_two_images(name):
    """At 1/32 of their widths: the whole of them is a pod's work."""
    c = config.load(f"configs/{name}.py")
    c.batch = 2
    c.data.name = "synthetic"
    c.data.size = 64
    for section in ("encoder", "decoder"):
        c[section].widths = tuple(width // 32 for width in c[section].widths)
        c[section].dense = 64
    assert np.isfinite(update(c, 2)[0]).all()
