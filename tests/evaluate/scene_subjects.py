"""Small models of scenes of digits, with parameters as they begin."""

import jax

from tests.objectives.scene_models import air_config
from vae_jax import config, data, models
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules
from vae_jax.train import program


def subject_of(c):
    dataset = data.load(c.data)
    model = models.build_for(c, dataset)
    params = program.simple(model.init)(jax.random.key(0))
    return Subject(c, model, params, dataset, rules.make_mesh(c.mesh))


def detector():
    c = config.default()
    c.data.name = "scenes:digits+boxes+train=8+validation=4+test=20"
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "none")
    c.model = config.call("model", "detector", grid=3, widths=())
    c.objective = config.call("objective", "detection")
    return c


def air():
    c = air_config(model__scale=0.45, model__spread=0.1, model__window=8)
    c.data.name = "scenes:digits+train=8+validation=4+test=20"
    return c


def grid():
    c = air()
    c.encoder = config.call("encoder", "conv", widths=(4,), strides=(5,), dense=1)
    c.model = config.call("model", "grid", window=8, units=4, scale=0.45)
    return c
