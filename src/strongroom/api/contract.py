"""The contract's forms in one place: ids, names, times, pages and their checks.

The types here are for parameters and fields of FastAPI handlers. A value that does not fit is answered with the code that
the contract has for it: `coded` puts the code on the type.

    def list_backups(page: Annotated[RowPage, Query()], …)      # GET /v4/{project_id}/backups
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from strongroom.ambient import Ambient
from strongroom.api.errors import ParameterError

MOST_ROWS = 2**31 - 1
"""The largest offset; past the end every list is just empty."""


def coded(code: str, message: str) -> WrapValidator:
    """Makes whatever is wrong with a value answer 400 with this code and message."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        try:
            return inner(value)
        except (ValidationError, ValueError):
            raise PydanticCustomError(code, message) from None

    return WrapValidator(check)


# --- ids ---------------------------------------------------------------------------------------------------------------


class Engine(StrEnum):
    """The engines by the names that requests and answers use (datastore types)."""

    CASSANDRA = "cassandra"
    MONGODB = "mongodb"
    INFLUXDB = "influxdb"
    REDIS = "redis"


_SUFFIX = {Engine.MONGODB: "02", Engine.CASSANDRA: "06", Engine.INFLUXDB: "12", Engine.REDIS: "14"}


def new_backup_id(ambient: Ambient, engine: Engine) -> str:
    """A fresh id of a backup. Its suffix is for people; nothing reads it."""
    return f"{ambient.hex_id()}br{_SUFFIX[engine]}"


def new_instance_id(ambient: Ambient, engine: Engine) -> str:
    """A fresh id of an instance. Its suffix is for people; nothing reads it."""
    return f"{ambient.hex_id()}in{_SUFFIX[engine]}"


def _form(pattern: str) -> StringConstraints:
    return StringConstraints(pattern=rf"^{pattern}$")


ProjectId = Annotated[str, _form("[0-9a-f]{32}"), coded("DBS.280408", "Invalid project id.")]
BackupId = Annotated[str, _form("[0-9a-f]{32}br[0-9]{2}"), coded("DBS.201212", "Backup ID is illegal.")]
InstanceId = Annotated[str, _form("[0-9a-f]{32}in[0-9]{2}"), coded("DBS.280404", "Invalid DB instance ID.")]
InstanceIdOrPart = Annotated[
    str, _form(r"([0-9a-f]{32}in[0-9]{2}|\*[^\x00]{0,255})"), coded("DBS.280404", "Invalid DB instance ID.")
]
"""A filter: an id, or `*` and what stands anywhere in it."""
JobId = Annotated[
    str, _form("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), coded("DBS.200001", "Parameter error: invalid job ID.")
]


def _plain_path(name: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("not a plain path")
    return name


# --- names and words ---------------------------------------------------------------------------------------------------

BackupName = Annotated[
    str,
    _form("[A-Za-z][A-Za-z0-9_-]{3,63}"),
    coded("DBS.280277", "Invalid backup name: 4 to 64 letters, digits, _ or -, a letter first."),
]
InstanceName = Annotated[
    str,
    _form("[A-Za-z][A-Za-z0-9_-]{3,63}"),
    coded("DBS.280234", "Invalid DB instance name: 4 to 64 letters, digits, _ or -, a letter first."),
]
Description = Annotated[
    str,
    StringConstraints(max_length=256, pattern=r"""^[^>!<"&'=\x00]*$"""),
    coded("DBS.280127", """Invalid backup description: at most 256 characters, none of > ! < " & ' =."""),
]
BucketName = Annotated[
    str, _form("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"), coded("DBS.200001", "Parameter error: invalid bucket name.")
]
FileName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00\\]*$"),
    AfterValidator(_plain_path),
    coded("DBS.200001", "Parameter error: invalid file name."),
]
"""A file in a bucket: folders with slashes, none of them empty, `.` or `..`."""
TagKey = Annotated[
    str,
    StringConstraints(strip_whitespace=True),
    _form("[0-9A-Za-z_\u4e00-\u9fff-]{1,36}"),
    coded("DBS.280441", "Invalid key: 1 to 36 letters, digits, _ or -."),
]
TagValue = Annotated[
    str,
    StringConstraints(strip_whitespace=True),
    _form("[0-9A-Za-z_.\u4e00-\u9fff-]{0,43}"),
    coded("DBS.280444", "Invalid value: at most 43 letters, digits, _, . or -."),
]
"""Tags. Letters are ASCII's and Chinese ones."""
Text = Annotated[
    str, StringConstraints(max_length=256, pattern=r"^[^\x00]*$"), coded("DBS.200001", "Parameter error: invalid text.")
]
"""Any short text to look for."""

