"""What an instance is registered with beside its address: how its TLS is checked, and who enters JMX.

| option | |
|---|---|
| `ca` | certificates (PEM text) of the authorities to trust instead of the machine's own list |
| `certificate`, `key` | ours, where nodes ask clients for one (PEM texts; the key without a password) |
| `check_hostname` | `no`: a node's certificate need not be for the name or address that it is reached by; else `yes` |
| `jmx_user`, `jmx_password` | who enters JMX, where it asks |
| `jmx_tls` | `yes`: JMX speaks TLS, which is checked by the same `ca` and shown the same `certificate`; else `no` |

All but `jmx_…` are for TLS and wrong without it, so that nobody believes in a protection that is not there.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from strongroom.engines.base import EngineUnsupported, Target

SANDBOX = "sandbox"
"""True for our own throw-away node: one node for one copy of everything, whose files stay as they were streamed, to be compared.
Registered options are texts, so that nobody can ask for it."""

_NAMES = ("ca", "certificate", "key", "check_hostname", "jmx_user", "jmx_password", "jmx_tls")
_OF_TLS = _NAMES[:4]


@dataclass(frozen=True, slots=True)
class Trust:
    """What the other side of a TLS connection is checked by, and what it is shown. PEM texts."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = field(default=None, repr=False)
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """For connections of this process. Raises EngineUnsupported naming the option that is wrong."""
        try:
            context = ssl.create_default_context(cadata=self.ca)
        except (ssl.SSLError, ValueError) as error:
            raise EngineUnsupported('the option "ca" is not a certificate in PEM text') from error
        context.check_hostname = self.check_hostname
        if self.certificate is not None and self.key is not None:
            self.key_bytes()  # OpenSSL would ask the terminal for the password of an encrypted one
            try:
                with _in_memory(f"{self.certificate}\n{self.key}\n".encode()) as path:
                    context.load_cert_chain(path)
            except (ssl.SSLError, ValueError) as error:
                raise EngineUnsupported('the options "certificate" and "key" are no PEM texts that belong together') from error
        return context

    def key_bytes(self) -> bytes:
        """The key as PKCS #8 in DER; nothing if there is none. Raises EngineUnsupported."""
        if self.key is None:
            return b""
        try:
            key = load_pem_private_key(self.key.encode(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # their texts are not ours to show
            raise EngineUnsupported('the option "key" is no private key in PEM text, or has a password') from None
        return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True)
class JmxEntry:
    """How JMX is entered; nothing of it is needed where it is as Cassandra is delivered."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    trust: Trust | None = None  # None: without TLS


def trust_of(target: Target, *, tls: bool) -> Trust | None:
    """What a session with CQL is checked by; None without TLS. Raises EngineUnsupported, also for options that are not known."""
    options = target.options
    unknown = sorted(name for name in options if name not in _NAMES and not (name == SANDBOX and options[name] is True))
    if unknown:
        raise EngineUnsupported(f"unknown options for a Cassandra target: {', '.join(unknown)}; known are {', '.join(_NAMES)}")
    idle = [name for name in _OF_TLS if name in options]
    if idle and not tls and not _flag(target, "jmx_tls", default=False):
        raise EngineUnsupported(f'the option "{idle[0]}" is for TLS: the address must begin with cassandras://')
    if ("certificate" in options) != ("key" in options):
        raise EngineUnsupported('the options "certificate" and "key" go together')
    if ("jmx_user" in options) != ("jmx_password" in options):
        raise EngineUnsupported('the options "jmx_user" and "jmx_password" go together')
    return _trust(target) if tls else None


def jmx_entry_of(target: Target) -> JmxEntry:
    """Raises EngineUnsupported."""
    trust = _trust(target) if _flag(target, "jmx_tls", default=False) else None
    return JmxEntry(target.options.get("jmx_user"), target.options.get("jmx_password"), trust)


def _trust(target: Target) -> Trust:
    ca, certificate, key = (target.options.get(name) for name in ("ca", "certificate", "key"))
    return Trust(ca, certificate, key, _flag(target, "check_hostname", default=True))


def _flag(target: Target, name: str, *, default: bool) -> bool:
    text = target.options.get(name, "yes" if default else "no")
    if text not in ("yes", "no"):
        raise EngineUnsupported(f'the option "{name}" is yes or no')
    return bool(text == "yes")


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path that only this process opens, of a file that is on no disk."""
    file = os.memfd_create("strongroom", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as out:
            out.write(data)
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)
