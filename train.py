"""Train a VAE, then evaluate it and write its report.

    python train.py --config=configs/digits.py --workdir=runs/digits [--config.optim.lr=3e-4 ...]

The same command goes on with a run that was stopped.
"""

import re

from absl import flags

from vae_jax import cli as flags_lib
from vae_jax.mesh import hosts
from vae_jax.train.alive import alive


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    flags_lib.define_files(values)
    flags.DEFINE_string("config", "configs/digits.py", "a file of configs/", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "folder of the run; one that holds it goes on", flag_values=values
    )
    flags.DEFINE_bool(
        "explain", False, "print what the objective is, and train nothing", flag_values=values
    )
    flags.DEFINE_string(
        "results", "", "also write the figures to this file, results/NAME.json", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "where TFDS data is (same as --config.data.dir)", flag_values=values
    )
    flags.DEFINE_list(
        "log", None, "where metrics go too: tensorboard, wandb, mlflow", flag_values=values
    )
    flags.DEFINE_string(
        "profile",
        "",
        "steps A-B to trace into WORKDIR/profile; SIGUSR1 traces as well",
        flag_values=values,
    )
    hosts.define(values)


def run(argv: list[str]) -> int:
    """Train and evaluate; the exit code."""
    values, pairs = flags_lib.parse(argv, define)
    with alive("importing", print):
        from vae_jax import config
        from vae_jax.train import log, loop, writers
        from vae_jax.train import program as compile

    if not values.workdir and not values.explain:
        raise config.UserError("workdir: want --workdir=FOLDER")
    c = flags_lib.apply(config.load(values.config), pairs)
    if values.explain:
        from vae_jax.tools import explain

        print(explain.card(c))
        return 0
    c.data.dir = values.data_dir or c.data.dir
    config.move(c, values.data_path, values.code_path)
    span = re.fullmatch(r"(\d+)-(\d+)", values.profile)
    if values.profile and not (span and int(span[1]) <= int(span[2])):
        raise config.UserError(
            f"profile={values.profile}: want the first and the last step, as 100-120"
        )
    if values.results:
        from vae_jax.tools import results

        results.check(values.results)
    if values.log is not None:
        writers.use(values.log)
    flags_lib.advise()
    hosts.join(values)
    compile.use_cache()
    steps = span and (int(span[1]), int(span[2]))
    with log.output_may_close():
        accepted = {"accept_changed": values.accept_changed_data}
        if not loop.train(c, values.workdir, profile=steps, **accepted):
            return loop.STOPPED
        from vae_jax.tools import assess

        if config.replica_count(c):
            from vae_jax.tools import compare

            assess.sweep(c, values.workdir, publish=values.results)
            print(f"on one page: {compare.write([values.workdir])}")
        else:
            assess.assess(values.workdir, assess.Request(publish=values.results))
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
