"""Fixtures of the cache's tests."""

import shutil
from pathlib import Path

import pytest

from tests.probes.cache_builder import build_small


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of ten prompts in shards of four. Do not change it."""
    directory = tmp_path_factory.mktemp("cache") / "whole"
    build_small(directory)
    return directory


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A cache to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))
