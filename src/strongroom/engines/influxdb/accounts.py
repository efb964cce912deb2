"""What a backup port does not bring back: policies' durations, subscriptions, continuous queries, users and grants.

They are told to the server as statements. Passwords cannot be: users that are missing are made with a random one that nobody
knows, so that their grants are there, and are named in a warning.
"""

from __future__ import annotations

from collections.abc import Iterable

from strongroom.ambient import Ambient
from strongroom.engines.base import EngineDenied, EngineError
from strongroom.engines.influxdb.http import Http
from strongroom.engines.influxdb.influxql import name as quoted
from strongroom.engines.influxdb.influxql import renamed_query, text
from strongroom.engines.influxdb.metastore import Database, Metastore, Policy, User


def set_policies(http: Http, database: Database, name: str) -> None:
    """The durations that the loading had left out."""
    for policy in database.policies:
        if policy.duration:
            http.run(
                f"ALTER RETENTION POLICY {quoted(policy.name)} ON {quoted(name)} "
                f"DURATION {_duration(policy.duration)} SHARD DURATION {_duration(policy.shard_duration)}"
            )


def subscribe(http: Http, database: Database, name: str) -> list[str]:
    """Subscriptions; under another name they are left out, since what listens there knows the old one. Returns warnings."""
    left = [one.name for policy in database.policies for one in policy.subscriptions]
    if name != database.name:
        return [f"subscriptions of {database.name} are not made for {name}: {', '.join(left)}"] if left else []
    for policy in database.policies:
        for one in policy.subscriptions:
            places = ", ".join(map(text, one.destinations))
            http.run(
                f"CREATE SUBSCRIPTION {quoted(one.name)} ON {quoted(name)}.{quoted(policy.name)} DESTINATIONS {one.mode} {places}"
            )
    return []


def make_queries(http: Http, database: Database, name: str) -> list[str]:
    """Continuous queries, with their own database under its new name. Returns warnings on those that the server refuses."""
    warnings = []
    for key, query in database.queries:
        try:
            http.run(query if name == database.name else renamed_query(query, database.name, name))
        except EngineDenied:
            raise
        except (EngineError, ValueError) as error:
            warnings.append(f"the continuous query {key!r} of {name} is not restored ({error}): {query}")
    return warnings


def grants_on(users: Iterable[User], database: str) -> dict[str, str]:
    """Who holds which right on a database."""
    return {user.name: right for user in users if not user.admin for on, right in user.grants if on == database}


def grant(http: Http, database: str, wanted: dict[str, str], existing: dict[str, bool]) -> list[str]:
    """Grants on a database, to users that exist. Returns a warning on the others."""
    for user, right in wanted.items():
        if user in existing:
            http.run(f"GRANT {right} ON {quoted(database)} TO {quoted(user)}")
    missing = [f"{user} ({right})" for user, right in wanted.items() if user not in existing]
    return [f"users that do not exist have no rights on {database}: {', '.join(missing)}"] if missing else []


def make_users(http: Http, backup: Metastore, existing: dict[str, bool], ambient: Ambient) -> tuple[dict[str, bool], list[str]]:
    """Makes missing users without the right to administrate; all users there are then, and warnings."""
    warnings = []
    missing = [user.name for user in backup.users if not user.admin and user.name not in existing]
    for user in missing:
        http.run(f"CREATE USER {quoted(user)} WITH PASSWORD {text(ambient.key().hex())}")
    if missing:
        warnings.append(
            f"these users were made with a password that nobody knows, since InfluxDB takes no hashes: {', '.join(missing)}. "
            "Set one: SET PASSWORD FOR \"name\" = '…'"
        )
    admins = [user.name for user in backup.users if user.admin and not existing.get(user.name)]
    if admins:
        warnings.append(f"these users are no administrators of the target, and are not made ones: {', '.join(admins)}")
    return {**existing, **dict.fromkeys(missing, False)}, warnings


def _duration(nanoseconds: int) -> str:
    if nanoseconds % 10**9 == 0:
        return f"{nanoseconds // 10**9}s"
    return f"{nanoseconds // 1000}u"


def comparable(policies: Iterable[Policy], *, subscriptions: bool) -> list[tuple[object, ...]]:
    """What of policies must be equal in backup and target."""
    return sorted(
        (one.name, one.duration, one.shard_duration, one.replicas, sorted(map(repr, one.subscriptions)) if subscriptions else [])
        for one in policies
    )
