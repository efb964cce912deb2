"""One real Cassandra node that speaks TLS only, wants a certificate of its clients, and whose JMX asks Cassandra's roles
(CassandraLogin, AuthorizationProxy) who is there. Between nodes, and so in every restore's stream, TLS is asked for too.

One test has a second node, whose CQL is open; JMX speaks TLS there, and asks a file of passwords.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12
from cryptography.x509 import load_pem_x509_certificate

from integration.test_engine_behaviour import Job, Memory
from strongroom.backups import exporting, rehearsal
from strongroom.backups.registered import find_instance
from strongroom.engines.base import EngineDenied, EngineError, EngineUnreachable, EngineUnsupported, Target
from strongroom.engines.cassandra import CassandraEngine
from strongroom.engines.cassandra.jmx import Jmx
from strongroom.engines.cassandra.options import JmxEntry, Trust
from support.cassandra_house import CassandraHouse
from support.cassandra_node import LIB, CassandraNode, require_cassandra
from support.cassandra_samples import drop_all, fill_small, make_small, picture
from support.certificates import Authority, Signed
from support.server import ServerProcess

pytestmark = pytest.mark.timeout(300)

PASSWORD, KEEPER, KEEPER_PASSWORD = "cassandra", "keeper of JMX", "it's\ta secret; ü"
STORE = "store-password"
ALL = "org.apache.cassandra.db:type=StorageService"


@dataclass(frozen=True)
class Place:
    """The node, who signed its certificate, and what it takes of clients."""

    node: CassandraNode
    authority: Authority
    client: Signed

    @property
    def tls(self) -> dict[str, str]:
        return {"ca": self.authority.pem, "certificate": self.client.certificate, "key": self.client.key}

    @property
    def options(self) -> dict[str, str]:
        return {**self.tls, "jmx_user": KEEPER, "jmx_password": KEEPER_PASSWORD}

    def target(self, **changed: Any) -> Target:
        return Target(self.node.url, PASSWORD, {**self.options, **changed})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require_cassandra()
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority("the cluster's")
    server, client = authority.sign("node", "127.0.0.1"), authority.sign("strongroom")
    for name, text in (("server.pem", server.key + server.certificate), ("ca.pem", authority.pem)):
        (folder / name).write_text(text)
    for name, one in (("client.pem", client), ("server-only.pem", server)):
        (folder / name).write_text(one.key + one.certificate)
    told = f"""
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
  keystore: {folder}/server.pem
  truststore: {folder}/ca.pem
"""
    yaml = (
        f"client_encryption_options:\n  enabled: true\n  optional: false\n  require_client_auth: true{told}"
        f"server_encryption_options:\n  internode_encryption: all\n  optional: false\n  require_client_auth: true{told}"
    )
    context = ssl.create_default_context(cadata=authority.pem)
    context.check_hostname = False
    context.load_cert_chain(folder / "client.pem")
    (folder / "login").write_text("CassandraLogin { org.apache.cassandra.auth.CassandraLoginModule REQUIRED; };\n")
    properties = {
        "com.sun.management.jmxremote.authenticate": "true", "cassandra.jmx.remote.login.config": "CassandraLogin",
        "java.security.auth.login.config": f"{folder}/login",
        "cassandra.jmx.authorizer": "org.apache.cassandra.auth.jmx.AuthorizationProxy",
    }  # fmt: skip
    node = CassandraNode(folder / "node", auth=True, yaml=yaml, properties=properties, tls=context).start()
    try:
        with node.session() as session:
            session.execute(f'CREATE ROLE "{KEEPER}" WITH LOGIN = true AND PASSWORD = $${KEEPER_PASSWORD}$$')
            session.execute(f"GRANT SELECT, EXECUTE ON MBEAN '{ALL}' TO \"{KEEPER}\"")
            for name in ("nobody", "looker"):
                session.execute(f"CREATE ROLE {name} WITH LOGIN = true AND PASSWORD = 'n'")
            session.execute(f"GRANT SELECT ON MBEAN '{ALL}' TO looker")
        yield Place(node, authority, client)
    finally:
        node.kill()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[CassandraHouse]:
    with CassandraHouse(tmp_path) as opened:
        yield opened


@pytest.fixture(autouse=True)
def empty(place: Place) -> None:
    with place.node.session() as session:
        drop_all(session)


def test_all_that_is_done_with_a_cluster_is_done_with_this_one(
    place: Place, house: CassandraHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered, two backups, a restore, a test restore, an export, leftovers; what it was registered with is nowhere plain."""
    monkeypatch.setenv("STRONGROOM_CASSANDRA", str(LIB))
    node = place.node
    with node.session() as session:
        make_small(session)
        session.execute("CREATE INDEX plain_name ON shop.plain (name)")
        fill_small(session, 1)
        before = node.snapshots()  # of other tests
        instance = house.register(node, options=place.options)
        house.backup(instance)
        house.at_rest()
        (anchor,) = node.snapshots() - before
        left = anchor.rsplit("-", 1)[0] + "-" + "0" * 32
        with Jmx("127.0.0.1", node.jmx_port, entry=JmxEntry(KEEPER, KEEPER_PASSWORD)) as jmx:
            jmx.snapshot(left, "1d", ["shop"])
        fill_small(session, 2)
        seen = picture(session)
        key, told = house.backup(instance)
        assert told["adopted_bytes"] > 0
        house.at_rest()
        assert node.snapshots().isdisjoint({anchor, left})
        drop_all(session)
        house.restore(key, instance)
        assert picture(session) == seen
        view = house.ended(rehearsal.rehearse(house.ctx, house.project, lambda conn: None, backup=key))
        assert (view.state, view.error) == ("DONE", None)
        exporting.export(house.ctx, house.project, key, tmp_path / "export", Job())
        assert "CREATE TABLE shop.plain" in (tmp_path / "export" / "schema.cql").read_text()
        tables = CassandraEngine().list_tables(house.ctx.target(house_row(house, instance)))
        assert list(tables["shop"]) == ["plain"]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [one for one in (KEEPER_PASSWORD, place.client.key[40:90]) if one.encode() in data], path
    shown = ssl.create_default_context()
    shown.check_hostname, shown.verify_mode = False, ssl.CERT_NONE
    with shown.wrap_socket(socket.create_connection((node.address, node.storage_port), 5)) as wrapped:
        assert wrapped.version(), "what nodes say to one another is under TLS"


