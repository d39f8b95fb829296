"""Probes on every layer of the encoder."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import config, data
from vae_jax.evaluate import layers
from vae_jax.evaluate.subject import Subject


def test_maps_are_averaged_over_even_cells():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    blocks = x.reshape(2, 4, 2, 4, 2, 3).mean((2, 4)).reshape(2, -1)
    np.testing.assert_allclose(layers.pooled(jnp.asarray(x)), blocks, rtol=1e-4, atol=1e-6)
    small = x[:, :3, :2]
    np.testing.assert_allclose(layers.pooled(small), small.reshape(2, -1), rtol=1e-4, atol=1e-6)
    odd = layers.pooled(jnp.ones((1, 7, 9, 1)))
    np.testing.assert_allclose(odd, np.ones((1, 16)), rtol=1e-6)


def test_a_layers_output_is_that_of_its_weights(subject):
    few = data.some(subject.data.test, 30)
    got = layers.outputs(subject, few)
    names = list(got)
    assert names[0] == "pixels" and names[-1] == "code"
    x = few.image.reshape(30, -1) / 16
    np.testing.assert_allclose(got["pixels"], x, rtol=1e-6)
    weights = subject.params["encoder"]["Layer_0"]["dense"]
    hidden = np.maximum(x @ weights["kernel"] + weights["bias"], 0)
    np.testing.assert_allclose(got["Layer_0"], hidden, rtol=1e-4, atol=1e-4)
    x = jnp.asarray(few.image, jnp.float32) / 16
    mu = subject.model.encode(subject.params, x).mu
    np.testing.assert_allclose(got["code"], mu, rtol=1e-3, atol=1e-4)


def test_probes_of_all_layers_tell_the_digits_apart(subject):
    values = layers.accuracies(subject, 300)
    assert {"pixels", "Layer_0", "code"} <= set(values)
    assert min(values.values()) > 0.85


def test_maps_of_a_convolutional_encoder_are_among_the_layers(subject):
    from vae_jax import models
    from vae_jax.train import program

    c = subject.config.copy_and_resolve_references()
    c.encoder = config.call("encoder", "conv", widths=(4, 6), dense=10)
    model = models.build_for(c, subject.data)
    params = program.simple(model.init)(jax.random.key(0))
    untrained = Subject(c, model, params, subject.data, subject.mesh)
    shapes = {}
    for name, output in layers.outputs(untrained, data.some(subject.data.test, 5)).items():
        shapes[name] = output.shape
    assert (5, 16 * 4) in shapes.values(), shapes  # 4 x 4 cells of the first map
    assert (5, 10) in shapes.values(), shapes
