"""Which examples make batch ``step``, and what the device does to them before the model."""

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from vae_jax.config import UserError

if TYPE_CHECKING:  # splits imports shuffle from here
    from vae_jax.data.splits import Split

STATIC_SEED = 20160211  # of the static binarisation: part of the data set, so no config field


Array = np.ndarray | jax.Array


def _mix(h: Array) -> Array:
    """Murmur3's 32-bit finaliser (Appleby 2011): a bijection on uint32 that spreads every bit."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _swap_or_not(x: Array, key: Array, n: np.uint32, xp: ModuleType) -> Array:
    """One round: x and K - x (mod n) change places where a coin, the same for both, says so."""
    s = key % n + (n - x)  # in 1 .. 2n - 1
    partner = xp.minimum(s, s - n)  # s mod n: below n the difference wraps round to a huge number
    coin = _mix(xp.maximum(x, partner) ^ key) >> 31
    return x ^ ((x ^ partner) * coin)


def shuffle(x: Array, epoch: Array, *, n: int, seed: int | Array, xp: ModuleType = np) -> Array:
    """The image of x under a random-looking permutation of 0 .. n - 1 that (seed, epoch) names.

    Swap-or-not (Hoang, Morris & Rogaway 2012, fig. 1) with 4 ceil(log2 n) rounds, at least 16:
    O(log n) work and memory for each element. ``x``, ``epoch`` and the result are uint32 of one
    shape.
    """
    rounds = 4 * max(int(n - 1).bit_length(), 4)
    n = np.uint32(n)
    stream = _mix(_mix(xp.full(x.shape, seed, xp.uint32)) + epoch)
    golden = np.arange(1, rounds + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)
    keys_RxB = _mix(stream[None] + golden.reshape(-1, *[1] * x.ndim))
    if xp is np:
        for key in keys_RxB:
            x = _swap_or_not(x, key, n, np)
        return x

    def round_(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return _swap_or_not(x, key, n, jnp), None

    return jax.lax.scan(round_, x, keys_RxB)[0]


def batch_indices(
    step: int | Array, *, n: int, batch: int, seed: int | Array, xp: ModuleType = np
) -> Array:
    """Global indices I_B (int32) of training batch ``step``: a pure function of (seed, step).

    .. math:: I_b = \\pi_{seed, e}(o), \\quad (e, o) = divmod(step \\cdot B + b, n)

    with \\pi of :func:`shuffle`. Epochs abut: no example is dropped, or repeated within an epoch.
    ``step`` may be an array [S], which gives [S, B]. ``xp=np`` computes on the host, ``xp=jnp``
    inside jit (``step`` may be traced); both give the same values. Want (step + 1) * batch <= 2**32
    and n <= 2**31.
    """
    step = xp.asarray(step).astype(xp.uint32)
    position = step[..., None] * np.uint32(batch) + np.arange(batch, dtype=np.uint32)
    epoch = position // np.uint32(n)
    offset = position % np.uint32(n)
    return shuffle(offset, epoch, n=n, seed=seed, xp=xp).astype(xp.int32)


def labelled_indices(
    step: int | Array, *, n: int, batch: int, seed: int | Array, xp: ModuleType = np
) -> Array:
    """Places I_B (int32) in the list of the n labelled examples.

    They are :func:`batch_indices` of a stream of their own, seed + 2^31.
    """
    seed = xp.asarray(seed).astype(xp.uint32) + np.uint32(2**31)
    return batch_indices(step, n=n, batch=batch, seed=seed, xp=xp)


def eval_batches(n: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices int32 [batch], mask bool [batch]): every example once, padding masked."""
    for start in range(0, n, batch):
        mask = np.arange(start, start + batch) < n
        yield (np.arange(start, start + batch) % n).astype(np.int32), mask


def host_batches(
    split: "Split",
    steps: range,
    *,
    batch: int,
    seed: int,
    labelled: int = 0,
    prefetch: int = 4,
    share: Callable[[int], np.ndarray] = np.arange,
) -> Iterator[dict]:
    """Training batches of these steps, prepared in threads ahead of their use.

    Each is {'image': uint8 [B, H, W, C], 'label': int32 [B] (zeros where there are none),
    'id': int32 [B]}, and if ``labelled`` is not 0, a batch of that many labelled examples is in
    'labelled'. The order is that of :func:`batch_indices`, so any start is exact and there is no
    state to save. ``share(size)``: which rows of a batch to read, where other processes read the
    others.
    """
    import grain

    n = len(split.image)
    if labelled:
        index_L = np.flatnonzero(split.label >= 0).astype(np.int32)

    def rows(ids: np.ndarray) -> dict:
        label = np.zeros(len(ids), np.int32) if split.label is None else split.label[ids]
        return {"image": np.asarray(split.image[ids]), "label": label, "id": ids}

    def gather(step: int) -> dict:
        examples = rows(batch_indices(step, n=n, batch=batch, seed=seed)[share(batch)])
        if labelled:
            places = labelled_indices(step, n=len(index_L), batch=labelled, seed=seed)
            examples["labelled"] = rows(index_L[places[share(labelled)]])
        return examples

    threads = 2 if prefetch else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(gather)
    return iter(dataset.to_iter_dataset(options))


