"""What the server says of itself in /openapi.json, asked by schemathesis: values that fit and values that do not, at every call.

The path's project and instance are real, so that requests come past the door. Left out are: registering instances and webhooks,
since the server would enter, or post to, whatever address was made up; unregistering the only one; and one check: that whatever
fits the schema is accepted, since an id of the right form need not exist.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.catalog import tables as t
from support.server import ServerProcess

SECONDS = 40
EXAMPLES = 12  # of each call and phase


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Without rate limits: they are another test's."""
    limits = {"STRONGROOM_RATE_PER_USER": "off", "STRONGROOM_RATE_PER_ADDRESS": "off"}
    with ServerProcess(tmp_path_factory.mktemp("schemathesis") / "data", limits) as running:
        yield running
        assert running.stop() == 0


def an_instance(server: ServerProcess) -> str:
    """Registered, but not there any more: its backups fail."""
    key, now = f"{'a' * 32}in14", time.time()
    with server.catalog() as catalog, catalog.write() as conn:
        conn.execute(
            t.instance.insert().values(
                id=key, project=server.owner.project, name="cache", engine="redis", address="redis://127.0.0.1:1", mode="Single",
                version="7.0.15", state="REGISTERED", labels="{}", created_at=now, updated_at=now,
            )
        )  # fmt: skip
    return key


def test_no_call_breaks_what_its_document_says(server: ServerProcess, tmp_path: Path) -> None:
    """No 500, no status, type or field that is not documented, nobody let in without a proof, and bad values are refused."""
    config = tmp_path / "schemathesis.toml"
    instance = an_instance(server)
    config.write_text(f'[parameters]\n"path.project_id" = "{server.owner.project}"\n"path.instance_id" = "{instance}"\n')
    endpoint = server.credentials["endpoint"]
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{endpoint}/openapi.json",
            "--header", f"X-Auth-Token:{server.token()}", "--checks", "all",
            "--exclude-checks", "positive_data_acceptance",
            "--exclude-operation-id-regex", "^((create|register|unregister|delete)_instance|add_webhook)",
            "--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--max-time", str(SECONDS), "--no-shrink",
            "--continue-on-failure", "--seed", "1", "--generation-database", "none", "--warnings", "off",
            "--request-timeout", "20", "--generation-with-security-parameters", "false",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Traceback" not in server.log
