"""Fixtures of fine-tuning's tests."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def _quick_collections() -> Iterator[None]:
    """Each training collects garbage; what was imported is none, and would be looked at anew."""
    gc.freeze()
    yield
    gc.unfreeze()
