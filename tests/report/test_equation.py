"""The loss at the top of the page: its equation and its weights."""

import inspect

from vae_jax import config
from vae_jax.objectives import OBJECTIVES
from vae_jax.report import equation


def test_every_objectives_equation_can_be_drawn():
    drawn = 0
    for function in OBJECTIVES.values():
        for latex in equation.equations(inspect.getdoc(function) or ""):
            assert "light" in equation._line(latex), latex
            drawn += 1
    assert drawn >= len(OBJECTIVES) - 1  # one refers to another's


def test_equations_of_a_docstring_are_joined_lines():
    text = r"""A loss.

    .. math:: a = b
              + c

    Words.

    .. math:: d = \tfrac12 e
    """
    assert equation.equations(inspect.cleandoc(text)) == ["a = b + c", r"d = \tfrac12 e"]


def test_the_weights_are_those_of_the_config():
    c = config.default()
    c.objective = config.call("objective", "joint", gamma=50.0)
    c.warmup.of = "beta"
    c.warmup.steps = 2000
    view = equation.view(config.to_json(c))
    assert "beta = 1.0, rising over 2,000 steps" in view["weights"]
    assert "gamma = 50.0" in view["weights"]
    assert view["lines"][0]["alt"].startswith(r"-\mathrm{loss} = E_q[\log p(x|z)]")
    assert view["lines"][0]["light"] != view["lines"][0]["dark"]


def test_what_cannot_be_drawn_is_text_and_what_is_lost_is_left_out():
    assert equation._line(r"a \begin{cases} b \end{cases}") == {
        "alt": r"a \begin{cases} b \end{cases}"
    }
    assert equation.view({"objective": {"name": "/nowhere/loss.py:mine"}}) is None
    assert equation.view({"steps": 3}) is None
