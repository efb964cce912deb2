"""The engine port: how a database is probed, captured and restored. An engine knows nothing of packs.

    EngineError                     what a caller may catch; the text says what to do next
    ├── EngineUnreachable           refused, timed out, cut (may pass)
    ├── EngineDenied                wrong credentials or missing rights (permanent until someone acts)
    ├── EngineUnsupported           version, topology or data that this adapter cannot handle (permanent)
    ├── CaptureBroken               the capture did not pass its own end test; nothing of it may be kept
    └── RestoreBroken               the restore failed; `target_state` says what the target holds now

No engine's protocol proves completeness by itself: an entry counts only after its adapter's own end test.
Passwords reach an adapter in `Target`, never in an argument list, a log line or an error's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class EngineError(Exception):
    """The engine or its adapter could not do what was asked."""

    permanent = False


class EngineUnreachable(EngineError):
    """The engine cannot be reached, or the connection was lost."""


class EngineDenied(EngineError):
    """The engine refuses the credentials or the right is missing."""

    permanent = True


class EngineUnsupported(EngineError):
    """This version, topology or data cannot be handled."""

    permanent = True


class CaptureBroken(EngineError):
    """What was captured is not whole."""


class RestoreBroken(EngineError):
    """The restore did not succeed; `target_state` tells in words what the target holds now."""

    def __init__(self, message: str, target_state: str) -> None:
        super().__init__(f"{message} (the target: {target_state})")
        self.target_state = target_state


def tell_target(error: BaseException, state: str) -> None:
    """Notes what the target holds on an error that is not the adapter's own: the job's, the repository's. For `target_state`."""
    error.add_note(f"{_NOTED}{state}")


def target_state(error: BaseException) -> str | None:
    """What the target holds after this error, in words; None where nobody has said."""
    if isinstance(error, RestoreBroken):
        return error.target_state
    noted = [note.removeprefix(_NOTED) for note in getattr(error, "__notes__", ()) if note.startswith(_NOTED)]
    return noted[-1] if noted else None


_NOTED = "The target: "


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine is and how to enter it.

    `address` is a URL without password: `redis://[user@]host:port`, `rediss://…` (TLS), `mongodb://[user@]host[:port][,…]/[?options]`,
    `influxdb://[user@]host[:port][/database][?backup=host:port]`, `influxdbs://…` (TLS), `cassandra://[user@]host[:port][,…]`,
    `cassandras://…` (TLS).

    `options` are the adapter's own, such as `ca`; people register texts (a PEM text, "yes"), and an adapter refuses names that it
    does not know. They may be secrets.
    """

    address: str
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    node: str = ""  # id of the node whose share is meant, of an instance with nodes (ClusterEngine)
    tables: tuple[Tables, ...] = ()  # what a capture is of; () is the whole instance (others: ClusterEngine alone)


@dataclass(frozen=True, slots=True)
class Tables:
    """Some tables of a database; `names` None: all that it has."""

    database: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A host of an instance whose files must be read there."""

    id: str  # stays the same for as long as the node keeps its data
    address: str  # of its host, as the instance's other nodes know it: where its jobs are queued


@dataclass(frozen=True, slots=True)
class Probe:
    """What an engine says of itself."""

    version: str  # "7.0.15"
    mode: str  # e.g. "Single", "ReplicaSet": instance_mode in the API
    size: int  # bytes of data, an estimate: chooses the chunk size of a new lineage and scales progress
    warnings: Sequence[str] = ()  # sentences for people, shown with the backup
    records: bool = True  # True: streams of records (small chunks); False: files that never change (large chunks)


@dataclass(frozen=True, slots=True)
class Entry:
    """One named thing of a backup. Names are UTF-8 text, unique in the backup, chosen by the engine's adapter."""

    name: str
    size: int  # bytes
    facts: Mapping[str, Any] = field(default_factory=dict)  # small, CBOR-able: what restore needs to know of it


@dataclass(frozen=True, slots=True)
class Ground:
    """What a restore finds in its target before it changes anything."""

    holds: str | None  # the data that a restore would replace, in words ("12 keys in 2 databases"); None: it is empty
    warnings: Sequence[str] = ()  # sentences for people


