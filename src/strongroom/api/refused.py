"""Calls of the contract's service that Strongroom refuses, each with why: nobody shall meet a 404 without words.

A database is run by somebody else here, so whatever makes, sizes, connects or looks into one is refused. The caller must be known
and the project theirs; nothing else of the request is looked at, so it does not matter whether an id exists. [ours] A look-up is
404 DBS.280016, which clients that read an instance take as "has none of that"; anything else is 400 DBS.212003.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from strongroom.api.authentication import authenticated_router
from strongroom.api.errors import ApiError

router = authenticated_router("Refused")

_PROVISIONING = (
    "Strongroom backs databases up and does not make, resize or restart them: run the database yourself, "
    "register it (POST /strongroom/v1/{project_id}/instances) and restore into it"
)
_RECOVERY = (
    "Strongroom does not replicate databases or switch them over: a backup is restored into any registered instance of its engine"
)
_PARAMETERS = "Strongroom keeps no parameter templates: a database's settings are its own, and no part of a backup"
_LOGS = "Strongroom collects no logs of databases: read them where the database runs"
_INSIDE = "Strongroom does not look into, watch or maintain a database beyond its backups: use the engine's own tools"
_USERS = (
    "Strongroom does not manage users or passwords of a database; the password that it enters with is "
    "given when the instance is registered"
)
_CACHE = "Strongroom has no caches in front of databases"
_NETWORK = "Strongroom does not manage addresses, ports, load balancers or certificates of a database"
_ENTERPRISE = "there are no enterprise projects here: a project's quotas are set by PUT /strongroom/v1/{project_id}/quotas"

REFUSED: dict[tuple[str, str], str] = {
    ("GET", "/v3.1/{project_id}/flavors"): _PROVISIONING,
    ("GET", "/v3/{project_id}/dedicated-resources"): _PROVISIONING,
    ("GET", "/v3/{project_id}/flavors"): _PROVISIONING,
    ("POST", "/v3/{project_id}/instances/db-upgrade"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instances/disk-auto-expansion"): _PROVISIONING,
    ("GET", "/v3/{project_id}/instances/{instance_id}/available-flavors"): _PROVISIONING,
    ("POST", "/v3/{project_id}/instances/{instance_id}/cold-volume"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/cold-volume"): _PROVISIONING,
    ("POST", "/v3/{project_id}/instances/{instance_id}/db-upgrade"): _PROVISIONING,
    ("GET", "/v3/{project_id}/instances/{instance_id}/disk-auto-expansion"): _PROVISIONING,
    ("DELETE", "/v3/{project_id}/instances/{instance_id}/enlarge-failed-nodes"): _PROVISIONING,
    ("POST", "/v3/{project_id}/instances/{instance_id}/enlarge-node"): _PROVISIONING,
    ("POST", "/v3/{project_id}/instances/{instance_id}/extend-volume"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/name"): _PROVISIONING,
    ("GET", "/v3/{project_id}/instances/{instance_id}/node-auto-expansion-policy"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/node-auto-expansion-policy"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/nodes"): _PROVISIONING,
    ("POST", "/v3/{project_id}/instances/{instance_id}/reduce-node"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/resize"): _PROVISIONING,
    ("POST", "/v3/{project_id}/instances/{instance_id}/restart"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/volume"): _PROVISIONING,
    ("PUT", "/v3/{project_id}/instance/{instance_id}/switchover"): _RECOVERY,
    ("GET", "/v3/{project_id}/instances/disaster-recovery/settings"): _RECOVERY,
    ("PUT", "/v3/{project_id}/instances/disaster-recovery/settings"): _RECOVERY,
    ("GET", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/biactive-instance-candidates"): _RECOVERY,
    ("POST", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/construction"): _RECOVERY,
    ("GET", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/data-synchronization"): _RECOVERY,
    ("POST", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/data-synchronization"): _RECOVERY,
    ("POST", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/deconstruction"): _RECOVERY,
    ("POST", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/precheck"): _RECOVERY,
    ("GET", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/regions"): _RECOVERY,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/disaster-recovery/switchover"): _RECOVERY,
    ("DELETE", "/v3/{project_id}/instances/{instance_id}/dual-active-relationship"): _RECOVERY,
    ("POST", "/v3/{project_id}/instances/{instance_id}/dual-active-relationship"): _RECOVERY,
    ("POST", "/v3/{project_id}/instances/{instance_id}/switchover-master"): _RECOVERY,
    ("POST", "/v3/{project_id}/instances/{instance_id}/switchover-slave"): _RECOVERY,
    ("GET", "/v3.1/{project_id}/configurations"): _PARAMETERS,
    ("PUT", "/v3.1/{project_id}/configurations/{config_id}/apply"): _PARAMETERS,
    ("PUT", "/v3.1/{project_id}/instances/{instance_id}/configurations"): _PARAMETERS,
    ("GET", "/v3/{project_id}/configurations"): _PARAMETERS,
    ("POST", "/v3/{project_id}/configurations"): _PARAMETERS,
    ("POST", "/v3/{project_id}/configurations/comparison"): _PARAMETERS,
    ("GET", "/v3/{project_id}/configurations/datastores"): _PARAMETERS,
    ("DELETE", "/v3/{project_id}/configurations/{config_id}"): _PARAMETERS,
    ("GET", "/v3/{project_id}/configurations/{config_id}"): _PARAMETERS,
    ("PUT", "/v3/{project_id}/configurations/{config_id}"): _PARAMETERS,
    ("GET", "/v3/{project_id}/configurations/{config_id}/applicable-instances"): _PARAMETERS,
    ("GET", "/v3/{project_id}/configurations/{config_id}/applied-histories"): _PARAMETERS,
    ("PUT", "/v3/{project_id}/configurations/{config_id}/apply"): _PARAMETERS,
    ("POST", "/v3/{project_id}/configurations/{config_id}/copy"): _PARAMETERS,
    ("POST", "/v3/{project_id}/configurations/{config_id}/reset"): _PARAMETERS,
    ("GET", "/v3/{project_id}/instances/{instance_id}/configuration-histories"): _PARAMETERS,
    ("GET", "/v3/{project_id}/instances/{instance_id}/configurations"): _PARAMETERS,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/configurations"): _PARAMETERS,
    ("POST", "/v3/{project_id}/cassandra/instances/{instance_id}/slow-logs"): _LOGS,
    ("POST", "/v3/{project_id}/influxdb/instances/{instance_id}/slow-logs"): _LOGS,
    ("DELETE", "/v3/{project_id}/instances/logs/lts-configs"): _LOGS,
    ("GET", "/v3/{project_id}/instances/logs/lts-configs"): _LOGS,
    ("POST", "/v3/{project_id}/instances/logs/lts-configs"): _LOGS,
    ("GET", "/v3/{project_id}/instances/{instance_id}/error-log"): _LOGS,
    ("GET", "/v3/{project_id}/instances/{instance_id}/slowlog"): _LOGS,
    ("GET", "/v3/{project_id}/instances/{instance_id}/slowlog-desensitization"): _LOGS,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/slowlog-desensitization"): _LOGS,
    ("POST", "/v3/{project_id}/mongodb/instances/{instance_id}/error-logs"): _LOGS,
    ("POST", "/v3/{project_id}/mongodb/instances/{instance_id}/slow-logs"): _LOGS,
    ("POST", "/v3/{project_id}/redis/instances/{instance_id}/slow-logs"): _LOGS,
    ("POST", "/v3/{project_id}/instances/{instance_id}/big-keys"): _INSIDE,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/data-dump"): _INSIDE,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/databases"): _INSIDE,
    ("GET", "/v3/{project_id}/instances/{instance_id}/high-risk-commands"): _INSIDE,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/high-risk-commands"): _INSIDE,
    ("GET", "/v3/{project_id}/instances/{instance_id}/hot-keys"): _INSIDE,
    ("GET", "/v3/{project_id}/instances/{instance_id}/instance-role"): _INSIDE,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/maintenance-window"): _INSIDE,
    ("GET", "/v3/{project_id}/instances/{instance_id}/monitoring-by-seconds/switch"): _INSIDE,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/monitoring-by-seconds/switch"): _INSIDE,
    ("GET", "/v3/{project_id}/instances/{instance_id}/ops-window"): _INSIDE,
    ("DELETE", "/v3/{project_id}/instances/{instance_id}/sessions"): _INSIDE,
    ("GET", "/v3/{project_id}/instances/{instance_id}/sessions"): _INSIDE,
    ("GET", "/v3/{project_id}/redis/instances/{instance_id}/databases"): _INSIDE,
    ("DELETE", "/v3/{project_id}/redis/instances/{instance_id}/disabled-commands"): _INSIDE,
    ("GET", "/v3/{project_id}/redis/instances/{instance_id}/disabled-commands"): _INSIDE,
    ("POST", "/v3/{project_id}/redis/instances/{instance_id}/disabled-commands"): _INSIDE,
    ("GET", "/v3/{project_id}/redis/nodes/{node_id}/session-statistics"): _INSIDE,
    ("DELETE", "/v3/{project_id}/redis/nodes/{node_id}/sessions"): _INSIDE,
    ("GET", "/v3/{project_id}/redis/nodes/{node_id}/sessions"): _INSIDE,
    ("POST", "/v3/{project_id}/weak-password-verification"): _INSIDE,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/password"): _USERS,
    ("GET", "/v3/{project_id}/instances/{instance_id}/passwordless-config"): _USERS,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/passwordless-config"): _USERS,
    ("DELETE", "/v3/{project_id}/redis/instances/{instance_id}/db-users"): _USERS,
    ("GET", "/v3/{project_id}/redis/instances/{instance_id}/db-users"): _USERS,
    ("POST", "/v3/{project_id}/redis/instances/{instance_id}/db-users"): _USERS,
    ("PUT", "/v3/{project_id}/redis/instances/{instance_id}/db-users/password"): _USERS,
    ("PUT", "/v3/{project_id}/redis/instances/{instance_id}/db-users/privilege"): _USERS,
    ("DELETE", "/v3/{project_id}/dbcache/mapping"): _CACHE,
    ("POST", "/v3/{project_id}/dbcache/mapping"): _CACHE,
    ("GET", "/v3/{project_id}/dbcache/mappings"): _CACHE,
    ("DELETE", "/v3/{project_id}/dbcache/rule"): _CACHE,
    ("POST", "/v3/{project_id}/dbcache/rule"): _CACHE,
    ("PUT", "/v3/{project_id}/dbcache/rule"): _CACHE,
    ("GET", "/v3/{project_id}/dbcache/rules"): _CACHE,
    ("POST", "/v3/{project_id}/instances/{instance_id}/client-network"): _NETWORK,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/lb"): _NETWORK,
    ("GET", "/v3/{project_id}/instances/{instance_id}/lb/access-control"): _NETWORK,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/lb/access-control"): _NETWORK,
    ("POST", "/v3/{project_id}/instances/{instance_id}/nodes/{node_id}/public-ip"): _NETWORK,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/port"): _NETWORK,
    ("PUT", "/v3/{project_id}/instances/{instance_id}/security-group"): _NETWORK,
    ("GET", "/v3/{project_id}/instances/{instance_id}/ssl-cert/download-link"): _NETWORK,
    ("POST", "/v3/{project_id}/instances/{instance_id}/ssl-option"): _NETWORK,
    ("GET", "/v3/{project_id}/ip-num-requirement"): _NETWORK,
    ("PUT", "/v3/{project_id}/enterprise-projects/quotas"): _ENTERPRISE,
}
"""Method and path of every refused call, and why."""


def _refusal(method: str, reason: str) -> Callable[..., Coroutine[Any, Any, None]]:
    async def refuse() -> None:
        if method == "GET":
            raise ApiError(404, "DBS.280016", f"Resource not found: {reason}.")
        raise ApiError(400, "DBS.212003", f"This operation is not permitted: {reason}.")

    return refuse


_SHOWN = {
    "/v3/{project_id}/enterprise-projects/quotas",
    "/v3/{project_id}/instances/{instance_id}/databases",
}
"""Paths that take other methods: there a refusal stands in the document, so that it tells all of a path that it tells of."""


def _parameters(path: str) -> dict[str, Any]:
    """The path's parameters for the document; the project stands there already."""
    names = [name for name in re.findall(r"\{(\w+)\}", path) if name != "project_id"]
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]}


for (_method, _path), _reason in REFUSED.items():
    router.add_api_route(
        _path, _refusal(_method, _reason), methods=[_method], include_in_schema=_path in _SHOWN, summary="Refused",
        description=f"Always refused: {_reason}.", openapi_extra=_parameters(_path),
    )  # fmt: skip
