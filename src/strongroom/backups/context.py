"""What the use cases work with: one catalog, one store, the jobs, the engines and the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import sqlalchemy as sa

from strongroom.ambient import Ambient
from strongroom.backups import credentials
from strongroom.backups.allowance import Allowance
from strongroom.catalog import tables as t
from strongroom.catalog.database import Catalog
from strongroom.engines.base import Engine, Target
from strongroom.identity.secrets import Sealer
from strongroom.jobs.leases import LeasedJobs
from strongroom.repository.errors import RepositoryError
from strongroom.repository.keys import LineageKeys, RootKey, open_lineage_keys
from strongroom.storage.base import Store


@dataclass(frozen=True)
class Options:
    """What an operator may choose. The defaults are meant to be kept."""

    reclaim_budget: float = 1.0  # bytes a delete may rewrite per byte that it owned; 0.1 for a store out of the region
    reclaim_floor: float = 0.05  # objects with a smaller dead share are left alone
    verify_after_delete: int = 64 << 20  # bytes that a delete reads back of what its backup shared, at most; 0 reads nothing
    compression: int = 1  # zstd level
    chunk_average: int | None = None  # bytes, for lineages that begin; None: by size and kind
    pack_target: int | None = None  # sealed bytes; None: by size
    source_rate: int | None = None  # bytes a second that a capture takes where the instance's limits say nothing; None: no limit
    notify_command: tuple[str, ...] = ()  # the program, with its arguments, that is told of every project's events; empty: none
    notify_networks: tuple[IPv4Network | IPv6Network, ...] = ()  # that webhooks may be in, beside public addresses
    notify_hours: float | None = None  # without a good backup, where nobody has set them; None: it is not told


class LineageClosed(RepositoryError):
    """A lineage's last backup has gone meanwhile: nothing in it can be opened, nor need be."""


@dataclass(frozen=True)
class Context:
    """Handed to every use case."""

    catalog: Catalog
    store: Store
    jobs: LeasedJobs
    engines: Mapping[str, Engine]
    root_key: RootKey
    sealer: Sealer
    ambient: Ambient
    scratch: Path  # a private folder for spills
    options: Options = field(default_factory=Options)
    allowance: Allowance = field(default_factory=Allowance)  # what this process's captures together took from their sources
    imports: Path | None = None  # where operators put files that are to be imported; None: nowhere
    checked: dict[str, int] = field(default_factory=dict)  # lineages compared with the store, by the catalog's `moves` then

    def keys(self, lineage: str) -> LineageKeys:
        """The lineage's keys. Raises WrongKey if the root key does not open them, LineageClosed where there are none any more."""
        with self.catalog.read() as conn:
            sealed = conn.execute(sa.select(t.lineage.c.sealed_keys).where(t.lineage.c.id == lineage)).scalar_one()
        if sealed is None:
            raise LineageClosed(f"the last backup of lineage {lineage} was deleted, and its keys with it")
        return open_lineage_keys(self.root_key, lineage, sealed)

    def target(self, instance: sa.Row[tuple[object, ...]]) -> Target:
        """Where an instance is and how to enter it."""
        plain = None if instance.secret is None else self.sealer.open(instance.secret, "instance", instance.id)
        return Target(instance.address, *credentials.unpacked(plain))
