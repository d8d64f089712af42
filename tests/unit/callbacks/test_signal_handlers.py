"""Handlers of signals that a training has ended with."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from rca_lightning import SaveOnSignal

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals are those of POSIX")


def test_handlers_of_runs_that_have_ended_are_forgotten():
    original = signal.getsignal(signal.SIGUSR1)
    ended = [SaveOnSignal(), SaveOnSignal()]
    for one in ended:
        one._watch((signal.SIGUSR1,))
        one._watching = False  # over; then Lightning puts the handler back
    assert signal.getsignal(signal.SIGUSR1) == ended[1]._note
    try:
        SaveOnSignal().setup(SimpleNamespace(callbacks=[]), None, "validate")
        assert signal.getsignal(signal.SIGUSR1) == original
    finally:
        signal.signal(signal.SIGUSR1, original)


def test_handler_of_a_run_that_goes_on_stays():
    original = signal.getsignal(signal.SIGUSR1)
    running = SaveOnSignal()
    running._watch((signal.SIGUSR1,))
    try:
        SaveOnSignal().setup(SimpleNamespace(callbacks=[]), None, "validate")
        assert signal.getsignal(signal.SIGUSR1) == running._note
    finally:
        signal.signal(signal.SIGUSR1, original)
