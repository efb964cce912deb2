"""Objects in an S3 bucket, or in anything that speaks S3 and honours `If-None-Match: *` on a put.

Credentials come from the environment, never from a URL, and show in no repr and no error. Every exception of the client
library ends in our own tree here; its text keeps what the server said (status and code) and drops the rest.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

from strongroom.ambient import Ambient, Machine
from strongroom.storage._bytes import pieces_of, size_of
from strongroom.storage.base import (
    InvalidName,
    InvalidStoreUrl,
    ObjectExists,
    ObjectMissing,
    Stat,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    check_name,
    check_prefix,
)
from strongroom.storage.sigv4 import Credentials, query_string, signed_headers

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, S3Credential
    from obstore.store import S3Store as Client

_DEFAULT_REGION = "us-east-1"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_REASON = re.compile(r'message: "([^"]{1,100})"|kind: (Timeout|Decode|Interrupted)\b')
_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "StorageFull", "XMinioStorageFull"})
_CONTESTED = frozenset({"ConditionalRequestConflict", "OperationAborted"})
_PASSES = frozenset({408, 409, 425, 429})  # client errors by number, but of the moment
_LIST_PAGE = 1000

_log = logging.getLogger(__name__)


class S3Store:
    """A bucket, or the part of it below `prefix`.

    The bucket is addressed path-style (`endpoint/bucket/…`) and must exist. A request takes `timeout` seconds at most.
    Gets, lists and bulk removals are tried up to three times inside, puts never. A process that forks must open its store
    after the fork.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        credentials: Credentials,
        endpoint: str | None = None,
        region: str = _DEFAULT_REGION,
        timeout: float = 300.0,
        ambient: Ambient | None = None,
    ) -> None:
        if not _BUCKET.match(bucket):
            raise InvalidStoreUrl(f"not the name of a bucket: {bucket!r} (3 to 63 of a-z, 0-9, '.' and '-')")
        self._bucket, self._prefix = bucket, check_name(prefix) if prefix else ""
        self._region, self._credentials, self._timeout = region, credentials, timeout
        self._endpoint = (endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
        self._ambient = ambient or Machine()
        self._once = self._client(retries=0, bulk=False)
        self._patient = self._client(retries=2, bulk=True)

    @classmethod
    def from_url(cls, url: str, environment: Mapping[str, str] | None = None) -> S3Store:
        """`s3://bucket/prefix?endpoint=…&region=…`, credentials from the environment (the process's unless given).

        Raises InvalidStoreUrl, and StoreDenied where no credentials are set. The URL is not repeated in an error.
        """
        environment = os.environ if environment is None else environment
        parts = urlsplit(url)
        if parts.scheme != "s3" or "@" in parts.netloc or parts.fragment:
            raise InvalidStoreUrl("an S3 URL is s3://bucket/prefix?endpoint=…&region=…, without credentials")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := options.keys() - {"endpoint", "region"}:
            raise InvalidStoreUrl(f"an S3 URL takes endpoint and region, not {', '.join(sorted(unknown))}")
        endpoint = options.get("endpoint")
        if endpoint is not None and not _is_endpoint(endpoint):
            raise InvalidStoreUrl("the endpoint of an S3 URL is http://host[:port] or https://host[:port]")
        region = options.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        try:
            prefix = check_name(unquote(parts.path).strip("/")) if parts.path.strip("/") else ""
        except InvalidName:
            raise InvalidStoreUrl("the prefix of an S3 URL is made of A-Z, a-z, 0-9, '.', '_', '-' and '/'") from None
        return cls(
            parts.netloc,
            prefix,
            credentials=_credentials_of(environment),
            endpoint=endpoint,
            region=region or _DEFAULT_REGION,
        )

    def __repr__(self) -> str:
        return f"S3Store({self._where!r})"

    def put_new(self, name: str, data: bytes | memoryview | Sequence[bytes | memoryview]) -> int:
        """As the port says. The request carries `If-None-Match: *`; a server that ignores it would overwrite."""
        check_name(name)
        pieces = pieces_of(data)
        with self._errors(name):
            try:
                obstore.put(self._once, name, pieces, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError, NotModifiedError) as error:
                if not _CONTESTED.isdisjoint(_CODE.findall(str(error))):  # the other put may fail yet
                    raise StoreUnavailable(f"{name} is being put by another just now: try again") from None
                raise ObjectExists(f"{name} is there already") from None
        return size_of(pieces)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        if length is not None and length < 0:
            raise ValueError(f"a length cannot be negative: {length}")
        if length == 0:
            if self.stat(name) is None:
                raise ObjectMissing(f"there is no {name}")
            return b""
        with self._errors(name):
            try:
                return self._fetch(name, start, length)
            except BaseError as error:
                if _status_of(error) == 416:  # an object that ends before `start`; an empty one knows no ranges at all
                    return b""
                raise

    def delete(self, name: str) -> None:
        check_name(name)
        with self._errors(name):
            self._delete_one(name)

    def delete_many(self, names: Sequence[str]) -> None:
        """As the port says: by the bulk request, and where that fails one by one, for the answer tells nothing then."""
        for name in names:
            check_name(name)
        if not names:
            return
        try:
            obstore.delete(self._patient, list(names))
            return
        except (BaseError, FileNotFoundError) as error:
            _log.info("%r: a bulk delete failed (%s), removing one by one", self, _reason_of(error))
        failure: StoreError | None = None
        for name in names:
            try:
                self.delete(name)
            except StoreUnavailable:
                raise
            except StoreError as error:  # something about this one (a legal hold): the others may go all the same
                failure = failure or error
        if failure is not None:
            raise failure

    def stat(self, name: str) -> Stat | None:
        """As the port says. Absence is believed only where the server says that it is the object that is missing."""
        check_name(name)
        with self._errors(name):
            try:
                return Stat(name, obstore.head(self._patient, name)["size"])
            except FileNotFoundError:  # a HEAD's 404 has no body: the bucket may be missing as well
                pass
        with self._errors(name):
            try:
                return Stat(name, obstore.get(self._patient, name).meta["size"])
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return None

    def list(self, prefix: str) -> Iterator[Stat]:
        check_prefix(prefix)
        return self._list(prefix)

    def keeps_deleted_bytes(self) -> str | None:
        """As the port says: asks for versioning and object lock. What S3 has no question for is in stores.md."""
        answer = self._ask("versioning")
        if answer.status_code in (405, 501):
            return None
        if answer.status_code != 200:
            return f"{self._where} does not say whether it is versioned: {_summary(answer)}"
        if found := re.search(r"<Status>\s*(Enabled|Suspended)\s*</Status>", answer.text):
            return f"{self._where} is versioned ({found[1]}): deleted objects stay as old versions and are billed"
        if "<ObjectLockEnabled>Enabled" in self._ask("object-lock").text:
            return f"{self._where} has object lock: deleted objects stay until their retention ends"
        return None

    def close(self) -> None:
        """Nothing to do: idle connections close by themselves."""

    @property
    def _where(self) -> str:
        below = f"/{self._prefix}" if self._prefix else ""
        return f"s3://{self._bucket}{below} at {self._endpoint}"

    def _client(self, *, retries: int, bulk: bool) -> Client:
        from obstore.store import S3Store as Client

        options: ClientConfig = {
            "allow_http": self._endpoint.startswith("http:"),
            "connect_timeout": timedelta(seconds=min(10.0, self._timeout)),
            "timeout": timedelta(seconds=self._timeout),
        }
        return Client(
            self._bucket,
            prefix=self._prefix or None,
            region=self._region,
            endpoint=self._endpoint,
            virtual_hosted_style_request=False,
            conditional_put="etag",
            disable_bulk_delete=not bulk,
            client_options=options,
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=self._timeout)},
            credential_provider=self._provide_credentials,
        )

    def _provide_credentials(self) -> S3Credential:
        """For the client: ours alone, so that nothing else in the environment mixes in."""
        given = self._credentials
        return {
            "access_key_id": given.access_key,
            "secret_access_key": given.secret_key,
            "token": given.session_token,
            "expires_at": None,
        }

    def _fetch(self, name: str, start: int, length: int | None) -> bytes:
        options: GetOptions = {}
        if start < 0:
            options["range"] = {"suffix": -start}
        elif length is not None:
            options["range"] = (start, start + length)
        elif start:
            options["range"] = {"offset": start}
        try:
            content = obstore.get(self._patient, name, options=options).bytes()
        except FileNotFoundError as error:
            self._refuse_missing_bucket(error)
            raise ObjectMissing(f"there is no {name}") from None
        return bytes(content if length is None else memoryview(content)[:length])

    def _delete_one(self, name: str) -> None:
        try:
            obstore.delete(self._once, name)
        except FileNotFoundError as error:
            self._refuse_missing_bucket(error)

    def _list(self, prefix: str) -> Iterator[Stat]:
        with self._errors(prefix):
            pages = obstore.list(self._patient, prefix or None, chunk_size=_LIST_PAGE)
        while True:
            with self._errors(prefix):
                try:
                    page = next(pages)
                except StopIteration:
                    return
            for each in page:
                try:
                    yield Stat(check_name(each["path"]), each["size"])
                except InvalidName:
                    _log.warning("%r leaves out what is no object: %r", self, each["path"])

    def _ask(self, question: str) -> httpx.Response:
        url, query = f"{self._endpoint}/{self._bucket}", {question: ""}
        headers = signed_headers("GET", url, query, self._region, self._credentials, self._ambient.now())
        try:
            answer = httpx.get(f"{url}?{query_string(query)}", headers=headers, timeout=min(30.0, self._timeout))
        except httpx.TransportError as error:
            raise StoreUnavailable(f"{self._where} does not answer: {type(error).__name__}") from None
        if answer.status_code >= 500 and answer.status_code != 501:
            raise StoreUnavailable(f"{self._where} does not answer: {_summary(answer)}")
        self._refuse_missing_bucket(answer.text)
        return answer

    def _refuse_missing_bucket(self, answer: object) -> None:
        if "NoSuchBucket" in _CODE.findall(str(answer)):
            raise StoreDenied(f"{self._where}: there is no such bucket: create it, or correct the store's URL")

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            self._raise(error, name)

    def _raise(self, error: Exception, name: str) -> NoReturn:
        self._refuse_missing_bucket(error)
        status, codes, where = _status_of(error), _CODE.findall(str(error)), f"{self._where} ({name})"
        reason = _reason_of(error)
        if status == 507 or not _FULL.isdisjoint(codes):
            raise StoreFull(f"{where} has no room left: make room or raise the quota ({reason})") from None
        if status in (401, 403):
            raise StoreDenied(f"{where} refuses us: check credentials, rights and the clock ({reason})") from None
        if status == 501 or (status is not None and 300 <= status < 500 and status not in _PASSES):
            raise StoreDenied(f"{where} refuses the request: check region, endpoint and bucket ({reason})") from None
        raise StoreUnavailable(f"{where} does not answer as it should: {reason}") from None


def _is_endpoint(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    plain = not (parts.query or parts.fragment or "@" in parts.netloc or parts.path.strip("/"))
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def _credentials_of(environment: Mapping[str, str]) -> Credentials:
    for access, secret, token in (
        ("STRONGROOM_S3_ACCESS_KEY", "STRONGROOM_S3_SECRET_KEY", "STRONGROOM_S3_SESSION_TOKEN"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ):
        if environment.get(access) and environment.get(secret):
            return Credentials(environment[access], environment[secret], environment.get(token) or None)
    raise StoreDenied(
        "no S3 credentials: set STRONGROOM_S3_ACCESS_KEY and STRONGROOM_S3_SECRET_KEY,"
        " or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def _status_of(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _reason_of(error: Exception) -> str:
    """What went wrong in a few words: the server's status and code, else what the connection met."""
    text = str(error)
    if status := _status_of(error):
        return " ".join([f"HTTP {status}", *_CODE.findall(text)[:1]])
    if found := _REASON.search(text):
        return found[1] or found[2]
    return type(error).__name__


def _summary(answer: httpx.Response) -> str:
    return " ".join([f"HTTP {answer.status_code}", *_CODE.findall(answer.text)[:1]])
