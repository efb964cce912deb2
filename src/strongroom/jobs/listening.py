"""Hearing of new work from other processes by PostgreSQL's NOTIFY. A hint only: what is missed is found by the next poll."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
from sqlalchemy.engine import Engine

from strongroom.jobs.leases import CHANNEL


def listen(engine: Engine, wake: Callable[[], None], stopping: threading.Event, retry: float = 1.0) -> None:
    """Calls `wake` at each notification until `stopping` is set; connects again after an outage."""
    args, options = engine.dialect.create_connect_args(engine.url)
    while not stopping.is_set():
        try:
            with psycopg.connect(*args, **options, autocommit=True) as conn:
                conn.execute(f"LISTEN {CHANNEL}")
                wake()
                while not stopping.is_set():
                    for _ in conn.notifies(timeout=0.5, stop_after=1):
                        wake()
        except psycopg.Error:
            stopping.wait(retry)