def test_it_is_registered_by_the_command_line(place: Place, tmp_path: Path) -> None:
    """Files and standard input give what is secret. Neither the server's log nor its answers nor its folder hold it."""
    files = {"ca": place.authority.pem, "certificate": place.client.certificate, "key": place.client.key}
    words = ["instance", "add", "cluster", "--engine", "cassandra", "--address", place.node.url, "--password-stdin"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        words += ["--option", f"{name}=@{tmp_path}/{name}"]
    words += ["--option", f"jmx_user={KEEPER}", "--option", "jmx_password=@-"]
    with place.node.session() as session:
        make_small(session)
        fill_small(session, 1, 50)
    with ServerProcess(tmp_path / "data") as server:
        shown = server.cli(*words, stdin=f"{PASSWORD}\n{KEEPER_PASSWORD}\n")
        assert "options" not in shown
        server.cli("backup", "create", "cluster", "first", "--wait")
    kept = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    secrets = [KEEPER_PASSWORD, place.client.key[40:90]]
    assert not [one for one in secrets for data in [*kept, server.log.encode()] if one.encode() in data]


def house_row(house: CassandraHouse, instance: str) -> Any:
    with house.catalog.read() as conn:
        return find_instance(conn, house.project, instance)


def test_what_enters_jmx_is_not_seen_by_others(place: Place) -> None:
    with Jmx("127.0.0.1", place.node.jmx_port, entry=JmxEntry(KEEPER, KEEPER_PASSWORD)) as jmx:
        folder = Path(f"/proc/{jmx._process.pid}")
        for name in ("cmdline", "environ"):
            assert KEEPER_PASSWORD.encode() not in (folder / name).read_bytes()
        assert "secret" not in repr(jmx._entry)


@pytest.mark.parametrize(
    ("user", "password", "words"),
    [
        (None, None, r'asks for a password: see the options "jmx_user" and "jmx_password"'),
        (KEEPER, "wrong-one", "refuses the user 'keeper of JMX' or the password"),
        ("nobody", "n", f"the user 'nobody' use the attributes LocalHostId, .* of {ALL}.* GRANT SELECT ON MBEAN '{ALL}' TO"),
        ("looker", "n", f"the operation takeSnapshot of {ALL}.* GRANT EXECUTE ON MBEAN '{ALL}' TO the role"),
    ],
)
def test_who_may_not_use_jmx_is_told_what_is_missing(place: Place, user: str | None, password: str | None, words: str) -> None:
    entry = {} if user is None or password is None else {"jmx_user": user, "jmx_password": password}
    with place.node.session() as session:
        make_small(session)
    with pytest.raises(EngineDenied, match=words) as raised:
        captured(Target(place.node.url, PASSWORD, {**place.tls, **entry}))
    assert "wrong-one" not in str(raised.value)


def test_wrong_tls_is_told(place: Place) -> None:
    engine, stranger = CassandraEngine(), Authority("another")
    plain = Target(place.node.url.replace("cassandras:", "cassandra:"), PASSWORD)
    own = {"ca": place.authority.pem}
    foreign = stranger.sign("strongroom")
    cases: list[tuple[Target, type[EngineError], str]] = [
        (plain, EngineUnsupported, "speaks TLS: the address must begin with cassandras://"),
        (place.target(ca=stranger.pem), EngineDenied, 'is not trusted: .*; give its CA as option "ca"'),
        (Target(place.node.url, PASSWORD), EngineDenied, 'is not trusted: .*; give its CA as option "ca"'),
        (Target(place.node.url, PASSWORD, own), EngineDenied, "wants a client's certificate"),
        (place.target(certificate=foreign.certificate, key=foreign.key), EngineDenied, "wants a client's certificate"),
        (replace(place.target(), password="wrong"), EngineDenied, "refuses the user or the password"),
        (named(place.target()), EngineDenied, "is not trusted: Hostname mismatch.*check_hostname"),
    ]
    for target, kind, words in cases:
        with pytest.raises(kind, match=words):
            engine.probe(target)
    assert engine.probe(named(place.target(check_hostname="no"))).version.startswith("5.")
    (node,) = engine.nodes(place.target())
    assert node.address == "127.0.0.1"


def test_tls_with_a_port_that_does_not_speak_it_is_told(place: Place) -> None:
    """Here that of JMX, which answers something else."""
    wrong = place.target()
    address = wrong.address.replace(f":{place.node.cql_port}", f":{place.node.jmx_port}")
    with pytest.raises(EngineUnreachable, match=r"no TLS with 127\.0\.0\.1:.*client_encryption_options"):
        CassandraEngine().probe(replace(wrong, address=address))


@pytest.fixture
def filed(place: Place, tmp_path: Path) -> Iterator[CassandraNode]:
    """The second node."""
    for name, text in (("password", "filed pass\nwatcher look\n"), ("access", "filed readwrite\nwatcher readonly\n")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(text)
    properties = {
        "com.sun.management.jmxremote.authenticate": "true", "com.sun.management.jmxremote.password.file": f"{tmp_path}/password",
        "com.sun.management.jmxremote.access.file": f"{tmp_path}/access", "com.sun.management.jmxremote.ssl": "true",
        "com.sun.management.jmxremote.ssl.need.client.auth": "true", **key_stores(place, tmp_path),
    }  # fmt: skip
    node = CassandraNode(tmp_path / "node", properties=properties, outlives_kills=False).start()
    yield node
    node.kill()


def test_jmx_that_speaks_tls_and_asks_a_file(place: Place, filed: CassandraNode) -> None:
    node = filed
    with node.session() as session:
        make_small(session)
        fill_small(session, 1, 50)
    options = {**place.tls, "jmx_user": "filed", "jmx_password": "pass", "jmx_tls": "yes"}

    def capture(**changed: str) -> Memory:
        return captured(Target(node.url, options={**options, **changed}))

    with pytest.raises(EngineDenied, match=r"the operation takeSnapshot .*make the user readwrite"):
        capture(jmx_user="watcher", jmx_password="look")
    assert len(capture().kept) > 5
    with pytest.raises(EngineDenied, match="refuses the user 'filed' or the password"):
        capture(jmx_password="other")
    with pytest.raises(EngineUnreachable, match='If it speaks TLS set the option "jmx_tls" to "yes"'):
        Jmx("127.0.0.1", node.jmx_port, entry=JmxEntry("filed", "pass"))
    own = Trust(place.authority.pem, place.client.certificate, place.client.key)
    with pytest.raises(EngineDenied, match=r'certificate of JMX at .* is not trusted: .*give its CA as option "ca"'):
        Jmx("127.0.0.1", node.jmx_port, entry=JmxEntry("filed", "pass", replace(own, ca=Authority("x").pem)))
    with pytest.raises(EngineUnreachable, match='wants a certificate \\("certificate" and "key"\\)'):
        Jmx("127.0.0.1", node.jmx_port, entry=JmxEntry("filed", "pass", Trust(place.authority.pem)))


def key_stores(place: Place, folder: Path) -> Mapping[str, str]:
    """Java's own, of what the node's PEM files hold."""
    pem = (place.node.folder.parent / "server.pem").read_bytes()
    key, certificate = load_pem_private_key(pem, None), load_pem_x509_certificate(pem)
    packed = pkcs12.serialize_key_and_certificates(b"node", key, certificate, None, BestAvailableEncryption(STORE.encode()))  # type: ignore[arg-type]
    (folder / "keys.p12").write_bytes(packed)
    done = subprocess.run(
        [str(shutil.which("keytool")), "-importcert", "-noprompt", "-alias", "ca", "-storepass", STORE, "-storetype", "PKCS12",
         "-file", str(place.node.folder.parent / "ca.pem"), "-keystore", str(folder / "trust.p12")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        "javax.net.ssl.keyStore": f"{folder}/keys.p12", "javax.net.ssl.keyStorePassword": STORE,
        "javax.net.ssl.trustStore": f"{folder}/trust.p12", "javax.net.ssl.trustStorePassword": STORE,
    }  # fmt: skip


def named(target: Target) -> Target:
    """The same node by a name that its certificate does not hold."""
    return replace(target, address=target.address.replace("127.0.0.1", "localhost"))


def captured(target: Target) -> Memory:
    engine, kept = CassandraEngine(), Memory()
    (node,) = engine.nodes(target)
    with tempfile.TemporaryDirectory() as scratch:
        engine.capture(replace(target, node=node.id), kept, Job(), scratch)
    return kept
