"""SIGTERM and Ctrl-C: they end the process with all that must be done before."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, with all that must be done before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Signals that came while a run was being ended: none may stand half published.
_held: list[int] | None = None


def _stop(number: int, _: Any) -> None:
    if _held is not None:
        _held.append(number)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise SystemExit(128 + number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let what is begun be done before a signal stops the process."""
    global _held
    if _held is not None:
        yield
        return
    held: list[int] = []
    _held = held
    try:
        yield
    finally:
        _held = None
    if held:
        _stop(held[0], None)
