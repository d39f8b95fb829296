"""What is measured at the door: silences of a known length, the data of a page."""

import os

import pytest

from benchmarks import door
from vae_jax.config import UserError

SCRIPT = "import time; time.sleep(0.1); print('a', flush=True); time.sleep({}); print('b')"


def test_the_longest_silence_is_the_longest_pause():
    longest = door.longest_silence(["-c", SCRIPT.format(1.5)], dict(os.environ))
    assert 1.5 <= longest < 10


def test_a_command_that_fails_is_one_line():
    failing = "print('first'); raise SystemExit('out of paper')"
    with pytest.raises(UserError, match=r"^out of paper$"):
        door.longest_silence(["-c", failing], dict(os.environ))


def test_the_data_of_a_page_is_read_back(tmp_path):
    page = tmp_path / "index.html"
    page.write_text('<script type="application/json" id="explorer-data">{"count": 3}</script>')
    assert door.page_data(str(page)) == {"count": 3}
    page.write_text("<p>nothing</p>")
    assert door.page_data(str(page)) == {}
