"""The hand count of FLOPs: layers, gradients, loops, and every shipped config."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks.tiny import ROOT, setup, setup_tiny
from vae_jax.train import flops as count
from vae_jax.train import program, step

# FLOPs of dense and convolutional layers in a training step, for one image.
GOLDEN = {
    "ae_mnist": 7_010_000,
    "cgdl_mnist": 10_552_832,
    "codes_fsq_mnist": 4_384_512,
    "codes_gaussian_mnist": 4_499_968,
    "codes_mnist": 4_636_672,
    "grid_digits": 12_139_904,
    "grid_mnist": 22_673_920,
    "hvae_mnist": 16_505_600,
    "m2_auxiliary_mnist": 18_599_000,
    "masked_mnist": 27_887_616,
    "sharp_fashion": 27_887_616,
    "simclr_mnist": 27_906_560,
    "vade_mnist": 7_010_000,
    "air_digits": 2_895_616,
    "air_mnist": 25_788_000,
    "categorical_mnist": 3_407_872,
    "detect_mnist": 143_491_584,
    "fsq_mnist": 2_854_912,
    "per_class_mnist": 7_922_510,
    "rae_mnist": 27_813_888,
    "sprites": 10_053_632,
    "vq_fashion": 42_547_712,
    "svae_mnist": 2_417_920,
    "adgm_mnist": 74_742_248,
    "ccvae_mnist": 6_982_800,
    "cifar10_vdvae": 12_146_724_864,
    "cifar10_vdvae_20k": 354_103_296,
    "cifar10_vit": 1_803_168_768,
    "digits": 1_142_528,
    "fashion_cnn": 13_659_648,
    "fashion_mnist": 27_955_264,
    "fashion_hier": 177_534_976,
    "fashion_ladder": 11_706_368,
    "fashion_residual": 99_426_304,
    "fashion_vit": 98_672_128,
    "imagenet64": 3_861_454_848,
    "iwae_mnist": 7_191_200,
    "m1_mnist": 9_567_136,
    "m1m2_mnist": 6_720_600,
    "m2_mnist": 18_616_248,
    "mnist": 27_955_264,
    "mnist_cnn": 13_659_648,
    "mnist_dynamic": 2_228_000,
    "mnist_hier": 17_921_088,
    "mnist_vdvae": 83_490_880,
    "normal_mnist": 5_743_936,
    "pod_smoke": 3_861_485_568,
    "sdgm_mnist": 63_456_248,
    "seed_conv": 295_533_312,
    "sigma_fashion": 5_289_536,
    "static_mnist": 8_617_536,
    "unit_fashion": 5_289_536,
    "vae_mnist": 2_228_000,
    "vamp_mnist": 25_975_936,
}


def shipped() -> list[str]:
    """Names of the config files of models."""
    names = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        if "def get_config" in path.read_text():
            names.append(path.stem)
    return names


def flops_of(function: Callable, *shapes: tuple[int, ...]) -> int:
    return count.flops(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)))


def test_a_dense_layer_and_its_backward() -> None:
    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ w))

    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum("bij,bjk->bik", a, b)

    once = 2 * 3 * 5 * 7
    assert flops_of(layer, (3, 5), (5, 7)) == once
    assert flops_of(jax.grad(layer, 1), (3, 5), (5, 7)) == 2 * once  # no gradient of the image
    assert flops_of(jax.grad(layer, (0, 1)), (3, 5), (5, 7)) == 3 * once
    assert flops_of(products, (4, 3, 5), (4, 5, 7)) == 4 * once


def conv(x: jax.Array, w: jax.Array, **kwargs) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=layout, **kwargs)


def test_a_convolution_and_its_backward_count_no_padding() -> None:
    # 8 pixels, kernel 4, stride 2, one of padding at each end: 4 windows of 3 + 4 + 4 + 3 pixels.
    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(conv(x, w, window_strides=(2, 2), padding="SAME")))

    x = (2, 8, 8, 3)
    w = (4, 4, 3, 5)
    once = 2 * 2 * 3 * 5 * 14**2
    assert flops_of(layer, x, w) == once
    assert flops_of(jax.grad(layer, 1), x, w) == 2 * once
    assert flops_of(jax.grad(layer, (0, 1)), x, w) == 3 * once


def test_an_upsampling_convolution_counts_no_holes() -> None:
    from vae_jax.nets.conv import up2

    def layer(z: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(up2(z, w)))

    z = (2, 4, 4, 5)
    w = (4, 4, 3, 5)  # the mirror image of the convolution above
    once = 2 * 2 * 3 * 5 * 14**2
    assert flops_of(layer, z, w) == once
    assert flops_of(jax.grad(layer, (0, 1)), z, w) == 3 * once


def test_groups_and_dilated_kernels() -> None:
    # 6 pixels, kernel 3 with holes of one between its taps, no padding: 2 windows of 3 pixels.
    layer = functools.partial(
        conv,
        window_strides=(1, 1),
        padding="VALID",
        rhs_dilation=(2, 2),
        feature_group_count=2,
    )
    assert flops_of(layer, (1, 6, 6, 4), (3, 3, 2, 8)) == 2 * 2 * 8 * 6**2


def test_loops_branches_and_nested_functions() -> None:
    w = jnp.zeros((5, 5))
    once = 2 * 5**3

    def product(x: jax.Array) -> jax.Array:
        return x @ w

    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x)

    def branch(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, product, x)

    @jax.checkpoint
    def layers(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))

    assert flops_of(loop, (5, 5)) == 7 * once
    assert flops_of(branch, (5, 5)) == 2 * once
    assert flops_of(jax.jit(product), (5, 5)) == once
    # Checkpointed layers are computed again for the backward pass.
    assert flops_of(jax.grad(layers), (5, 5)) == (2 + 2 + 2) * once


def test_what_a_loop_repeats() -> None:
    """Seven products in a loop and one outside, and a sine of 25 numbers."""
    w = jnp.zeros((5, 5))

    def product(x: jax.Array) -> jax.Array:
        return x @ w

    def looped(x: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)
        return jnp.sin(x @ w)

    flops, accessed = count.repeats(jax.make_jaxpr(looped)(w))
    assert flops == (8 * 250 + 25) / (2 * 250 + 25)
    # A product accesses 75 numbers of four bytes, a sine 50.
    assert accessed == (8 * 300 + 200) / (2 * 300 + 200)
    assert count.repeats(jax.make_jaxpr(product)(w)) == (1, 1)


# The deepest takes longer to trace than most of the others together.
def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow if "cifar10_vdvae" in name else ())


@pytest.mark.parametrize("name", list(map(marked, shipped())))
def test_the_work_of_every_shipped_config(name: str) -> None:
    c, m, mesh, dataset = setup(name)
    traced = count.traced(c, m, mesh, dataset)
    flops = count.flops(traced) / (c.batch + c.data.labelled_batch)
    assert name in GOLDEN, f"new config: add '{name}': {flops:_.0f} to GOLDEN"
    assert flops == pytest.approx(GOLDEN[name], rel=1e-3)
    assert "float64" not in count.dtypes(traced)


def test_the_work_of_the_mlp_is_what_its_widths_say() -> None:
    sizes = (784 * 200, 200 * 200, 200 * 2 * 50, 50 * 200, 200 * 200, 200 * 784)
    # No gradient of the image is needed.
    assert 3 * 2 * sum(sizes) - 2 * sizes[0] == GOLDEN["mnist_dynamic"]


@pytest.mark.parametrize("name", ["mnist_dynamic", "mnist_cnn"])
def test_xla_counts_the_same_work(name: str) -> None:
    """The gradient of the loss, without the optimiser, whose share falls with the batch."""
    c, m, mesh, dataset = setup(name, batch="20")
    terms = step.Objective(c, m, dataset)
    params = program.shapes(c, m, mesh)[0].params

    def loss(params: dict, batch: dict, key: jax.Array) -> jax.Array:
        return jnp.mean(terms(params, batch, key, 0).loss)

    batch = step.raw_batch(dataset.shape, 20)
    lowered = program.simple(jax.grad(loss)).lower(params, batch, jax.random.key(0))
    xla = lowered.compile().cost_analysis()["flops"] / 20
    assert xla == pytest.approx(GOLDEN[name], rel=0.05)


def test_dtypes_are_found_and_bfloat16_nets_multiply_in_it() -> None:
    with jax.enable_x64(True):
        assert "float64" in count.dtypes(jax.make_jaxpr(jax.jit(jnp.sin))(np.ones(3)))
    assert "bfloat16" not in count.dtypes(count.traced(*setup_tiny()))
    assert "bfloat16" in count.dtypes(count.traced(*setup_tiny(dtype="bfloat16")))
