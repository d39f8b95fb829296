"""Print how a config's parameters lie on a mesh.

    python -m vae_jax.tools.partition --config=configs/mnist.py --devices=8 \\
        --config.mesh.data=2 --config.mesh.fsdp=4

prints each parameter's spec, shape and bytes on a device, and a picture of the largest. No device
is needed, and of the data set only its description.
"""

import absl.flags
import jax

from vae_jax import cli as flags
from vae_jax import config, data, models
from vae_jax.mesh.rules import describe, make_mesh, shardings
from vae_jax.train import optim


def define(values: absl.flags.FlagValues) -> None:
    """Declare the flags of this script."""

    def text(name: str, default: str, words: str) -> None:
        absl.flags.DEFINE_string(name, default, words, flag_values=values)

    text("config", "configs/digits.py", "a file of configs/")
    text("data_dir", "", "where TFDS data is (same as --config.data.dir)")
    absl.flags.DEFINE_integer("devices", 8, "of the mesh", lower_bound=1, flag_values=values)


def main(argv: list[str]) -> int:
    """Print the partition of the config that the flags name; returns the exit code."""
    values, pairs = flags.parse(argv, define)
    c = flags.apply(config.load(values.config), pairs)
    config.validate(c)
    c.data.dir = values.data_dir or c.data.dir
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", values.devices)
    mesh = make_mesh(c.mesh)
    m = models.build_for(c, data.described(c.data))

    def state(key: jax.Array) -> dict[str, object]:
        params = m.init(key)
        opt = optim.optimizer(c.optim, c.steps).init(params)
        average = params if c.optim.ema else ()
        return {"params": params, "opt": opt, "ema": average}

    tree = jax.eval_shape(state, jax.random.key(0))
    print("mesh:", " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()))
    print(describe(tree, shardings(tree, mesh)))
    return 0


if __name__ == "__main__":
    flags.main(main)
