"""A worker process for fault tests: `python job_worker.py URL [--forget-leases]`. SIGTERM drains it.

Its one kind of job, `write`, writes `steps` rows into the table `written`, one guarded transaction each, `pause` seconds apart.
The rows' order is the order of the transactions, so two owners of one serial key that work beside each other show as interleaved.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from strongroom.ambient import Machine
from strongroom.catalog.database import Catalog, open_catalog
from strongroom.jobs.embedded import forget_leases
from strongroom.jobs.leases import LeasedJobs
from strongroom.jobs.port import Running
from strongroom.jobs.worker import Worker

written = sa.Table(
    "written",
    sa.MetaData(),
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("serial", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

TTL, BEAT, POLL = 2.0, 0.3, 0.3


class Write:
    """The handler."""

    def __init__(self, catalog: Catalog, owner: str = "") -> None:
        self._catalog, self.owner = catalog, owner

    def run(self, job: Running) -> Mapping[str, Any]:
        for step in range(int(job.args["steps"])):
            with self._catalog.write(job.guard) as conn:
                conn.execute(
                    written.insert().values(
                        job=job.id, serial=job.args["serial"], epoch=job.epoch, owner=self.owner, at=time.time()
                    )
                )
            job.progress("writing", step + 1, job.args["steps"])
            time.sleep(float(job.args["pause"]))
        return {"epoch": job.epoch}

    def give_up(self, job: Running, outcome: str, reason: str) -> None:
        del job, outcome, reason


def main(url: str, *flags: str) -> None:
    """Works until SIGTERM."""
    catalog = open_catalog(url)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if "--forget-leases" in flags:
        with catalog.write() as conn:
            forget_leases(conn)
    handler = Write(catalog)
    worker = Worker(LeasedJobs(catalog, Machine()), {"write": handler}, ["default"], ttl=TTL, beat=BEAT, poll=POLL, threads=4)
    handler.owner = worker.owner
    worker.start()
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    worker.shutdown(5)
    catalog.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
