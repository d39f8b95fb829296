"""Evaluate a run on the exact test set: metrics.json, pictures and the report.

python eval.py --workdir=runs/digits [--iw_k=1000] [--checkpoint=best]
python eval.py --workdir=runs/digits --tasks=classification,recognition,ood,robustness --ood=mnist
python eval.py --workdir=runs/digits --tasks=quality --features=runs/digits_cnn
python eval.py --workdir=runs/digits --metrics=my_metrics.py:mean_pixel
python eval.py --workdir=runs/digits --iw_k=5000 --config.mesh.model=4   (samples over devices)
"""

from absl import flags

from vae_jax import cli as flags_lib
from vae_jax.mesh import hosts


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    flags_lib.define_files(values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step", flag_values=values)
    flags.DEFINE_integer(
        "iw_k", None, "importance samples per image", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "batch",
        None,
        "images at once; fewer take less memory, and the figures stay the same",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list(
        "tasks",
        [],
        "more: classification, recognition, ood, robustness, quality, codes, clusters, factors, "
        "scenes",
        flag_values=values,
    )
    flags.DEFINE_list(
        "metrics", [], "your own, each file:function (see evaluate.subject)", flag_values=values
    )
    flags.DEFINE_list(
        "ood", [], "data sets that are not of training's kind, for tasks=ood", flag_values=values
    )
    flags.DEFINE_string(
        "features",
        "",
        "folder of a run that learnt labels, or file:function, for tasks=quality",
        flag_values=values,
    )
    flags.DEFINE_string(
        "results", "", "also write the figures to this file, results/NAME.json", flag_values=values
    )
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)
    flags.DEFINE_list(
        "log", None, "where metrics go too: tensorboard, wandb, mlflow", flag_values=values
    )
    hosts.define(values)


def run(argv: list[str]) -> int:
    """Evaluate; the exit code."""
    values, pairs = flags_lib.parse(argv, define)
    from vae_jax import config
    from vae_jax.evaluate import tasks
    from vae_jax.tools import assess
    from vae_jax.train import log, writers
    from vae_jax.train import program as compile
    from vae_jax.train.run import Files

    for field, _ in pairs:
        if not field.startswith("mesh."):
            raise config.UserError(
                f"{field}: the run's config is fixed; eval.py takes no --config.* but config.mesh.*"
            )
    if not values.workdir:
        raise config.UserError("workdir: want --workdir=FOLDER")
    which = values.checkpoint
    if which not in ("best", "latest"):
        if not which.isdecimal():
            raise config.UserError(f"checkpoint={which}: want best, latest or a step")
        which = int(which)
    for task in values.tasks:
        if task not in tasks.TASKS:
            raise config.UserError(f"tasks={task}: unknown; {config.nearest(task, tasks.TASKS)}")
    if bool(values.ood) != ("ood" in values.tasks):
        raise config.UserError(
            "tasks=ood: wants another data set, and --ood=NAME wants --tasks=ood"
        )
    if bool(values.features) != ("quality" in values.tasks):
        raise config.UserError(
            "tasks=quality: wants --features=FOLDER or FILE:FUNCTION, and --features wants "
            "--tasks=quality"
        )
    if values.log is not None:
        writers.use(values.log)
    machine = list(pairs)
    if values.batch:
        machine.append(("eval.batch", str(values.batch)))
    hosts.join(values)
    compile.use_cache()
    request = assess.Request(
        which=which,
        iw_k=values.iw_k,
        tasks=values.tasks,
        metrics=values.metrics,
        ood=values.ood,
        features=values.features,
        files=Files.from_flags(values),
        mesh=machine,
        publish=values.results,
    )
    with log.output_may_close():
        assess.assess(values.workdir, request)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
