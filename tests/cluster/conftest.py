"""Clusters of live nodes may take longer than a unit test."""

from __future__ import annotations

from pathlib import Path

import pytest

_SECONDS = 60
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test of this folder that names no limit of its own a longer one."""
    for item in items:
        if _HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_SECONDS))
