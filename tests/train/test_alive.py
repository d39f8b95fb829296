"""A long call that says nothing: lines while it goes on, none before and none after."""

import time

import pytest

from vae_jax.train.alive import alive


def test_a_line_comes_at_every_interval_and_none_after():
    lines = []
    with alive("compiling", lines.append, seconds=0.05):
        time.sleep(0.5)
    said = len(lines)
    assert 1 <= said <= 10
    assert all(line.startswith("compiling: ") and line.endswith(" s so far") for line in lines)
    time.sleep(0.15)
    assert len(lines) == said


def test_a_short_call_says_nothing():
    lines = []
    with alive("compiling", lines.append):
        pass
    assert lines == []


def test_an_error_goes_through_and_ends_the_lines():
    lines = []
    with pytest.raises(ValueError, match="broken"), alive("x", lines.append, seconds=0.02):
        raise ValueError("broken")
    time.sleep(0.1)
    assert lines == []


def test_the_lines_keep_their_interval_where_another_thing_begins():
    lines = []
    with alive("evaluating", lines.append, seconds=0.4) as then:
        time.sleep(0.25)
        then("writing the report")
        time.sleep(0.25)
    assert lines == ["writing the report: 0 s so far"]