class Inputs(NamedTuple):
    """How raw images become a model's inputs: see :func:`to_input`."""

    levels: int  # grey levels of the data
    binarize: str = "none"
    shift: int = 0
    flip: bool = False


def to_input(
    image: jax.Array,
    ids_B: jax.Array,
    key: jax.Array | None,
    place_B: jax.Array | None = None,
    *,
    how: Inputs,
) -> jax.Array:
    """uint8 [B, H, W, C] -> float32 in [0, 1], binarised and augmented; runs inside jit.

    ``how.binarize``: 'none'; 'threshold', x > 1/2; 'static', x ~ Bernoulli(value), the same
    whenever an example (its id) is met; 'dynamic', drawn anew from the step's ``key`` (Burda et al.
    2015, arXiv:1509.00519). The probability is the value to 2^-16, and exact at 0 and 1. Training
    images are then moved by up to ``how.shift`` pixels each way, where the image's own border is
    repeated, and mirrored with probability 1/2 if ``how.flip``. ``key=None`` is evaluation: no
    augmentation, and 'dynamic' draws as 'static', so that no pass resamples the data. Every example
    has its own stream, so the values do not depend on the number of devices.
    """
    if place_B is None and key is not None:
        place_B = jnp.arange(len(image))
    levels, binarize, shift, flip = how
    x = image.astype(jnp.float32) / (levels - 1)
    if binarize == "threshold":
        x = (x > 0.5).astype(jnp.float32)
    elif binarize != "none" and levels > 2:
        if binarize == "dynamic" and key is not None:
            x = _toss(jax.random.fold_in(key, 0), place_B, image, levels)
        elif binarize in ("static", "dynamic"):
            x = _toss(jax.random.key(STATIC_SEED, impl="threefry2x32"), ids_B, image, levels)
        else:
            raise UserError(f"data.binarize={binarize}: want none, threshold, static or dynamic")
    if key is None or not (shift or flip):
        return x
    keys_B = _keys(jax.random.fold_in(key, 1), place_B)
    return jax.vmap(lambda k, x: _augment(k, x, shift, flip))(keys_B, x)


def _toss(key: jax.Array, ids_B: jax.Array, image_BxHxWxC: jax.Array, levels: int) -> jax.Array:
    """1 with probability image / (levels - 1): a function of key, example's number and pixel.

    One block of the generator (Salmon et al. 2011, Threefry-2x32) counts examples and pixels and
    tosses for four pixels with 16 bits each: a quarter of the work of ``jax.random``, which spends
    64 bits a number.
    """
    size = math.prod(image_BxHxWxC.shape[1:])
    shape = (ids_B.shape[0], -(-size // 4))
    example = jnp.broadcast_to(ids_B[:, None].astype(jnp.uint32), shape)
    pixels = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
    a, b = threefry2x32_p.bind(*jax.random.bits(key, (2,)), example, pixels)
    u16 = jnp.concatenate([a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16], axis=1)[:, :size]
    image = image_BxHxWxC.astype(jnp.uint32)
    return (u16.reshape(image.shape) * (levels - 1) < image << 16).astype(jnp.float32)


def _keys(key: jax.Array, ids_B: jax.Array) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids_B)


def _augment(key: jax.Array, x_HxWxC: jax.Array, shift: int, flip: bool) -> jax.Array:
    key_shift, key_flip = jax.random.split(key)
    if shift:
        dy, dx = jax.random.randint(key_shift, (2,), 0, 2 * shift + 1)
        # Zeros would draw black into white grounds: 39 nats on images of white paper.
        padded = jnp.pad(x_HxWxC, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
        x_HxWxC = jax.lax.dynamic_slice(padded, (dy, dx, 0), x_HxWxC.shape)
    if flip:
        x_HxWxC = jnp.where(jax.random.bernoulli(key_flip), x_HxWxC[:, ::-1], x_HxWxC)
    return x_HxWxC
