"""Notices between processes, here between connections of one."""

from __future__ import annotations

import time

import pytest
from torch.distributed import TCPStore

from rca_lightning.callbacks.fail_together import FailTogether, Noticeboard
from rca_lightning.errors import ArgumentError


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> list[TCPStore]:
    found = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(found.port))
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return [found]


def test_first_notice_stays(store: list[TCPStore]):
    first, second = Noticeboard("fit"), Noticeboard("fit")
    assert second.read() is None
    first.post("full disk")
    second.post("lost the other")
    assert first.read() == second.read() == "full disk"
    assert Noticeboard("predict").read() is None


def test_processes_that_were_started_anew_see_no_old_notice(store: list[TCPStore], monkeypatch: pytest.MonkeyPatch):
    Noticeboard("fit").post("full disk")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert Noticeboard("fit").read() is None


def test_waits_for_readers_but_not_for_ever(store: list[TCPStore]):
    board = Noticeboard("fit")
    start = time.monotonic()
    board.wait_for_readers(1, seconds=0.2)
    assert time.monotonic() - start >= 0.2
    for reader in (board, board, Noticeboard("fit")):
        reader.confirm()
    start = time.monotonic()
    board.wait_for_readers(2, seconds=30)
    assert time.monotonic() - start < 5
    board.wait_for_readers(3, seconds=0.2)
    assert time.monotonic() - start >= 0.2


def test_store_that_has_gone_is_one_kind_of_error(store: list[TCPStore]):
    board = Noticeboard("fit")
    store.clear()
    with pytest.raises(ConnectionError):
        board.wait_for_readers(1, seconds=30)  # it may answer until its thread has ended


def test_no_store_is_the_same_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConnectionError, match="MASTER_ADDR"):
        Noticeboard("fit")


def test_patience_is_not_negative():
    with pytest.raises(ArgumentError, match=r"patience=-1"):
        FailTogether(-1)
