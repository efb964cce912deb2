"""Finding the server: the data folder's credentials.json, the environment, and the options that go before both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.cli.errors import NotConnected
from strongroom.settings import CREDENTIALS_FILE

_ENVIRONMENT = {
    "endpoint": "STRONGROOM_ENDPOINT",
    "project_id": "STRONGROOM_PROJECT_ID",
    "access_key": "STRONGROOM_ACCESS_KEY",
    "secret_key": "STRONGROOM_SECRET_KEY",
}
_CA_FILE = "STRONGROOM_CA_FILE"


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the server is and how to enter it."""

    endpoint: str
    project_id: str
    access_key: str
    secret_key: str = field(repr=False)
    ca_file: str | None = None  # whom to trust for TLS, and nobody else; None: whom the machine trusts


def find(data_dir: str | None, endpoint: str | None, project_id: str | None, environ: Mapping[str, str]) -> Connection:
    """The connection that the options name; without a data folder the environment's. Raises NotConnected."""
    found = _of_folder(Path(data_dir)) if data_dir else {key: environ.get(name, "") for key, name in _ENVIRONMENT.items()}
    ca_file = environ.get(_CA_FILE) or found.pop("ca_file", None) or None
    found |= {key: value for key, value in (("endpoint", endpoint), ("project_id", project_id)) if value}
    missing = [_ENVIRONMENT[key] for key in _ENVIRONMENT if not found.get(key)]
    if missing:
        where = f"{data_dir}/{CREDENTIALS_FILE} lacks what else" if data_dir else "it is not said where the server is:"
        raise NotConnected(f"{where} {', '.join(missing)} would say.\nGive --data DIR of a server on this machine, or set these.")
    if not found["endpoint"].startswith(("http://", "https://")):
        raise NotConnected(f"the endpoint {found['endpoint']!r} is no URL: give http://HOST:PORT or https://HOST:PORT")
    keys = (found["project_id"], found["access_key"], found["secret_key"])
    return Connection(found["endpoint"].rstrip("/"), *keys, ca_file)


def _of_folder(folder: Path) -> dict[str, str]:
    path = folder / CREDENTIALS_FILE
    try:
        read = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotConnected(
            f"there is no {path}: start the server once with `strongroom serve --data {folder}`, or give its folder"
        ) from None
    except OSError as error:
        raise NotConnected(
            f"{path} cannot be read ({error.strerror}): run this as the server's user, or set STRONGROOM_*"
        ) from error
    except ValueError:
        raise NotConnected(f"{path} is damaged: put back what it held, or set STRONGROOM_… instead") from None
    if not isinstance(read, dict):
        raise NotConnected(f"{path} is damaged: put back what it held, or set STRONGROOM_… instead")
    return {key: str(read.get(key) or "") for key in (*_ENVIRONMENT, "ca_file")}
