"""What a config may hold, and one clear line for each wrong name, type or value.

A config is a ``ConfigDict`` from :func:`default`, changed by a file in ``configs/`` and by flags
such as ``--config.optim.lr=3e-4``. Some sections are *calls*: they have a ``name``, and the rest
are the keyword arguments of the function or module of that name. So a new objective or net brings
its own fields, and ``--config.objective.name=NAME`` changes name and fields together. A name may be
``file:function``, the user's own; an optimiser's name is optax's.
"""

from ml_collections import ConfigDict

from vae_jax.config.checks import LIMITS, program_name, shorten_warmups, validate
from vae_jax.config.errors import UserError, nearest
from vae_jax.config.fields import default, flatten, set_field
from vae_jax.config.files import changed, differences, from_json, load, to_json
from vae_jax.config.places import absolute, absolute_name, check_places, move, without_places
from vae_jax.config.plugins import import_file, own
from vae_jax.config.replicas import override, replica, replica_count, replicate
from vae_jax.config.sections import CALLS, arguments, build, call, plain, rename, resolve, sources

__all__ = [
    "CALLS",
    "LIMITS",
    "ConfigDict",
    "UserError",
    "absolute",
    "absolute_name",
    "arguments",
    "build",
    "call",
    "changed",
    "check_places",
    "default",
    "differences",
    "flatten",
    "from_json",
    "import_file",
    "load",
    "move",
    "nearest",
    "override",
    "own",
    "plain",
    "program_name",
    "rename",
    "replica",
    "replica_count",
    "replicate",
    "resolve",
    "set_field",
    "shorten_warmups",
    "sources",
    "to_json",
    "validate",
    "without_places",
]
