"""The VDVAE of a config as a user of PyTorch writes it; its dense layers are 1x1 convolutions."""

import math

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import torch_step as peer
from vae_jax.config import UserError

LOGVAR = (-12.0, 6.0)  # the smooth bounds of nets/topdown.py


def check(c: ConfigDict, shape: tuple[int, ...]) -> None:
    """Raise for what this peer does not have."""
    peer.want("encoder.name", c.encoder.name, ("residual",))
    peer.want("decoder.scan", c.decoder.scan, (False,))
    peer.want("remat", c.remat, ("none",))
    peer.want("likelihood.name", c.likelihood.name, ("discretized_mix_logistic",))
    peer.want("objective.name", c.objective.name, ("elbo",))
    peer.want("objective.samples", c.objective.samples, (1,))
    peer.want("classifier.name", c.classifier.name, ("none",))
    cell = c.decoder.patch * 2 ** (len(c.decoder.widths) - 1)
    if any(side % cell for side in shape[:2]):
        raise UserError(
            f"decoder.patch={c.decoder.patch}: --peer=torch wants sides that are multiples of "
            f"{cell}"
        )


def _as_conv(w_IxO: np.ndarray) -> np.ndarray:
    return w_IxO.T[:, :, None, None]


def _conv(w_hxwxIxO: np.ndarray) -> np.ndarray:
    return w_hxwxIxO.transpose(3, 2, 0, 1)


def _from_patch(p: int) -> peer.Layout:
    """Rows (p, p, C) of a kernel as pixel_unshuffle has them, (C, p, p)."""

    def layout(w_hxwxIxO: np.ndarray) -> np.ndarray:
        rows = w_hxwxIxO.reshape(*w_hxwxIxO.shape[:2], p, p, -1, w_hxwxIxO.shape[-1])
        return _conv(rows.transpose(0, 1, 4, 2, 3, 5).reshape(w_hxwxIxO.shape))

    return layout


