"""Examples in docstrings that run a kernel need the native core."""

from __future__ import annotations

import pytest

from groupwise import native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip them where it is missing."""
    problem = native.status().problem
    if problem is None:
        return
    for item in items:
        if item.name in ("groupwise.routing.enabled", "groupwise.planning.plan"):
            item.add_marker(pytest.mark.skip(reason=problem))