DatastoreType = Annotated[Engine, coded("DBS.280235", "Invalid database type.")]
BackupType = Annotated[Literal["Auto", "Manual"], coded("DBS.280124", "Invalid backup type: Auto or Manual.")]
OlderBackupType = Annotated[
    Literal["Auto", "Manual", "Incremental"], coded("DBS.280124", "Invalid backup type: Auto, Manual or Incremental.")
]
BackupScope = Annotated[Literal["Instance", "DatabaseTable"], coded("DBS.280124", "Invalid type: Instance or DatabaseTable.")]
"""The query's `type`: whole instances or tables. In answers `type` is Auto or Manual."""
TaskStatus = Annotated[
    Literal["Pending", "Running", "Completed", "Failed", "Canceled"], coded("DBS.200001", "Parameter error: invalid job status.")
]
JobStatus = Annotated[Literal["Running", "Completed", "Failed"], coded("DBS.200001", "Parameter error: invalid job status.")]

# --- pages -------------------------------------------------------------------------------------------------------------

_LIMIT_MESSAGE = "Invalid limit."
_OFFSET_MESSAGE = "Invalid offset."
Offset = Annotated[int, Field(ge=0, le=MOST_ROWS), coded("DBS.280440", _OFFSET_MESSAGE)]
PageNumber = Annotated[int, Field(ge=1, le=MOST_ROWS // 100), coded("DBS.280440", _OFFSET_MESSAGE)]
Limit100 = Annotated[int, Field(ge=1, le=100), coded("DBS.280439", _LIMIT_MESSAGE)]
Limit300 = Annotated[int, Field(ge=1, le=300), coded("DBS.280439", _LIMIT_MESSAGE)]
Limit1000 = Annotated[int, Field(ge=0, le=1000), coded("DBS.280439", _LIMIT_MESSAGE)]


def _one_of_limits(value: int) -> int:
    if value not in (10, 20, 50):
        raise ValueError
    return value


def _digits(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


_DIGITS = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]{1,10}$"}]})
BodyOffset = Annotated[int, Field(ge=0, le=MOST_ROWS), BeforeValidator(_digits), _DIGITS, coded("DBS.280440", _OFFSET_MESSAGE)]
BodyLimit100 = Annotated[int, Field(ge=1, le=100), BeforeValidator(_digits), _DIGITS, coded("DBS.280439", _LIMIT_MESSAGE)]
"""Paging in a body: a number, or its digits as text, as the SDK sends them."""
LimitOfJobs = Annotated[int, AfterValidator(_one_of_limits), coded("DBS.280439", _LIMIT_MESSAGE)]


class Filter(BaseModel):
    """The base of models for a query; parameters that a call does not have are ignored, as clients send some."""

    model_config = ConfigDict(extra="ignore")


class RowPage(Filter):
    """Paging by rows, as all lists but the oldest do it."""

    offset: Offset = 0
    limit: Limit100 = 100

    @property
    def first_row(self) -> int:
        return self.offset


class NumberedPage(Filter):
    """Paging of GET /v3/{project_id}/backups: offset is a page's number from 1, and both are mandatory."""

    offset: PageNumber
    limit: Limit100

    @property
    def first_row(self) -> int:
        return (self.offset - 1) * self.limit


class JobPage(Filter):
    """Paging of the jobs: 10, 20 or 50 at a time."""

    offset: Offset = 0
    limit: LimitOfJobs = 50

    @property
    def first_row(self) -> int:
        return self.offset


class PeriodPage(Filter):
    """Paging of restorable periods: up to 1000 at a time."""

    offset: Offset = 0
    limit: Limit1000 = 1000

    @property
    def first_row(self) -> int:
        return self.offset


class MomentPage(Filter):
    """Paging of the moments that a Redis can be restored to: up to 300 at a time."""

    offset: Offset = 0
    limit: Limit300 = 300

    @property
    def first_row(self) -> int:
        return self.offset


# --- times -------------------------------------------------------------------------------------------------------------

_TIME = re.compile(
    r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})[T ](?P<clock>[0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?P<zone>Z|[+\- ][0-9]{2}:?[0-9]{2})?"
)


def parse_time(text: str) -> float:
    """Seconds since the epoch for "2019-05-27T03:38:51+0000" or "2019-05-27 03:38:51" (UTC).

    A plus that arrived as a space is a plus. Raises ValueError, also for a time that its zone takes out of the years 1 to 9999:
    no answer could tell it.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError("not a time")
    zone = (found["zone"] or "Z").replace("Z", "+0000").replace(" ", "+").replace(":", "")
    return in_utc(datetime.strptime(f"{found['day']}T{found['clock']}{zone}", "%Y-%m-%dT%H:%M:%S%z"))


def in_utc(moment: datetime) -> float:
    """Seconds since the epoch of a moment with a zone. ValueError where UTC has no such year."""
    try:
        return moment.astimezone(UTC).timestamp()
    except OverflowError as error:
        raise ValueError("not a year of UTC") from error


def time_text(seconds: float) -> str:
    """ "2019-05-27T03:38:51+0000": times in all answers but the oldest list's."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


def older_time_text(seconds: float) -> str:
    """ "2019-05-27 03:38:51", UTC: times in GET /v3/{project_id}/backups."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _read_time(value: Any) -> Any:
    return parse_time(value) if isinstance(value, str) else value


Time = Annotated[
    float,
    BeforeValidator(_read_time),
    WithJsonSchema({"type": "string", "example": "2019-05-27T03:38:51+0000"}),
    coded("DBS.201215", "Time is illegal."),
]
"""A time in a query, as seconds since the epoch."""

LONGEST_JOB_SPAN = timedelta(days=30).total_seconds()


class Between(Filter):
    """The span begin_time … end_time of lists of backups: both or none, in order."""

    begin_time: Time | None = None
    end_time: Time | None = None

    def checked(self) -> Self:
        """Raises ParameterError where only one is given or they are the wrong way round."""
        check_span(self.begin_time, self.end_time)
        return self


def filled_span(begin: float | None, end: float | None, now: float) -> tuple[float | None, float | None]:
    """The span of jobs that were created between two times, 30 days at most: a begin alone goes up to now, an end alone begins 30
    days before. Raises ParameterError."""
    if begin is not None and end is None:
        end = max(begin, now)
    elif begin is None and end is not None:
        begin = end - LONGEST_JOB_SPAN
    check_span(begin, end, LONGEST_JOB_SPAN)
    return begin, end


def check_span(begin: float | None, end: float | None, longest: float | None = None) -> None:
    """Both or none, begin not after end, and not longer than `longest` seconds. Raises ParameterError."""
    if (begin is None) is not (end is None):
        raise ParameterError("Time is illegal: a begin and an end go together.", "DBS.201215")
    if begin is None or end is None:
        return
    if begin > end:
        raise ParameterError("Time is illegal: the begin is after the end.", "DBS.201215")
    if longest is not None and end - begin > longest:
        raise ParameterError(f"Time is illegal: the span is longer than {int(longest // 86400)} days.", "DBS.201215")


# --- automated backups -------------------------------------------------------------------------------------------------


def _window(text: str) -> str:
    found = re.fullmatch(r"([01][0-9]|2[0-3]):(00|15|30|45)-([01][0-9]|2[0-3]):(00|15|30|45)", text)
    if found is None:
        raise ValueError("not a window")
    begin, end = int(found[1]), int(found[3])
    if (begin + 1) % 24 != end or found[2] != found[4]:
        raise ValueError("not one hour")
    return text


def _days(text: str) -> str:
    days = text.split(",")
    if not days or len(set(days)) != len(days) or not set(days) <= set("1234567"):
        raise ValueError("not days of the week")
    return ",".join(sorted(days))


Window = Annotated[
    str,
    AfterValidator(_window),
    coded("DBS.280216", "Invalid backup start time: hh:mm-HH:MM, one hour apart, minutes 00, 15, 30 or 45."),
]
Days = Annotated[str, AfterValidator(_days), coded("DBS.280215", "Invalid backup cycle: days 1 to 7, each once.")]
KeepDays = Annotated[int, Field(ge=0, le=35, strict=True), coded("DBS.280214", "Invalid retention period: 0 to 35.")]
EVERY_DAY = "1,2,3,4,5,6,7"


class BackupPolicy(BaseModel):
    """An instance's automated backups. keep_days 0 turns them off."""

    keep_days: KeepDays
    start_time: Window | Literal[""] | None = None
    period: Days | Literal[""] | None = None

    def checked(self) -> Self:
        """On names a window, and fewer than seven days kept need a backup every day. ParameterError else.

        [ours] With off the contract's clients send nothing else; the Terraform provider does, as does who sends back what the
        look-up told of a policy that is off (empty texts), and it counts for nothing."""
        if self.keep_days == 0:
            return self
        if not (self.start_time and self.period):
            raise ParameterError("Invalid backup policy: start_time and period are needed.", "DBS.280125")
        if self.keep_days < 7 and self.period != EVERY_DAY:
            raise ParameterError(f"Invalid backup cycle: keep_days 1 to 6 need {EVERY_DAY}.", "DBS.280215")
        return self


# --- answers -----------------------------------------------------------------------------------------------------------


class JobAccepted(BaseModel):
    """The answer to what goes on as a job."""

    job_id: str


class ErrorBody(BaseModel):
    """The body of every answer of status 400 and above."""

    error_code: str = Field(examples=["DBS.201214"])
    error_msg: str = Field(examples=["The backup file does not exist."])
