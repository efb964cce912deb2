"""InfluxDB's HTTP port: statements of InfluxQL and their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx

from strongroom.engines.base import EngineDenied, EngineError, EngineUnreachable, EngineUnsupported
from strongroom.engines.influxdb.influxql import name as quoted
from strongroom.engines.influxdb.place import Place

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
DROP_SECONDS = 600.0  # dropping a large database takes its time
LOOK_SECONDS = 0.5  # between looks at the job while a statement runs

OLDEST = (1, 5)  # the first whose backup port takes restores


class Http:
    """One server's HTTP port. A context; not for several threads at once.

    `look` is called while an answer is waited for, and may raise; the server then goes on alone.
    """

    def __init__(self, place: Place, answer_seconds: float = ANSWER_SECONDS, look: Callable[[], None] | None = None) -> None:
        self._look = look
        auth = None if place.user is None else httpx.BasicAuth(place.user, place.password or "")
        self._user = place.user
        self._client = httpx.Client(
            base_url=place.url, auth=auth, trust_env=False, timeout=httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS),
            verify=place.tls if place.tls is not None else True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def version(self) -> str:
        """ "1.6.7"; EngineUnsupported if it is no InfluxDB 1.x that can be backed up."""
        headers = self._ask("GET", "/ping").headers
        told = str(headers.get("X-Influxdb-Version", "")).removeprefix("v")
        if not told:
            raise EngineUnsupported("what answers at the HTTP port is no InfluxDB")
        version = told.partition("~")[0].partition("-")[0]
        if release_of(version) < OLDEST or release_of(version) >= (2, 0):
            raise EngineUnsupported(f"InfluxDB {told} is not supported: {OLDEST[0]}.{OLDEST[1]} or later of 1.x is needed")
        if headers.get("X-Influxdb-Build", "OSS") != "OSS":
            raise EngineUnsupported("clusters of InfluxDB Enterprise are not supported")
        return version

    def run(self, statement: str) -> None:
        """A statement whose answer is of no interest."""
        self.rows(statement)

    def rows(self, statement: str) -> list[list[Any]]:
        """The rows of all series that a statement gives, one after the other."""
        return [row for series in self._series(statement) for row in series.get("values", [])]

    def tagged(self, statement: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
        """Tags, and columns with values, of each row."""
        for series in self._series(statement):
            for row in series.get("values", []):
                yield series.get("tags", {}), dict(zip(series["columns"], row, strict=True))

    def databases(self) -> list[str]:
        """All that the user may see."""
        return [str(row[0]) for row in self.rows("SHOW DATABASES")]

    def policies(self, database: str) -> list[str]:
        """Names of a database's retention policies."""
        return [str(row[0]) for row in self.rows(f"SHOW RETENTION POLICIES ON {quoted(database)}")]

    def users(self) -> dict[str, bool]:
        """Every user, and whether it is an administrator. Only administrators may ask: EngineDenied else."""
        return {str(row[0]): bool(row[1]) for row in self.rows("SHOW USERS")}

    def drop(self, database: str) -> None:
        """Drops a database; one that is gone is no error."""
        self.run(f"DROP DATABASE {quoted(database)}")

    def _series(self, statement: str) -> list[dict[str, Any]]:
        answer = self._ask("POST", "/query", {"q": statement, "epoch": "ns"})
        try:
            results = answer.json()["results"]
        except (ValueError, KeyError, TypeError):
            raise EngineError(f"InfluxDB answers with status {answer.status_code} and no result") from None
        found: list[dict[str, Any]] = []
        for result in results:
            if "error" in result:
                raise _meaning(str(result["error"]))
            found += result.get("series", [])
        return found

    def _ask(self, method: str, path: str, form: dict[str, str] | None = None) -> httpx.Response:
        try:
            answer = self._answer(method, path, form)
        except httpx.ConnectError as error:
            raise EngineUnreachable(f"InfluxDB's HTTP port does not answer: {error}") from error
        except httpx.TimeoutException as error:
            raise EngineUnreachable("InfluxDB's HTTP port did not answer in time") from error
        except httpx.HTTPError as error:
            raise EngineUnreachable(f"the connection to InfluxDB's HTTP port was lost: {error}") from error
        if answer.status_code == 401:
            if self._user is None:
                raise EngineDenied("InfluxDB asks for a user and a password, and none are set")
            raise EngineDenied("InfluxDB refuses the user or the password")
        if answer.status_code == 403:
            raise EngineDenied(f"the user {self._user!r} lacks a right: {_told(answer)}")
        if answer.status_code >= 400:
            raise EngineError(f"InfluxDB refuses: {_told(answer)} (status {answer.status_code})")
        return answer

    def _answer(self, method: str, path: str, form: dict[str, str] | None) -> httpx.Response:
        if self._look is None:
            return self._client.request(method, path, data=form)
        told: Future[httpx.Response] = Future()

        def ask() -> None:
            try:
                told.set_result(self._client.request(method, path, data=form))
            except Exception as error:  # the top of a thread: whatever it is, the caller must learn it
                told.set_exception(error)

        threading.Thread(target=ask, name="influxdb-statement", daemon=True).start()
        while True:
            self._look()
            with suppress(TimeoutError):
                return told.result(LOOK_SECONDS)


def release_of(version: str) -> tuple[int, int]:
    """(1, 6) of "1.6.7"; a text that is no version is older than all."""
    parts = version.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return 0, 0


def _told(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def _meaning(error: str) -> EngineError:
    if "authoriz" in error or "privilege" in error:
        return EngineDenied(f"the user lacks a right: {error[:300]}")
    return EngineError(f"InfluxDB refuses: {error[:300]}")
