"""Fixtures of the tests of callbacks."""

from __future__ import annotations

import pytest

from rca_lightning.callbacks import panels


@pytest.fixture
def drawn(monkeypatch) -> list:
    """What is handed to `draw_panel`."""
    calls: list = []
    real = panels.draw_panel

    def record(rows, titles, **options):
        calls.append(([list(row) for row in rows], list(titles)))
        return real(rows, titles, **options)

    monkeypatch.setattr(panels, "draw_panel", record)
    return calls
