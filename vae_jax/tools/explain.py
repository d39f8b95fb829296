"""``train.py --explain``: the card of a config's objective, from its docstring and the config's numbers."""

import inspect

from vae_jax import config as config_lib
from vae_jax.train import optim, step


def _latents(c):
    if hasattr(config_lib.resolve("decoder", c.decoder.name), "groups"):
        return f"q(z|x) and p(z) Gaussian level by level, {c.decoder.name}"
    return f"q(z|x) {c.posterior.name}    p(z) {c.prior.name}    D = {c.latent}"


def card(c):
    """The equation, what is summed and averaged over what, units, weights and schedules, and the source."""
    config_lib.validate(c)
    function = config_lib.resolve("objective", c.objective.name)
    lines = [f"objective.name = {c.objective.name}", "", inspect.getdoc(function) or "(no docstring)", ""]
    lines += [
        "summed over   pixels and channels; latent dimensions and levels",
        f"averaged over samples of z within the equation; the {c.batch} examples of the batch, once, at the end",
        "units         nats per example; the elbo beside the loss has beta = 1 and no other weight",
        f"p(x|z)        {c.likelihood.name}    {_latents(c)}",
        "",
        f"{'weight':<24}{'step 0':>12}{'step ' + str(c.steps):>16}",
    ]
    for name, value in c.objective.items():
        if name == "name":
            continue
        if isinstance(value, bool | str):
            lines.append(f"{name:<24}{value!s:>12}{value!s:>16}")
        else:
            start, end = (value * step.weight_at(c.warmup, t) if name == c.warmup.of else value for t in (0, c.steps))
            lines.append(f"{name:<24}{float(start):>12.4g}{float(end):>16.4g}")
    lr = optim.learning_rate(c.optim, c.steps)
    lines.append(f"{'learning rate':<24}{float(lr(0)):>12.4g}{float(lr(c.steps)):>16.4g}")
    return "\n".join(lines)
