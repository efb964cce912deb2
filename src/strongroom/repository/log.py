"""Pieces of a source's log of changes: the objects `<lineage>/log/<id>`.

A sealed document (_document.py) whose clear header says where the piece belongs, so that a rebuild need not open it:

    lineage, instance     whose log it is
    chain                 number of the stretch of log without a hole
    group, piece, last    what lies between two marks and is too long for one object comes as a group of pieces, 0, 1, … last
    begin, end            the marks [stream, order, at] around the group; `end` is null but in its last piece

The content is a frame (codec.py) of canonical CBOR {marks: [[stream, order, at, offset], …], log: bytes}: the marks inside the
piece with the plain bytes up to each, and the log's own bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cbor2

from strongroom.repository._document import open_document, read_header, seal_document
from strongroom.repository.codec import Decoder, Encoder, FrameError
from strongroom.repository.errors import Damaged
from strongroom.repository.keys import LineageKeys

_LOG = b"SRLG"

Place = tuple[str, int, float]
"""A mark: stream, order, and seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class LogHeader:
    """Where a piece belongs; see the module's head."""

    lineage: str
    instance: str
    chain: int
    group: str
    piece: int
    last: bool
    begin: Place
    end: Place | None


@dataclass(frozen=True, slots=True)
class LogPiece:
    """An opened piece. `marks`: (mark, plain bytes up to it), ascending; those of a group are all in its last piece."""

    header: LogHeader
    marks: Sequence[tuple[Place, int]]
    log: bytes


def seal_log(
    keys: LineageKeys, encoder: Encoder, header: LogHeader, marks: Sequence[tuple[Place, int]], log: bytes | bytearray
) -> bytes:
    """The object's bytes."""
    content = cbor2.dumps({"marks": [[*mark, offset] for mark, offset in marks], "log": bytes(log)}, canonical=True)
    clear = {
        "lineage": header.lineage, "instance": header.instance, "chain": header.chain, "group": header.group,
        "piece": header.piece, "last": header.last, "begin": list(header.begin),
        "end": None if header.end is None else list(header.end),
    }  # fmt: skip
    return seal_document(_LOG, keys.logs, clear, encoder.encode(content))


def peek_log(data: bytes, name: str) -> LogHeader:
    """The header of an object of which `data` is the beginning; unproven. Raises Damaged, UnknownFormat."""
    found = read_header(_LOG, data, name)
    try:
        return LogHeader(
            str(found["lineage"]), str(found["instance"]), int(found["chain"]), str(found["group"]), int(found["piece"]),
            bool(found["last"]), _place(found["begin"]), None if found["end"] is None else _place(found["end"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{name} is damaged: its header says nothing of a log", object_name=name) from error


def open_log(keys: LineageKeys, lineage: str, name: str, data: bytes) -> LogPiece:
    """The piece. Raises Damaged if anything is not as it was sealed or is another lineage's, UnknownFormat."""
    header = peek_log(data, name)
    sealed = open_document(_LOG, keys.logs, data, name)
    if header.lineage != lineage:
        raise Damaged(f"{name} is damaged: it is of lineage {header.lineage}", object_name=name)
    try:
        content: dict[str, Any] = cbor2.loads(Decoder().decode(sealed))
        marks = [(_place(row[:3]), int(row[3])) for row in content["marks"]]
        return LogPiece(header, marks, bytes(content["log"]))
    except (FrameError, cbor2.CBORDecodeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{name} is damaged: its content cannot be read", object_name=name) from error


def _place(row: Sequence[Any]) -> Place:
    stream, order, at = row
    return str(stream), int(order), float(at)