def _to_patch(p: int) -> peer.Layout:
    """Columns (p, p, C) of a kernel, or of a bias, as pixel_shuffle wants them, (C, p, p)."""

    def layout(w: np.ndarray) -> np.ndarray:
        columns = w.reshape(-1, p, p, w.shape[-1] // p**2).transpose(0, 3, 1, 2).reshape(w.shape)
        return _conv(columns) if w.ndim == 4 else columns

    return layout


class Bottleneck(nn.Module):
    """nets.residual.Bottleneck on a grid whose shorter side is ``side``."""

    def __init__(self, net: "Net", path: str, inputs: int, inner: int, outputs: int, side: int):
        super().__init__()
        self.act = peer.ACTIVATIONS[net.c.decoder.activation]
        layers = [net.layer(f"{path}/Dense_0", inputs, inner)]
        if side > 2:
            layers.append(net.layer(f"{path}/Conv_0", inner, inner, 3))
        self.layers = nn.ModuleList([*layers, net.layer(f"{path}/Dense_1", inner, outputs)])

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            h = layer(self.act(h))
        return h


class Level(nn.Module):
    """nets.topdown.Level: (h, features, eps) → (h with z, KL(q ‖ p) of each example)."""

    def __init__(self, net, path, width, features, n, inner, side):
        super().__init__()
        self.n = n
        self.prior = Bottleneck(net, f"{path}/prior", width, inner, 2 * n + width, side)
        self.posterior = Bottleneck(net, f"{path}/posterior", width + features, inner, 2 * n, side)
        self.merge = net.layer(f"{path}/merge", n, width)
        self.mix = Bottleneck(net, f"{path}/mix", width, inner, width, side)

    def forward(
        self, h: torch.Tensor, features: torch.Tensor, eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n = self.n
        stats = self.prior(h)
        mu_p, logvar_p = stats[:, :n].float(), peer.soft_clip(stats[:, n : 2 * n].float(), *LOGVAR)
        mu_q, logvar_q = self.posterior(torch.cat([h, features], 1)).float().chunk(2, 1)
        logvar_q = peer.soft_clip(logvar_q, *LOGVAR)
        z = mu_q + torch.exp(0.5 * logvar_q) * eps
        log_r = logvar_q - logvar_p
        kl = 0.5 * (((mu_q - mu_p) * torch.exp(-0.5 * logvar_p)) ** 2 + torch.expm1(log_r) - log_r)
        h = h + stats[:, 2 * n :] + self.merge(z.to(h.dtype))
        return h + self.mix(h), kl.flatten(1).sum(1)


class Net(nn.Module):
    """All parts of the VAE.

    ``leaves``: [(path in our parameters, layout, parameter)]; ``latent``: the size of z.
    """

    def __init__(self, c: ConfigDict, shape: tuple[int, ...], levels: int):
        super().__init__()
        check(c, shape)
        self.c = c
        self.levels = levels
        self.leaves = []
        e, d, (height, width, channels) = c.encoder, c.decoder, shape
        p, m = d.patch, c.likelihood.components
        sides = [(height // p // 2**i, width // p // 2**i) for i in range(len(e.widths))]
        self.first = self.layer("encoder/Conv_0", p * p * channels, e.widths[0], 3, _from_patch(p))
        self.bottom_up, now = nn.ModuleList(), e.widths[0]
        for i, (wide, depth) in enumerate(zip(e.widths, e.depths, strict=True)):
            resized = self.layer(f"encoder/width_{i}", now, wide) if now != wide else nn.Identity()
            inner, side = max(1, wide // e.bottleneck), min(sides[i])
            blocks = [
                Bottleneck(self, f"encoder/block_{i}_{j}/inner", wide, inner, wide, side)
                for j in range(depth)
            ]
            self.bottom_up.append(nn.ModuleList([resized, *blocks]))
            now = wide
        sides.reverse()
        self.start = nn.Parameter(torch.zeros(1, d.widths[0], *sides[0]))
        self.leaves.append(("decoder/start", lambda w: w.transpose(2, 0, 1)[None], self.start))
        self.top_down, self.shapes, now = nn.ModuleList(), [], d.widths[0]
        for i, (wide, depth) in enumerate(zip(d.widths, d.depths, strict=True)):
            resized = self.layer(f"decoder/width_{i}", now, wide) if now != wide else nn.Identity()
            inner, side = max(1, wide // d.bottleneck), min(sides[i])
            given = (wide, e.widths[-1 - i], d.channels, inner, side)
            levels_here = [Level(self, f"decoder/level_{i}_{j}", *given) for j in range(depth)]
            self.top_down.append(nn.ModuleList([resized, *levels_here]))
            self.shapes += [(*sides[i], d.channels)] * depth
            now = wide
        self.out = self.layer(
            "decoder/out", now, p * p * m * (1 + 2 * channels + channels * (channels - 1) // 2), 3
        )
        self.leaves[-2:] = [
            (path, _to_patch(p), parameter) for path, _, parameter in self.leaves[-2:]
        ]
        self.latent = sum(map(math.prod, self.shapes))

    def layer(
        self,
        path: str,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        layout: peer.Layout | None = None,
    ) -> nn.Conv2d:
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.leaves.append(
            (f"{path}/kernel", layout or (_as_conv if kernel == 1 else _conv), layer.weight)
        )
        self.leaves.append((f"{path}/bias", lambda b: b, layer.bias))
        return layer

    def pixels(self, image_BxHxWxC: np.ndarray) -> np.ndarray:
        return image_BxHxWxC.transpose(0, 3, 1, 2)

    def forward(
        self, x: torch.Tensor, label: torch.Tensor, eps_1xBxD: torch.Tensor, labelled: None = None
    ) -> torch.Tensor:
        """The loss of a batch x_BxCxHxW in [0, 1]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.c.dtype == "bfloat16"):
            h, maps = self.first(F.pixel_unshuffle(2 * x - 1, self.c.encoder.patch)), []
            for i, (resized, *blocks) in enumerate(self.bottom_up):
                h = resized(F.avg_pool2d(h, 2) if i else h)
                for block in blocks:
                    h = h + block(h)
                maps.append(h)
            sizes = [math.prod(shape) for shape in self.shapes]
            noise = iter(zip(eps_1xBxD[0].split(sizes, 1), self.shapes, strict=True))
            h, kl = self.start.expand(len(x), -1, -1, -1), 0.0
            for i, (resized, *levels) in enumerate(self.top_down):
                h = F.interpolate(resized(h), scale_factor=2.0) if i else h
                for level in levels:
                    eps, shape = next(noise)
                    h, more = level(h, maps[-1 - i], eps.reshape(-1, *shape).permute(0, 3, 1, 2))
                    kl = kl + more
            act = peer.ACTIVATIONS[self.c.decoder.activation]
            out = F.pixel_shuffle(self.out(act(h)), self.c.decoder.patch)
        return (self.c.objective.beta * kl - log_mix_logistic(out.float(), x, self.levels)).mean()


def log_mix_logistic(out: torch.Tensor, x: torch.Tensor, levels: int) -> torch.Tensor:
    """densities.discretized_mix_logistic of out_BxOxHxW; shape B."""
    c = x.shape[1]
    logits, *rest = out.chunk(1 + 2 * c + c * (c - 1) // 2, 1)
    gammas = iter(rest[2 * c :])
    v = 2 * x - 1
    log_p = F.log_softmax(logits, 1)
    for i in range(c):
        mu = rest[i]
        for j in range(i):
            mu = mu + torch.tanh(next(gammas)) * v[:, j : j + 1]
        log_p = log_p + peer.log_logistic(levels, x[:, i : i + 1], mu, rest[c + i])
    return torch.logsumexp(log_p, 1).flatten(1).sum(1)
