"""Reading with raw cursors: batches of documents as the server's own bytes, without a loop of the driver over documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bson.int64 import Int64
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from strongroom.engines.mongodb.connection import Client, as_timestamp
from strongroom.engines.mongodb.documents import RAW, NotBson, elements, split_array

BATCH_BYTES = 4 * 1024 * 1024
_MOST_DOCUMENTS = 50_000


def batch_size(average: int) -> int:
    """How many documents of an average size make a reply of about BATCH_BYTES. The server never sends over 16 MiB."""
    return max(1, min(_MOST_DOCUMENTS, BATCH_BYTES // max(average, 1)))


def raw_batches(
    client: Client,
    session: ClientSession,
    database: str,
    command: Mapping[str, Any],
    *,
    size: int = 1000,
    more: Mapping[str, Any] | None = None,
) -> Iterator[list[bytes]]:
    """Runs a command that opens a cursor and reads it to its end. `more` are extra fields of getMore (tailing cursors).

    The end is the server's word that the cursor is finished (id 0). An abandoned cursor ends with its session.
    """
    cursor_options = {"cursor": {"batchSize": size}} if "find" not in command else {"batchSize": size}
    reply = client[database].command({**command, **cursor_options}, session=session, codec_options=RAW)
    cursor = reply["cursor"]
    collection = str(cursor["ns"]).partition(".")[2]
    while True:
        yield _documents(bytes(cursor.raw))
        cursor_id = cursor["id"]
        if not cursor_id:
            return
        following = {"getMore": Int64(cursor_id), "collection": collection, "batchSize": size, **(more or {})}
        reply = client[database].command(following, session=session, codec_options=RAW)
        cursor = reply["cursor"]


def _documents(raw: bytes) -> list[bytes]:
    for _, name, start, stop in elements(raw):
        if name in (b"firstBatch", b"nextBatch"):
            return split_array(raw, start, stop)
    raise NotBson("a reply without a batch")


def at_time(time: int) -> dict[str, Any]:
    """The read concern for a snapshot at this time."""
    return {"readConcern": {"level": "snapshot", "atClusterTime": as_timestamp(time)}}


def average_and_size(client: Client, database: str, collection: str) -> tuple[int, int]:
    """Average document size and all bytes of a collection, estimates; (1024, 0) where the server has none to tell."""
    try:
        stats = client[database].command("collStats", collection)
    except OperationFailure as error:
        if error.code in (26, 166):  # gone, or a view by now
            return 1024, 0
        raise
    return int(stats.get("avgObjSize", 1024) or 1024), int(stats.get("size", 0))


def pieces_of(path: str, size: int = 1024 * 1024) -> Iterator[bytes]:
    """A file in pieces."""
    with open(path, "rb") as file:
        while piece := file.read(size):
            yield piece
