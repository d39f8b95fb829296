"""Every test of data has a cache of its own."""

import pathlib

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_JAX_CACHE", str(tmp_path / "cache"))
