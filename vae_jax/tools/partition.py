"""Print how a config's parameters lie on a mesh.

    python -m vae_jax.tools.partition --config=configs/mnist.py --devices=8 --config.mesh.data=2 --config.mesh.fsdp=4

prints each parameter's spec, shape and bytes on a device, and a picture of the largest. No device and no data but
the data set's own description are needed.
"""

import absl.flags
import jax

from vae_jax import cli as flags
from vae_jax import config, data
from vae_jax.mesh.rules import describe, make_mesh, shardings
from vae_jax.models import model
from vae_jax.train import optim


def main(argv):
    def define(values):
        absl.flags.DEFINE_string("config", "configs/digits.py", "a page of configs/", flag_values=values)
        absl.flags.DEFINE_string("data_dir", "", "where TFDS data is (same as --config.data.dir)", flag_values=values)
        absl.flags.DEFINE_integer("devices", 8, "of the mesh", lower_bound=1, flag_values=values)

    values, pairs = flags.parse(argv, define)
    c = flags.apply(config.load(values.config), pairs)
    config.validate(c)
    c.data.dir = values.data_dir or c.data.dir
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", values.devices)
    mesh, m = make_mesh(c.mesh), model.build_for(c, data.described(c.data))

    def state(key):
        params = m.init(key)
        average = params if c.optim.ema else ()
        return {"params": params, "opt": optim.optimizer(c.optim, c.steps).init(params), "ema": average}

    tree = jax.eval_shape(state, jax.random.key(0))
    print("mesh:", " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()))
    print(describe(tree, shardings(tree, mesh)))
    return 0


if __name__ == "__main__":
    flags.main(main)
