"""A model of scenes that is asked about more objects than it was trained on.

    python -m vae_jax.evaluate.more_objects --workdir=runs/air_mnist --counts=3,4

For each count, test canvases of the run's own law with exactly so many objects: the accuracy of the
count, and AP of the boxes as ``eval.py --tasks=scenes`` has it. Attend, infer, repeat looks once
more than the largest count (``--steps`` says otherwise): its nets are the same in each look. The
grid model has as many cells as in training. Writes more_objects.json into the run's folder.
"""

import dataclasses

from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import data, models
from vae_jax.config import UserError
from vae_jax.data import scenes as laws
from vae_jax.evaluate import command
from vae_jax.evaluate.average_precision import (
    average_precision,
    true_boxes,
    without_classes,
)
from vae_jax.evaluate.scenes import chosen, detect
from vae_jax.evaluate.subject import Subject


def with_objects(subject: Subject, count: int, images: int, steps: int) -> Subject:
    """The same nets and parameters on ``images`` test canvases with ``count`` objects each.

    Raises:
      UserError: the run's data are no scenes that are composed.
    """
    name = subject.config.data.name
    if not name.startswith(laws.PREFIX) or subject.model.detect is None:
        raise UserError(f"data.name={name}: want a run that finds objects in scenes:BASE")
    base, kind, fields = laws.parse(name)
    sizes = {"train": 1, "validation": 1, "test": images}
    own = fields | sizes | {"least": count, "most": count}
    words = [f"{key}={value}" for key, value in own.items()]
    c = subject.config.copy_and_resolve_references()
    c.data.name = "+".join([laws.PREFIX + base, kind, *words])
    if "steps" in c.model:
        c.model.steps = steps
    dataset = data.load(c.data)
    return dataclasses.replace(subject, config=c, model=models.build_for(c, dataset), data=dataset)


def measure(subject: Subject, count: int) -> dict[str, float]:
    """``count_accuracy``, ``ap50_any_class`` and ``ap_any_class`` of test canvases with ``count``
    objects each."""
    out = detect(subject)
    keep = out["keep"] > 0
    counted = (keep & (out["logit"] > 0)).sum(1)
    found = [chosen(out, i, mine) for i, mine in enumerate(keep)]
    truth = [true_boxes(objects) for objects in subject.data.test.objects]
    ap = average_precision(without_classes(found), without_classes(truth))
    return {
        "count_accuracy": float((counted == count).mean()),
        "ap50_any_class": float(ap[0]),
        "ap_any_class": float(ap.mean()),
    }


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    command.define(values)
    flags.DEFINE_list("counts", "3,4", "objects of a canvas", flag_values=values)
    flags.DEFINE_integer("images", 1000, "canvases a count", lower_bound=1, flag_values=values)
    looks = "looks of attend, infer, repeat; 0: one more than objects"
    flags.DEFINE_integer("steps", 0, looks, lower_bound=0, flag_values=values)


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    if not values.counts:
        raise UserError("counts=: want one or more, such as --counts=3,4")
    for word in values.counts:
        if not word.isdecimal() or int(word) < 1:
            raise UserError(f"counts={word}: want whole numbers >= 1, such as --counts=3,4")
    counts = sorted({int(word) for word in values.counts})
    subject = command.subject_of(values, "more_objects.json")
    steps = values.steps or counts[-1] + 1
    crowded = {count: with_objects(subject, count, values.images, steps) for count in counts}
    content = {str(count): measure(one, count) for count, one in crowded.items()}
    command.write(values, "more_objects.json", content)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