class EntryWriter(Protocol):
    """Receives one entry's bytes in order. Calls block while the pipeline is full: back-pressure."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes of any length; the buffer may be reused after the call."""

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Ends the entry after the adapter's own end test passed. An entry that is not finished is never kept."""


class CaptureSink(Protocol):
    """Where a capture puts its entries, one open at a time (stream order is what keeps packs dense)."""

    def entry(self, name: str) -> AbstractContextManager[EntryWriter]:
        """Opens the next entry; leaving the block without `finish` discards the capture as broken."""

    @property
    def history(self) -> str:
        """The same word for every capture that shares with this one, for no other: names what captures leave on the source."""

    @property
    def parent_facts(self) -> Mapping[str, Any] | None:
        """`Summary.facts` of the capture that this one shares with; None if there is none."""

    def parent_entry(self, name: str) -> Entry | None:
        """That capture's entry of this name, with the facts that it was finished with; None if there is none."""

    def adopt_entry(self, name: str) -> bool:
        """Takes the parent's entry of this name over, unread, facts and all; False, and nothing is changed, if it must be read.

        Only for what is *proven* to be the same immutable thing that was read for the parent's entry; neither name nor size nor
        time prove that. What the parent holds cannot be freed while this capture is under way, whatever is deleted meanwhile:
        an adopted entry comes from the parent alone, never from another backup, and the end of the part proves it again.
        """


class NothingShared:
    """A base of sinks that keep nothing of earlier captures."""

    history = ""
    parent_facts: Mapping[str, Any] | None = None

    def parent_entry(self, name: str) -> Entry | None:
        """See CaptureSink: none."""
        del name
        return None

    def adopt_entry(self, name: str) -> bool:
        """See CaptureSink: it must be read."""
        del name
        return False


class RestoreSource(Protocol):
    """What a restore reads. Every byte is verified before it is handed out; damage raises, it never passes."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The entries in order of capture, those whose name starts with `prefix`."""

    def read(self, name: str) -> Iterator[bytes]:
        """The entry's bytes in pieces of up to some MiB; KeyError if there is none of that name."""


class Control(Protocol):
    """The running job, as an adapter sees it."""

    def check(self) -> None:
        """Raises if the job was cancelled, lost or must drain. Call it at least once a second and per batch."""

    def progress(self, phase: str, done: int, total: int | None = None) -> None:
        """Tells how far it is (bytes or records, the phase's own unit)."""


class CaptureControl(Control, Protocol):
    """The running job of a capture, and the limits of its source."""

    def took(self, size: int) -> None:
        """`size` bytes were taken from the source; returns once its limits let more be taken. For an adapter that reads ahead of
        what it hands on: what goes into entries is paced anyway, and nothing is paced twice."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How a capture or restore ended: counts for people, and the engine's facts for the manifest's root."""

    entries: int
    bytes: int
    facts: Mapping[str, Any] = field(default_factory=dict)  # e.g. version, time of consistency; small, CBOR-able
    warnings: Sequence[str] = ()


@runtime_checkable
class Versioned(Protocol):
    """An engine that says which releases of its server it is tested with, oldest first: "6.2"."""

    versions: Sequence[str]


@runtime_checkable
class Tabled(Protocol):
    """An engine whose tables can be backed up and restored one by one."""

    def list_tables(self, target: Target) -> Mapping[str, Sequence[str]]:
        """Users' databases with the names of their tables, all in order. Within some ten seconds; raises EngineError."""


