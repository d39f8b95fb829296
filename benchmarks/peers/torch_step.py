"""The training step that a user of PyTorch would write: ``benchmark.py --peer=torch``.

The network, the loss, the batch and the optimiser of a config, with the parameters of ours. The data lies on the
device as ours does, and a batch is a gather of random examples. What is faster in PyTorch is used: NCHW for
convolutions, Adam fused, parameters' averages by one foreach, no learning-rate schedule, no metrics.

A transposed convolution of stride 2 and odd kernel is padded at one end by us and at the other by PyTorch, so the
convolutional nets here see mirrored images through mirrored kernels: the same function of the same parameters,
without a copy to crop.
"""

import math
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vae_jax.config import UserError

ACTIVATIONS = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": lambda h: F.gelu(h, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
}
LOGVAR, LOG_SCALE = (-20.0, 20.0), (-7.0, 7.0)  # the smooth bounds of nets/heads.py and densities/likelihoods.py


def describe():
    """Version, device and settings in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, {device}, float32 products {torch.get_float32_matmul_precision()}"


def soft_clip(v, low, high):
    """densities.soft_clip with its margin of 1."""
    above = torch.clamp(v - (high - 1), min=0)
    below = torch.clamp((low + 1) - v, min=0)
    v = torch.where(v > high - 1, high - 1 / (1 + above), v)
    return torch.where(below > 0, low + 1 / (1 + below), v)


def log_bernoulli(out, x):
    """Sum over pixels of log p(x); out and x are [..., *pixels] with the pixels last."""
    return -F.binary_cross_entropy_with_logits(out, x.expand_as(out), reduction="none")


def log_logistic(levels, x, mu, log_scale):
    """densities.log_discretized_logistic of pixels x in [0, 1]."""
    inverse = torch.exp(-soft_clip(log_scale, *LOG_SCALE))
    k = torch.round(x * (levels - 1))
    a = ((2 * k + 2 - levels) / (levels - 1) - mu) * inverse
    b = ((2 * k - levels) / (levels - 1) - mu) * inverse
    first, last = k == 0, k == levels - 1
    width = torch.log(-torch.expm1(-2 / (levels - 1) * inverse))
    below_upper = torch.where(last, 0.0, F.softplus(-a))
    above_lower = torch.where(first, 0.0, F.softplus(b))
    return torch.where(first | last, 0.0, width) - below_upper - above_lower


def log_discretized_logistic(levels, axis):
    return lambda out, x: log_logistic(levels, x, *out.chunk(2, axis))


# --- layouts: a leaf of our parameters as PyTorch keeps it -----------------------------------------


def _dense(w_IxO):
    return w_IxO.T


def _conv(w_hxwxIxO):
    return w_hxwxIxO.transpose(3, 2, 0, 1)[:, :, ::-1, ::-1]


def _from_grid(height, width):
    """Rows of a dense kernel that reads a flattened HxWxC grid: mirrored, in the order C, H, W."""
    return lambda w: w.reshape(height, width, -1, w.shape[1])[::-1, ::-1].transpose(3, 2, 0, 1).reshape(w.shape[1], -1)


def _to_grid(height, width):
    """Columns of a dense kernel, or a bias, that makes a flattened HxWxC grid."""

    def layout(w):
        grid = w.reshape(-1, height, width, w.shape[-1] // (height * width))[:, ::-1, ::-1].transpose(3, 1, 2, 0)
        return grid.reshape(w.shape[-1], -1) if w.ndim == 2 else grid.reshape(-1)

    return layout


def _same(b):
    return b


class Net(nn.Module):
    """All parts of the VAE. ``leaves``: [(path in our parameters, layout, parameter)]."""

    def __init__(self, c, shape, classes, levels):
        super().__init__()
        self.c, self.shape, self.latent, self.leaves = c, shape, c.latent, []
        self.conv = c.encoder.name == "conv"
        height, width, channels = shape
        binary = c.data.binarize != "none" or levels == 2
        outputs = channels if binary else 2 * channels
        self.log_px = log_bernoulli if binary else log_discretized_logistic(levels, 1 if self.conv else -1)
        self.labels = {}  # part: W_y of its first layer, where a label enters it
        self.classes = classes if c.objective.name == "m2" else 0
        self.encoder, features = self._encoder(height, width, channels)
        self.posterior = self._linear("posterior/Dense_0", features, 2 * c.latent)
        self.decoder = self._decoder(height, width, outputs)
        self.classifier = None
        if c.classifier.name == "mlp":
            self.classifier = self._mlp("classifier", c.classifier, features if self.classes else c.latent, classes)
        if self.classes:
            trunk = self._mlp("trunk", c.encoder, math.prod(shape))
            self.classifier = nn.Sequential(nn.Flatten(), trunk, self.classifier)
            self._label("encoder", c.encoder.widths[0])
            self._label("decoder", c.decoder.widths[0])

    def pixels(self, image_BxHxWxC):
        """Images as this net reads them."""
        if self.conv:
            return image_BxHxWxC.transpose(0, 3, 1, 2)[:, :, ::-1, ::-1]
        return image_BxHxWxC.reshape(len(image_BxHxWxC), -1, image_BxHxWxC.shape[-1])

    def _leaf(self, path, layout, parameter):
        self.leaves.append((path, layout, parameter))

    def _linear(self, path, inputs, outputs, kernel=_dense, bias=_same):
        layer = nn.Linear(inputs, outputs)
        self._leaf(f"{path}/kernel", kernel, layer.weight)
        self._leaf(f"{path}/bias", bias, layer.bias)
        return layer

    def _label(self, part, width):
        layer = nn.Linear(self.classes, width, bias=False)
        self.labels[part] = layer
        self.add_module(f"{part}_label", layer)
        self._leaf(f"{part}/Layer_0/label/kernel", _dense, layer.weight)

    def _mlp(self, part, section, inputs, outputs=None):
        """Dense layers with their activation, then a linear one where ``outputs`` is given."""
        layers = []
        for i, width in enumerate(section.widths):
            layers += [self._linear(f"{part}/Layer_{i}/dense", inputs, width), Activation(section.activation)]
            inputs = width
        if outputs:
            layers.append(self._linear(f"{part}/out", inputs, outputs))
        return nn.Sequential(*layers)

    def _encoder(self, height, width, channels):
        section = self.c.encoder
        if not self.conv:
            return nn.Sequential(nn.Flatten(), self._mlp("encoder", section, math.prod(self.shape))), section.widths[-1]
        layers, k = [], section.kernel
        for i, (features, stride) in enumerate(zip(section.widths, section.strides, strict=True)):
            pads = {max(0, (-(-n // stride) - 1) * stride + k - n) for n in (height, width)}
            if len(pads) > 1 or (stride == 1 and pads != {k - 1}) or (stride == 1 and k % 2 == 0):
                raise UserError(f"encoder.kernel={k}: --peer=torch has no such padding; want an odd kernel or stride 2")
            layer = nn.Conv2d(channels, features, k, stride, padding=-(-pads.pop() // 2))
            self._leaf(f"encoder/Conv_{i}/kernel", _conv, layer.weight)
            self._leaf(f"encoder/Conv_{i}/bias", _same, layer.bias)
            layers += [layer, Activation(section.activation)]
            channels, height, width = features, -(-height // stride), -(-width // stride)
        grid = _from_grid(height, width)
        dense = self._linear("encoder/Dense_0", height * width * channels, section.dense, kernel=grid)
        return nn.Sequential(*layers, nn.Flatten(), dense, Activation(section.activation)), section.dense

    def _decoder(self, height, width, outputs):
        section = self.c.decoder
        if not self.conv:
            grid = nn.Unflatten(1, (height * width, outputs))
            return nn.Sequential(self._mlp("decoder", section, self.c.latent, height * width * outputs), grid)
        n, k, features = len(section.widths), section.kernel, section.widths[0]
        rows, columns = -(-height // 2**n), -(-width // 2**n)
        act = lambda: Activation(section.activation)  # noqa: E731
        grid = _to_grid(rows, columns)
        layers = [self._linear("decoder/Dense_0", self.c.latent, section.dense), act()]
        layers += [self._linear("decoder/Dense_1", section.dense, rows * columns * features, grid, grid), act()]
        layers.append(nn.Unflatten(1, (features, rows, columns)))
        pad = -(-(k - 2) // 2)
        for i, wide in enumerate((*section.widths[1:], outputs)):
            path = "decoder/out" if i == n - 1 else f"decoder/UpConv_{i}"
            layer = nn.ConvTranspose2d(features, wide, k, 2, padding=pad, output_padding=2 + 2 * pad - k)
            self._leaf(f"{path}/kernel", _conv, layer.weight)
            self._leaf(f"{path}/bias", _same, layer.bias)
            layers += [layer, act()] if i < n - 1 else [layer]
            features = wide
        return nn.Sequential(*layers, Crop(height, width))

    def forward(self, x, label, eps_KxBxD, labelled=None):
        """The loss of a batch: x as [B, pixels, C] for fully connected nets, [B, C, H, W] for others.

        ``labelled``: such a batch of labelled examples as well, (x, label, eps), for M2.
        """
        c, objective = self.c, self.c.objective
        if labelled is not None:
            return self.m2(x, eps_KxBxD, *labelled)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=c.dtype == "bfloat16"):
            out = self.posterior(self.encoder(x))
        mu, logvar = out.float().chunk(2, -1)
        logvar = soft_clip(logvar, *LOGVAR)
        z_KxBxD = mu + torch.exp(0.5 * logvar) * eps_KxBxD
        samples, batch, latent = z_KxBxD.shape
        flat = z_KxBxD.reshape(-1, latent)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=c.dtype == "bfloat16"):
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

    def m2(self, x, eps_KxBxD, x_l, label, eps_l_KxBxD):
        """As objectives.m2: the bound over all labels of the one batch, bound and cross-entropy of the other."""
        c, o = self.c, self.c.objective
        with torch.autocast(x.device.type, torch.bfloat16, enabled=c.dtype == "bfloat16"):
            logits, logits_l = self.classifier(x), self.classifier(x_l)
        every = torch.arange(self.classes, device=x.device)[:, None].expand(-1, len(x))
        log_q_YxB = F.log_softmax(logits.float(), -1).T
        bound_YxB = self.bound(x, every, eps_KxBxD) + log_q_YxB
        unlabelled = (log_q_YxB.exp() * bound_YxB).sum(0) + math.log(self.classes)
        given = self.bound(x_l, label[None], eps_l_KxBxD)[0] + math.log(self.classes)
        return unlabelled.mean() + o.labelled * given.mean() + o.alpha * F.cross_entropy(logits_l.float(), label)

    def bound(self, x, label_YxB, eps_KxBxD):
        """-(log p(x|y,z) - KL), shape YxB. What meets all labels is computed once: W_x x, and W_z z is not."""
        c = self.c
        y = F.one_hot(label_YxB, self.classes).float()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=c.dtype == "bfloat16"):
            first, *rest = self.encoder[1]
            h = rest[0](first(x.flatten(1)) + self.labels["encoder"](y))
            for layer in rest[1:]:
                h = layer(h)
            out = self.posterior(h)
        mu, logvar = out.float().chunk(2, -1)
        logvar = soft_clip(logvar, *LOGVAR)
        z_KxYxBxD = mu + torch.exp(0.5 * logvar) * eps_KxBxD[:, None]
        with torch.autocast(x.device.type, torch.bfloat16, enabled=c.dtype == "bfloat16"):
            first, *rest = self.decoder[0]
            h = rest[0](first(z_KxYxBxD) + self.labels["decoder"](y))
            for layer in rest[1:]:
                h = layer(h)
        log_px_YxB = self.log_px(h.float(), x.flatten(1)).sum(-1).mean(0)
        return 0.5 * (mu**2 + torch.expm1(logvar) - logvar).sum(-1) - log_px_YxB


class Activation(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, h):
        return self.function(h)


class Crop(nn.Module):
    """The image's own pixels of a larger grid; mirrored, so the last ones."""

    def __init__(self, height, width):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, h):
        return h[..., h.shape[-2] - self.height :, h.shape[-1] - self.width :]


