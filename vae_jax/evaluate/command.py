"""What the commands that measure one run share: two flags, the run that they name, its file."""

import json
import os
from typing import Any

from absl import flags

from vae_jax.config import UserError
from vae_jax.evaluate.subject import Subject, restored
from vae_jax.train import checkpoint, log


def define(values: flags.FlagValues) -> None:
    """Declare ``--workdir`` and ``--data_dir``."""
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def subject_of(values: flags.FlagValues, name: str) -> Subject:
    """The best checkpoint of the run that the flags name; WORKDIR/``name`` will be written.

    Raises:
      UserError: they name none, there is none, or the file could not be written.
    """
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    subject = restored(values.workdir, values.data_dir)
    log.check_writable(os.path.join(values.workdir, name))
    return subject


def write(values: flags.FlagValues, name: str, content: Any) -> None:
    """Write WORKDIR/``name`` as JSON, and print it."""
    checkpoint.write_json(os.path.join(values.workdir, name), content)
    print(json.dumps(content, indent=1))