class Engine(Protocol):
    """One kind of database. Methods may be called from several threads for different targets."""

    name: str  # "redis", "mongodb": datastore.type in the API
    id_suffix: str  # instances "in" + suffix, backups "br" + suffix

    def probe(self, target: Target) -> Probe:
        """Connects, checks credentials and rights for a capture, and returns within some ten seconds."""

    def capture(self, target: Target, sink: CaptureSink, control: CaptureControl, scratch: str) -> Summary:
        """Reads the whole instance, exact at one point in time. `scratch` is an empty private folder for spills (kept on disk,
        removed by the caller). Memory is bounded whatever the size. Raises EngineError; then nothing is kept."""

    def restore(self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str) -> Summary:
        """Makes the target hold what the backup holds. `facts` is the capture's Summary.facts.

        Everything that can be checked is checked before the point of no return: that the source can be read whole, versions,
        rights, a way back. Raises RestoreBroken after that point, other EngineErrors before it.
        """

    def export(self, source: RestoreSource, facts: Mapping[str, Any], folder: Path, control: Control) -> Summary:
        """Writes the backup as the engine's own files, which its own tools load without us (docs/how-to/export-NAME.md).

        Needs no server. `folder` is private and holds nothing but the caller's `export.json`; spills go there too and are gone
        at the end. Files are made by `exporting.new_file` and `new_folder`: for their owner only, and durable. Raises
        EngineUnsupported where the backup cannot be written so, CaptureBroken where it is not whole, OSError where the folder
        fails; what the folder holds then is worth nothing. In the Summary `entries` and `bytes` are those of the files.
        """

    def recover(self, target: Target) -> None:
        """Idempotent: ends what a restore that died left in the target (e.g. a Redis left as a replica of nobody). Called
        before a restore is tried again and after one failed for good."""


@runtime_checkable
class Importer(Protocol):
    """What an engine can do besides, where files of its own kind can be put into an instance without a backup of ours."""

    def import_files(self, target: Target, files: Mapping[str, str], control: Control, scratch: str) -> Summary:
        """Makes the target hold what the files (name for people → path) hold together; `scratch` as for a capture.

        The files may change or vanish at any time: they are copied first. As in a restore everything that can be checked is
        checked before the point of no return. Raises RestoreBroken after that point, other EngineErrors before it.
        """


@runtime_checkable
class ClusterEngine(Engine, Protocol):
    """An engine whose instances have nodes. A backup has one part a node, captured by a worker on that node's host.

    `capture` is then called for one node, `Target.node`, and every entry's name begins with a word of that node's own, so that
    `restore` finds the entries of all parts in one source; its `facts` are those of the first part by node. A restore runs on
    the host of the first of `nodes`.
    """

    def nodes(self, target: Target) -> Sequence[Node]:
        """The nodes that together hold the instance, by id. Raises EngineUnreachable if one of them is down: a backup without
        it would not be whole."""

    def require_agreement(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """Whether captures of several nodes for one backup, told by their facts, can be restored together. Raises
        EngineUnsupported if not: a backup that could not be restored must fail. Asked again as more of them are there."""

    def tidy(self, target: Target, histories: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Removes from `Target.node` what captures of these histories have left there, crashed ones too, but for what the capture
        with the facts that a history is given with needs to be adopted from. Idempotent. Called on the node's host after every
        end of a capture, with histories that have ended too."""


@runtime_checkable
class Surveyor(Protocol):
    """An engine that can look at a target before a restore. One that is none is asked by `probe`: any bytes are data."""

    def survey(self, target: Target, facts: Mapping[str, Any], size: int) -> Ground:
        """Checks version, rights and room for a restore of `size` plain bytes with these capture's facts; changes nothing.

        Returns within some ten seconds. Raises EngineError where the restore could not succeed.
        """


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a server holds beside what a backup says."""

    expected: Mapping[str, int]  # counts by name: "keys", "documents"
    found: Mapping[str, int]  # the same names
    digests: int  # how many digests of content were compared
    differences: Sequence[str]  # sentences, the first of them; none: all is as it was captured
    warnings: Sequence[str] = ()


@runtime_checkable
class Rehearser(Protocol):
    """An engine that can try a restore out: in a server that is started for it and thrown away."""

    def sandbox(self, folder: Path, control: Control) -> AbstractContextManager[Target]:
        """A server of its own on the loopback, with a password, in an empty private folder that the caller removes. It ends
        with the block, and with this process however that ends. Raises EngineUnsupported where its program is not installed."""

    def compare(
        self, target: Target, source: RestoreSource, facts: Mapping[str, Any], control: Control, scratch: str
    ) -> Comparison:
        """Reads what the sandbox holds after a restore, and compares counts and content. Raises EngineError."""
