"""Why CQL cannot be spoken with a node: what the driver cannot tell is tried out on a connection of our own."""

from __future__ import annotations

import socket
import ssl

from strongroom.engines.base import EngineDenied, EngineError, EngineUnreachable, EngineUnsupported

_SECONDS = 5.0
_OPTIONS = bytes([4, 0, 0, 0, 5, 0, 0, 0, 0])  # a frame that any node answers: what do you speak?
_NAME_DIFFERS = (62, 64)  # OpenSSL's codes: the certificate is for another name, another address


def reason(numeric: str, port: int, name: str, context: ssl.SSLContext | None) -> EngineError | None:
    """What is wrong with TLS, in words that tell what to do; None where it is not TLS that is wrong.

    `name` is what the address calls the node; `context` None: it was spoken to without TLS."""
    try:
        sock = socket.create_connection((numeric, port), _SECONDS)
    except OSError:
        return None
    with sock:
        return _plain(sock, f"{name}:{port}") if context is None else _sealed(sock, f"{name}:{port}", name, context)


def _plain(sock: socket.socket, shown: str) -> EngineError | None:
    """A node that speaks TLS only ends such connections without a word."""
    anything = ssl.create_default_context()
    anything.check_hostname, anything.verify_mode = False, ssl.CERT_NONE
    try:
        anything.wrap_socket(sock).close()
    except OSError:
        return None
    return EngineUnsupported(f"{shown} speaks TLS: the address must begin with cassandras://")


def _stranger(shown: str, why: str) -> EngineDenied:
    return EngineDenied(
        f"{shown} does not take us ({why}): it wants a client's certificate that it trusts, see the options "
        '"certificate" and "key"'
    )


def _sealed(sock: socket.socket, shown: str, name: str, context: ssl.SSLContext) -> EngineError | None:
    began = False
    try:
        with context.wrap_socket(sock, server_hostname=name) as wrapped:
            # With TLS 1.3 we are content with the node by now. It says only after that whether it is with our certificate.
            began = True
            wrapped.sendall(_OPTIONS)
            ended = not wrapped.recv(1)
        if ended:
            return _stranger(shown, "it ends the connection")
    except ssl.SSLCertVerificationError as error:
        advice = 'give its CA as option "ca"'
        if error.verify_code in _NAME_DIFFERS:
            advice = 'reach it by a name that the certificate is for, or set the option "check_hostname" to "no"'
        return EngineDenied(f"the certificate of {shown} is not trusted: {error.verify_message}; {advice}")
    except TimeoutError:
        return None
    except OSError as error:
        why = str(getattr(error, "reason", None) or error.strerror or error).replace("_", " ").lower()
        if began or ("alert" in why and ("certificate" in why or "unknown ca" in why)):
            return _stranger(shown, why)
        return EngineUnreachable(
            f"no TLS with {shown}: {why}; see its client_encryption_options, and whether it wants a client's certificate"
        )
    return None