def want(field, value, known):
    """Raise for a field's value that this peer does not have."""
    if value not in known:
        raise UserError(f"{field}={value}: --peer=torch has none; want {' or '.join(map(str, known))}")


def _check(c):
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


class Peer:
    """A config's VAE with our parameters (a tree of arrays), and its steps in eager and compiled form.

    Raises:
      UserError: the config asks for something that this peer does not have.
    """

    def __init__(self, c, dataset, params):
        _check(c)
        torch.set_num_threads(os.cpu_count())
        self.c, self.levels = c, dataset.levels
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
        label = np.zeros(len(self.image)) if dataset.train.label is None else dataset.train.label
        self.label = torch.from_numpy(np.asarray(label, np.int64)).to(self.device)
        self.shown = torch.nonzero(self.label >= 0).flatten()  # the examples whose label may be looked at

    def _pixels(self, image_BxHxWxC):
        return np.ascontiguousarray(self.net.pixels(image_BxHxWxC))

    def layout(self, tree):
        """The leaves of one of our trees in PyTorch's layout, in the order of the net's.

        Raises:
          UserError: the tree has a leaf that the net here lacks.
        """
        flat = {}

        def walk(prefix, node):
            for name, value in node.items():
                walk(f"{prefix}{name}/", value) if isinstance(value, dict) else flat.update({prefix + name: value})

        walk("", tree)
        known = [path for path, _, _ in self.net.leaves]
        if set(flat) != set(known):
            raise UserError(f"--peer=torch: has no parameter {', '.join(sorted(set(flat) ^ set(known)))}")
        return [np.ascontiguousarray(layout(flat[path])) for path, layout, _ in self.net.leaves]

    def loss_and_gradients(self, x_BxHxWxC, label_B, eps_KxBxD, labelled=None):
        """The loss and every gradient, for a given batch in [0, 1] and given noise; in float32.

        ``labelled``: the same of a batch of labelled examples, where the config has them.
        """
        precision, dtype = torch.get_float32_matmul_precision(), self.c.dtype
        torch.set_float32_matmul_precision("highest")

        def moved(x, label, eps):
            x, label, eps = (torch.from_numpy(np.array(a)).to(self.device) for a in (self._pixels(x), label, eps))
            return x, label.long(), eps

        batch = moved(x_BxHxWxC, label_B, eps_KxBxD)
        other = moved(*labelled) if labelled is not None else None
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

    def lanes(self):
        """{'torch_eager': make, 'torch_compile': make}; make() compiles and returns (call, wait)."""
        return {"torch_eager": lambda: self._lane(False), "torch_compile": lambda: self._lane(True)}

    def _lane(self, compiled):
        c, o = self.c, self.c.optim
        net = self.net
        weights = [p for p in net.parameters() if p.ndim > 1]
        others = [p for p in net.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
        rule = torch.optim.AdamW if o.name == "adamw" else torch.optim.Adam
        optimiser = rule(groups, lr=o.lr, betas=(o.b1, o.b2), eps=o.eps, fused=True)
        params = [*weights, *others]
        averages = [p.detach().clone() for p in params] if o.ema else []
        samples = c.objective.get("samples", 1)

        def batch(index):
            x = self.image[index].float() / (self.levels - 1)
            if c.data.binarize == "dynamic":
                x = (torch.rand_like(x) < x).float()
            elif c.data.binarize == "threshold":
                x = (x > 0.5).float()
            eps = torch.randn(samples, len(index), net.latent, device=self.device)
            return x, self.label[index], eps

        def loss_of(index, other):
            return net(*batch(index), None if other is None else batch(other))

        def some(n, size):
            return torch.randint(n, (size,), device=self.device)

        if compiled:
            loss_of = torch.compile(loss_of, mode="reduce-overhead" if self.device == "cuda" else None)

        def call():
            index, labelled = some(len(self.image), c.batch), c.data.labelled_batch
            optimiser.zero_grad(set_to_none=True)
            loss_of(index, self.shown[some(len(self.shown), labelled)] if labelled else None).backward()
            if o.clip:
                torch.nn.utils.clip_grad_norm_(params, o.clip)
            optimiser.step()
            if averages:
                with torch.no_grad():
                    torch._foreach_lerp_(averages, params, 1 - o.ema)

        call()
        return call, torch.cuda.synchronize if self.device == "cuda" else lambda: None
