"""The training step that a user of PyTorch would write: ``benchmark.py --peer=torch``.

The network, the loss, the batch and the optimiser of a config, with the parameters of ours. The
data lies on the device as ours does, and a batch is a gather of random examples. What is faster in
PyTorch is used: the fastest of eager and compiled in both memory layouts (``Peer.forms``), Adam
fused, parameters' averages by one foreach, no learning-rate schedule, no metrics.

A transposed convolution of stride 2 and odd kernel is padded at one end by us and at the other
by PyTorch, so the convolutional nets here see mirrored images through mirrored kernels: the same
function of the same parameters, without a copy to crop.
"""

import copy
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional as F

from vae_jax.config import UserError
from vae_jax.data import Dataset

Layout = Callable[[np.ndarray], np.ndarray]
Step = tuple[Callable[[], None], Callable[[], None]]  # call, wait

ACTIVATIONS = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
}
LOGVAR, LOG_SCALE = (
    (-20.0, 20.0),
    (-7.0, 7.0),
)  # the smooth bounds of nets/heads.py and densities/likelihoods.py


def describe() -> str:
    """Version, device and settings in one line."""
    device = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    precision = torch.get_float32_matmul_precision()
    return f"torch {torch.__version__}, {device}, float32 products {precision}"


def soft_clip(v: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """densities.soft_clip with its margin of 1."""
    above = torch.clamp(v - (high - 1), min=0)
    below = torch.clamp((low + 1) - v, min=0)
    v = torch.where(v > high - 1, high - 1 / (1 + above), v)
    return torch.where(below > 0, low + 1 / (1 + below), v)


def log_bernoulli(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sum over pixels of log p(x); out and x are [..., *pixels] with the pixels last."""
    return -F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none")


def log_logistic(
    levels: int, x: torch.Tensor, mu: torch.Tensor, log_scale: torch.Tensor
) -> torch.Tensor:
    """densities.log_discretized_logistic of pixels x in [0, 1]."""
    inverse = torch.exp(-soft_clip(log_scale, *LOG_SCALE))
    k = torch.round(x * (levels - 1))
    a = ((2 * k + 2 - levels) / (levels - 1) - mu) * inverse
    b = ((2 * k - levels) / (levels - 1) - mu) * inverse
    first = k == 0
    last = k == levels - 1
    width = torch.log(-torch.expm1(-2 / (levels - 1) * inverse))
    below_upper = torch.where(last, 0.0, F.softplus(-a))
    above_lower = torch.where(first, 0.0, F.softplus(b))
    return torch.where(first | last, 0.0, width) - below_upper - above_lower


def log_discretized_logistic(
    levels: int, axis: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The log-density of pixels x whose mu and log-scale are the two halves of ``out``."""

    def log_px(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return log_logistic(levels, x, *out.chunk(2, axis))

    return log_px


# --- layouts: a leaf of our parameters as PyTorch keeps it ---------------------------------------


def _dense(w_IxO: np.ndarray) -> np.ndarray:
    return w_IxO.T


def _conv(w_hxwxIxO: np.ndarray) -> np.ndarray:
    return w_hxwxIxO.transpose(3, 2, 0, 1)[:, :, ::-1, ::-1]


def _from_grid(height: int, width: int) -> Layout:
    """Rows of a dense kernel that reads a flattened HxWxC grid: mirrored, in the order C, H, W."""

    def layout(w: np.ndarray) -> np.ndarray:
        grid = w.reshape(height, width, -1, w.shape[1])[::-1, ::-1]
        return grid.transpose(3, 2, 0, 1).reshape(w.shape[1], -1)

    return layout


def _to_grid(height: int, width: int) -> Layout:
    """Columns of a dense kernel, or a bias, that makes a flattened HxWxC grid."""

    def layout(w: np.ndarray) -> np.ndarray:
        grid = w.reshape(-1, height, width, w.shape[-1] // (height * width))
        columns = grid[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        return columns.reshape(w.shape[-1], -1) if w.ndim == 2 else columns.reshape(-1)

    return layout


def _same(b: np.ndarray) -> np.ndarray:
    return b


def _padding(kernel: int, stride: int, sides: tuple[int, int]) -> int:
    """The padding at one end with which a mirrored image gives what 'SAME' padding gives ours."""
    pads = {max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in sides}
    uneven = stride == 1 and (pads != {kernel - 1} or kernel % 2 == 0)
    if len(pads) > 1 or uneven:
        raise UserError(
            f"encoder.kernel={kernel}: --peer=torch has no such padding; "
            "want an odd kernel or stride 2"
        )
    return -(-pads.pop() // 2)


class Net(nn.Module):
    """All parts of the VAE. ``leaves``: [(path in our parameters, layout, parameter)]."""

    def __init__(self, c: ConfigDict, shape: tuple[int, ...], classes: int, levels: int):
        super().__init__()
        self.c = c
        self.shape = shape
        self.latent = c.latent
        self.leaves = []
        self.conv = c.encoder.name == "conv"
        height, width, channels = shape
        binary = c.data.binarize != "none" or levels == 2
        outputs = channels if binary else 2 * channels
        self.log_px = log_bernoulli
        if not binary:
            self.log_px = log_discretized_logistic(levels, 1 if self.conv else -1)
        self.labels = {}  # part: W_y of its first layer, where a label enters it
        self.classes = classes if c.objective.name == "m2" else 0
        self.encoder, features = self._encoder(height, width, channels)
        self.posterior = self._linear("posterior/Dense_0", features, 2 * c.latent)
        self.decoder = self._decoder(height, width, outputs)
        self.classifier = None
        if c.classifier.name == "mlp":
            inputs = features if self.classes else c.latent
            self.classifier = self._mlp("classifier", c.classifier, inputs, classes)
        if self.classes:
            trunk = self._mlp("trunk", c.encoder, math.prod(shape))
            self.classifier = nn.Sequential(nn.Flatten(), trunk, self.classifier)
            self._label("encoder", c.encoder.widths[0])
            self._label("decoder", c.decoder.widths[0])

    def pixels(self, image_BxHxWxC: np.ndarray) -> np.ndarray:
        """Images as this net reads them."""
        if self.conv:
            return image_BxHxWxC.transpose(0, 3, 1, 2)[:, :, ::-1, ::-1]
        return image_BxHxWxC.reshape(len(image_BxHxWxC), -1, image_BxHxWxC.shape[-1])

    def _leaf(self, path: str, layout: Layout, parameter: nn.Parameter) -> None:
        self.leaves.append((path, layout, parameter))

    def _linear(
        self,
        path: str,
        inputs: int,
        outputs: int,
        kernel: Layout = _dense,
        bias: Layout = _same,
    ) -> nn.Linear:
        layer = nn.Linear(inputs, outputs)
        self._leaf(f"{path}/kernel", kernel, layer.weight)
        self._leaf(f"{path}/bias", bias, layer.bias)
        return layer

    def _label(self, part: str, width: int) -> None:
        layer = nn.Linear(self.classes, width, bias=False)
        self.labels[part] = layer
        self.add_module(f"{part}_label", layer)
        self._leaf(f"{part}/Layer_0/label/kernel", _dense, layer.weight)

    def _mlp(
        self, part: str, section: ConfigDict, inputs: int, outputs: int | None = None
    ) -> nn.Sequential:
        """Dense layers with their activation, then a linear one where ``outputs`` is given."""
        layers = []
        for i, width in enumerate(section.widths):
            layers.append(self._linear(f"{part}/Layer_{i}/dense", inputs, width))
            layers.append(Activation(section.activation))
            inputs = width
        if outputs:
            layers.append(self._linear(f"{part}/out", inputs, outputs))
        return nn.Sequential(*layers)

    def _encoder(self, height: int, width: int, channels: int) -> tuple[nn.Sequential, int]:
        """(the encoder, the number of its features)."""
        section = self.c.encoder
        if not self.conv:
            dense = self._mlp("encoder", section, math.prod(self.shape))
            return nn.Sequential(nn.Flatten(), dense), section.widths[-1]
        layers = []
        for i, (features, stride) in enumerate(zip(section.widths, section.strides, strict=True)):
            pad = _padding(section.kernel, stride, (height, width))
            layer = nn.Conv2d(channels, features, section.kernel, stride, padding=pad)
            self._leaf(f"encoder/Conv_{i}/kernel", _conv, layer.weight)
            self._leaf(f"encoder/Conv_{i}/bias", _same, layer.bias)
            layers += [layer, Activation(section.activation)]
            channels = features
            height = -(-height // stride)
            width = -(-width // stride)
        grid = _from_grid(height, width)
        dense = self._linear("encoder/Dense_0", height * width * channels, section.dense, grid)
        layers += [nn.Flatten(), dense, Activation(section.activation)]
        return nn.Sequential(*layers), section.dense

    def _decoder(self, height: int, width: int, outputs: int) -> nn.Sequential:
        section = self.c.decoder
        if not self.conv:
            pixels = height * width
            dense = self._mlp("decoder", section, self.c.latent, pixels * outputs)
            return nn.Sequential(dense, nn.Unflatten(1, (pixels, outputs)))
        n = len(section.widths)
        k = section.kernel
        features = section.widths[0]
        rows = -(-height // 2**n)
        columns = -(-width // 2**n)
        grid = _to_grid(rows, columns)
        size = rows * columns * features
        layers = [
            self._linear("decoder/Dense_0", self.c.latent, section.dense),
            Activation(section.activation),
            self._linear("decoder/Dense_1", section.dense, size, grid, grid),
            Activation(section.activation),
            nn.Unflatten(1, (features, rows, columns)),
        ]
        pad = -(-(k - 2) // 2)
        more = 2 + 2 * pad - k
        for i, wide in enumerate((*section.widths[1:], outputs)):
            last = i == n - 1
            path = "decoder/out" if last else f"decoder/UpConv_{i}"
            layer = nn.ConvTranspose2d(features, wide, k, 2, padding=pad, output_padding=more)
            self._leaf(f"{path}/kernel", _conv, layer.weight)
            self._leaf(f"{path}/bias", _same, layer.bias)
            layers.append(layer)
            if not last:
                layers.append(Activation(section.activation))
            features = wide
        return nn.Sequential(*layers, Crop(height, width))

    def _autocast(self, x: torch.Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.c.dtype == "bfloat16")

    def forward(
        self,
        x: torch.Tensor,
        label: torch.Tensor,
        eps_KxBxD: torch.Tensor,
        labelled: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor:
        """The loss of a batch: x is [B, pixels, C] for dense nets, [B, C, H, W] for others.

        ``labelled``: such a batch of labelled examples as well, (x, label, eps), for M2.
        """
        objective = self.c.objective
        if labelled is not None:
            return self.m2(x, eps_KxBxD, *labelled)
        with self._autocast(x):
            out = self.posterior(self.encoder(x))
        mu, logvar = out.float().chunk(2, -1)
        logvar = soft_clip(logvar, *LOGVAR)
        z_KxBxD = mu + torch.exp(0.5 * logvar) * eps_KxBxD
        samples, batch, latent = z_KxBxD.shape
        flat = z_KxBxD.reshape(-1, latent)
        with self._autocast(x):
            decoded = self.decoder(flat)
            logits = self.classifier(flat) if self.classifier is not None else None
        decoded = decoded.float()
        if samples > 1:
            x = x.repeat(samples, *[1] * (x.ndim - 1))
        log_px_KxB = self.log_px(decoded, x).flatten(1).sum(1).reshape(samples, batch)
        if objective.name == "iwae":
            log_qz = -0.5 * (math.log(2 * math.pi) + logvar + eps_KxBxD**2).sum(-1)
            log_pz = -0.5 * (math.log(2 * math.pi) + z_KxBxD**2).sum(-1)
            return -(torch.logsumexp(log_px_KxB + log_pz - log_qz, 0) - math.log(samples)).mean()
        kl = 0.5 * (mu**2 + torch.expm1(logvar) - logvar).sum(-1)
        loss = objective.beta * kl - log_px_KxB.mean(0)
        if objective.name == "joint":
            ce = F.cross_entropy(logits.float(), label.repeat(samples), reduction="none")
            loss = loss + objective.gamma * ce.reshape(samples, batch).mean(0)
        return loss.mean()

    def m2(
        self,
        x: torch.Tensor,
        eps_KxBxD: torch.Tensor,
        x_l: torch.Tensor,
        label: torch.Tensor,
        eps_l_KxBxD: torch.Tensor,
    ) -> torch.Tensor:
        """As objectives.m2: the bound over all labels of the batch x; of the labelled batch x_l the
        bound and the cross-entropy."""
        o = self.c.objective
        with self._autocast(x):
            logits = self.classifier(x)
            logits_l = self.classifier(x_l)
        every = torch.arange(self.classes, device=x.device)[:, None].expand(-1, len(x))
        log_q_YxB = F.log_softmax(logits.float(), -1).T
        bound_YxB = self.bound(x, every, eps_KxBxD) + log_q_YxB
        unlabelled = (log_q_YxB.exp() * bound_YxB).sum(0) + math.log(self.classes)
        labelled = self.bound(x_l, label[None], eps_l_KxBxD)[0] + math.log(self.classes)
        ce = F.cross_entropy(logits_l.float(), label)
        return unlabelled.mean() + o.labelled * labelled.mean() + o.alpha * ce

    def bound(
        self, x: torch.Tensor, label_YxB: torch.Tensor, eps_KxBxD: torch.Tensor
    ) -> torch.Tensor:
        """-(log p(x|y,z) - KL), shape YxB. W_x x is computed once for all labels."""
        y = F.one_hot(label_YxB, self.classes).float()
        with self._autocast(x):
            first, *rest = self.encoder[1]
            h = rest[0](first(x.flatten(1)) + self.labels["encoder"](y))
            for layer in rest[1:]:
                h = layer(h)
            out = self.posterior(h)
        mu, logvar = out.float().chunk(2, -1)
        logvar = soft_clip(logvar, *LOGVAR)
        z_KxYxBxD = mu + torch.exp(0.5 * logvar) * eps_KxBxD[:, None]
        with self._autocast(x):
            first, *rest = self.decoder[0]
            h = rest[0](first(z_KxYxBxD) + self.labels["decoder"](y))
            for layer in rest[1:]:
                h = layer(h)
        log_px_YxB = self.log_px(h.float(), x.flatten(1)).sum(-1).mean(0)
        return 0.5 * (mu**2 + torch.expm1(logvar) - logvar).sum(-1) - log_px_YxB


class Activation(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.function(h)


class Crop(nn.Module):
    """The image's own pixels of a larger grid; mirrored, so the last ones."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h[..., h.shape[-2] - self.height :, h.shape[-1] - self.width :]


def want(field: str, value: Any, known: tuple) -> None:
    """Raise for a field's value that this peer does not have."""
    if value not in known:
        raise UserError(
            f"{field}={value}: --peer=torch has none; want {' or '.join(map(str, known))}"
        )


def _check(c: ConfigDict) -> None:
    if c.decoder.name != "vdvae":  # torch_vdvae has its own
        want("encoder.name", c.encoder.name, ("mlp", "conv"))
        want("decoder.name", c.decoder.name, (c.encoder.name,))
        want("likelihood.name", c.likelihood.name, ("bernoulli", "discretized_logistic"))
    want("classifier.name", c.classifier.name, ("none", "mlp"))
    want("posterior.name", c.posterior.name, ("gaussian",))
    want("prior.name", c.prior.name, ("normal",))
    want("objective.name", c.objective.name, ("elbo", "iwae", "joint", "m2"))
    if c.objective.name == "m2":
        want("encoder.name", c.encoder.name, ("mlp",))
        want("likelihood.name", c.likelihood.name, ("bernoulli",))
        want("data.labelled_batch > 0", c.data.labelled_batch > 0, (True,))
    want("objective.estimator", c.objective.get("estimator", "pathwise"), ("pathwise",))
    want("objective.stl", c.objective.get("stl", False), (False,))
    want("data.binarize", c.data.binarize, ("none", "threshold", "dynamic"))
    want("data.shift", c.data.shift, (0,))
    want("data.flip", c.data.flip, (False,))
    want("warmup.steps", c.warmup.steps, (0,))
    want("replicas", len(c.replicas), (0,))
    if c.objective.name != "m2":
        want("data.labelled_batch", c.data.labelled_batch, (0,))
    for section in (c.encoder, c.decoder, c.classifier):
        want("activation", section.get("activation", "relu"), tuple(ACTIVATIONS))


def _flatten(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """{'part/layer/kernel': leaf} of nested dictionaries."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


class Peer:
    """A config's VAE with our parameters (a tree of arrays), and its training step in each form.

    Raises:
      UserError: the config asks for something that this peer does not have.
    """

    def __init__(self, c: ConfigDict, dataset: Dataset, params: dict):
        _check(c)
        torch.set_num_threads(os.cpu_count())
        torch._dynamo.config.recompile_limit = 256  # beyond it, a sweep's cells would run eagerly
        self.c = c
        self.levels = dataset.levels
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if c.decoder.name == "vdvae":
            from benchmarks.peers import torch_vdvae

            net = torch_vdvae.Net(c, dataset.shape, dataset.levels)
        else:
            net = Net(c, dataset.shape, len(dataset.classes), dataset.levels)
        self.net = net.to(self.device)
        for (_, _, p), value in zip(self.net.leaves, self.layout(params), strict=True):
            with torch.no_grad():
                p.copy_(torch.from_numpy(value.copy()))
        self.image = torch.from_numpy(self._pixels(dataset.train.image)).to(self.device)
        label = dataset.train.label
        if label is None:
            label = np.zeros(len(self.image))
        self.label = torch.from_numpy(np.asarray(label, np.int64)).to(self.device)
        self.visible = torch.nonzero(self.label >= 0).flatten()  # examples with a label

    def _pixels(self, image_BxHxWxC: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.net.pixels(image_BxHxWxC))

    def layout(self, tree: dict) -> list[np.ndarray]:
        """The leaves of one of our trees in PyTorch's layout, in the order of the net's.

        Raises:
          UserError: the tree has a leaf that the net here lacks.
        """
        flat = _flatten(tree)
        known = {path for path, _, _ in self.net.leaves}
        if set(flat) != known:
            unknown = ", ".join(sorted(set(flat) ^ known))
            raise UserError(f"--peer=torch: has no parameter {unknown}")
        return [np.ascontiguousarray(layout(flat[path])) for path, layout, _ in self.net.leaves]

    def _tensors(self, x: np.ndarray, label: np.ndarray, eps: np.ndarray) -> list[torch.Tensor]:
        arrays = (self._pixels(x), np.asarray(label, np.int64), eps)
        return [torch.from_numpy(np.array(a)).to(self.device) for a in arrays]

    def loss_and_gradients(
        self,
        x_BxHxWxC: np.ndarray,
        label_B: np.ndarray,
        eps_KxBxD: np.ndarray,
        labelled: list[np.ndarray] | None = None,
    ) -> tuple[float, list[np.ndarray]]:
        """The loss and every gradient in float32, for a batch in [0, 1] and its noise.

        ``labelled``: the same of a batch of labelled examples, where the config has them.
        """
        precision = torch.get_float32_matmul_precision()
        dtype = self.c.dtype
        batch = self._tensors(x_BxHxWxC, label_B, eps_KxBxD)
        other = None if labelled is None else self._tensors(*labelled)
        torch.set_float32_matmul_precision("highest")
        self.c.dtype = "float32"
        try:
            loss = self.net(*batch, other)
            loss.backward()
        finally:
            self.c.dtype = dtype
            torch.set_float32_matmul_precision(precision)
        gradients = [p.grad.cpu().numpy() for _, _, p in self.net.leaves]
        self.net.zero_grad(set_to_none=True)
        return loss.item(), gradients

    def forms(self) -> dict[str, Callable[[], Step]]:
        """The step's candidates: {name: make}; ``make()`` compiles it and returns (call, wait).

        Eager and compiled, each in both memory layouts where the net has convolutions. Every one
        trains a copy of the net.
        """
        layouts = {"": torch.contiguous_format}
        if any(p.ndim == 4 for p in self.net.parameters()):
            layouts["_channels_last"] = torch.channels_last
        forms = {}
        for suffix, layout in layouts.items():
            forms[f"torch_eager{suffix}"] = functools.partial(self._make, False, layout)
            forms[f"torch_compile{suffix}"] = functools.partial(self._make, True, layout)
        return forms

    def net_in(self, layout: torch.memory_format) -> nn.Module:
        """A copy of the net whose convolution kernels lie in a memory layout."""
        return copy.deepcopy(self.net).to(memory_format=layout)

    def batch(
        self, index: torch.Tensor, layout: torch.memory_format
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(images, labels, noise) of some examples, gathered on the device."""
        c = self.c
        x = self.image[index]
        if x.ndim == 4:
            x = x.to(torch.float32, memory_format=layout)
        x = x.float() / (self.levels - 1)
        if c.data.binarize == "dynamic":
            x = (torch.rand_like(x) < x).float()
        elif c.data.binarize == "threshold":
            x = (x > 0.5).float()
        samples = c.objective.get("samples", 1)
        eps_KxBxD = torch.randn(samples, len(index), self.net.latent, device=self.device)
        return x, self.label[index], eps_KxBxD

    def random_index(self, n: int, size: int) -> torch.Tensor:
        return torch.randint(n, (size,), device=self.device)

    def _optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """Adam or AdamW, fused; weight decay for matrices alone."""
        o = self.c.optim
        matrices = [p for p in net.parameters() if p.ndim > 1]
        vectors = [p for p in net.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": o.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        rule = torch.optim.AdamW if o.name == "adamw" else torch.optim.Adam
        return rule(groups, lr=o.lr, betas=(o.b1, o.b2), eps=o.eps, fused=True)

    def _make(self, compiled: bool, layout: torch.memory_format) -> Step:
        c = self.c
        net = self.net_in(layout)
        optimiser = self._optimiser(net)
        params = list(net.parameters())
        averages = [p.detach().clone() for p in params] if c.optim.ema else []

        def loss_of(index: torch.Tensor, labelled: torch.Tensor | None) -> torch.Tensor:
            if labelled is None:
                return net(*self.batch(index, layout))
            return net(*self.batch(index, layout), self.batch(labelled, layout))

        if compiled:
            mode = "reduce-overhead" if self.device == "cuda" else None
            loss_of = torch.compile(loss_of, mode=mode)

        def call() -> None:
            index = self.random_index(len(self.image), c.batch)
            labelled = None
            if c.data.labelled_batch:
                rows = self.random_index(len(self.visible), c.data.labelled_batch)
                labelled = self.visible[rows]
            optimiser.zero_grad(set_to_none=True)
            loss_of(index, labelled).backward()
            if c.optim.clip:
                torch.nn.utils.clip_grad_norm_(params, c.optim.clip)
            optimiser.step()
            if averages:
                with torch.no_grad():
                    torch._foreach_lerp_(averages, params, 1 - c.optim.ema)

        call()
        return call, torch.cuda.synchronize if self.device == "cuda" else _no_wait


def _no_wait() -> None:
    """A CPU's step is done when its call returns."""
