"""The browser of the tests, which are skipped where there is none."""

import pytest

from benchmarks import browser


class Browser(browser.Browser):
    """:class:`benchmarks.browser.Browser`."""

    def __init__(self) -> None:
        if browser.executable() is None:
            pytest.skip("needs Chromium")
        super().__init__()
