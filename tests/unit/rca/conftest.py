"""Both ways the contrast reads a memory."""

from __future__ import annotations

import pytest

from rca_lightning.rca import contrast


@pytest.fixture(params=["at once", "by blocks"])
def each_reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU reads a small memory at once, a processor reads any by blocks; both are right here."""
    monkeypatch.setattr(contrast, "_reads_by_blocks", lambda queries, memory: request.param == "by blocks")
