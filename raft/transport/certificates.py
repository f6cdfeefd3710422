"""What a certificate says of a server, and the contexts that ask for one (docs/transports.md).

What is bound is the server's id, not a host name. An id stands in the certificate's subject
alternative names, as a URI `raft:server:<id>` with the id percent-encoded.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from raft.errors import InvalidConfigError
from raft.logs import get_logger
from raft.types import ServerID

logger = get_logger(__name__)

_URI_PREFIX = "raft:server:"
_MOST_TURNS = 10  # of a handshake with oneself, which takes two
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL")

_Path = str | os.PathLike[str]


# ---- ids in certificates ----


def server_uri(server_id: ServerID) -> str:
    """Return the URI that names a server in a certificate; any id can be written so."""
    return _URI_PREFIX + quote(server_id, safe="")


def certificate_ids(certificate: Mapping[str, Any]) -> frozenset[ServerID]:
    """Return the ids that a certificate names, given as `ssl.SSLObject.getpeercert` does.

    Only URIs as `server_uri` writes them count, letter by letter: a host name says what a
    certificate is for in a browser, and every web server of the company has one.
    """
    ids = set()
    for kind, name in certificate.get("subjectAltName", ()):
        if kind == "URI" and name.startswith(_URI_PREFIX):
            server_id = unquote(name[len(_URI_PREFIX) :])
            if server_id and server_uri(server_id) == name:  # written in one way only
                ids.add(server_id)
    return frozenset(ids)


# ---- contexts ----


@dataclass(frozen=True, slots=True)
class MutualTLS:
    """The two contexts of a server: one for those who dial it, one for those it dials.

    `from_files` makes them as a rule. Contexts of your own must ask the peer for a certificate,
    leave host names alone and speak TLS 1.2 or later; a breach is an `InvalidConfigError`.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise `InvalidConfigError` unless both contexts want proof; a context can be changed."""
        for side, foreign in (
            ("server", ssl.PROTOCOL_TLS_CLIENT),
            ("client", ssl.PROTOCOL_TLS_SERVER),
        ):
            context = getattr(self, side)
            if not isinstance(context, ssl.SSLContext) or context.protocol == foreign:
                raise InvalidConfigError(f"{side} is no ssl.SSLContext for the {side}'s side")
            if context.verify_mode is not ssl.CERT_REQUIRED:
                raise InvalidConfigError(
                    f"the {side} context does not ask for a certificate, so anybody could join:"
                    " set verify_mode = ssl.CERT_REQUIRED"
                )
            if context.check_hostname:
                raise InvalidConfigError(
                    f"the {side} context checks host names, but certificates name server ids:"
                    " set check_hostname = False"
                )
            if context.minimum_version < ssl.TLSVersion.TLSv1_2:
                raise InvalidConfigError(
                    f"the {side} context allows versions before TLS 1.2:"
                    " set minimum_version = ssl.TLSVersion.TLSv1_3"
                )

    @classmethod
    def from_files(
        cls,
        certificate: _Path,
        key: _Path,
        authority: _Path,
        password: str | None = None,
        *,
        revoked: _Path | None = None,
    ) -> MutualTLS:
        """Return contexts for TLS 1.3 from three PEM files, or four.

        Args:
            certificate: this server's, then those between it and the authority.
            key: its private key, encrypted with `password` if that is given.
            authority: the certificates whose word on peers counts. They need to be the cluster's
                own: each server that they name is a member for TLS.
            revoked: the authority's list of certificates that count no more (CRL). It ends, too:
                renew and reload it in time.

        Raises:
            InvalidConfigError: a file cannot be read, or holds something else; or the certificate
                has expired, is not valid yet, or is of another authority than the one given.
        """
        made = cls._load(certificate, key, authority, password, revoked)
        _warn_of_readers(key)
        try:
            made.own_certificate()
        except InvalidConfigError as exc:
            where = f"certificate {certificate} with authority {authority}"
            raise InvalidConfigError(f"{where}: {exc}") from exc
        return made

    @classmethod
    def _load(
        cls,
        certificate: _Path,
        key: _Path,
        authority: _Path,
        password: str | None,
        revoked: _Path | None = None,
    ) -> MutualTLS:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        server.num_tickets = 0  # connections live long: nobody resumes a session
        for context in (server, client):
            context.verify_mode = ssl.CERT_REQUIRED
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            try:
                # Without a password OpenSSL would ask for one at the terminal, and wait.
                context.load_cert_chain(certificate, key, password or "")
            except OSError as exc:
                raise InvalidConfigError(
                    f"certificate {certificate} with key {key} cannot be used: {reason_of(exc)}"
                ) from exc
            try:
                context.load_verify_locations(authority)
            except OSError as exc:
                raise InvalidConfigError(
                    f"authority {authority} cannot be used: {reason_of(exc)}"
                ) from exc
            if revoked is not None:
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
                try:
                    context.load_verify_locations(revoked)
                except OSError as exc:
                    raise InvalidConfigError(
                        f"list of revoked certificates {revoked} cannot be used: {reason_of(exc)}"
                    ) from exc
        return cls(server, client)

    def own_certificate(self) -> Mapping[str, Any]:
        """Return this server's certificate, as one's peers see it who trust the same authority.

        Raises:
            InvalidConfigError: they would refuse it; it has expired, say, or is not valid yet.
        """
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.client.wrap_bio(to_client, to_server, server_side=False)
        waiting = [client, self.server.wrap_bio(to_server, to_client, server_side=True)]
        try:
            for _ in range(_MOST_TURNS):
                for side in waiting.copy():
                    try:
                        side.do_handshake()
                        waiting.remove(side)
                    except ssl.SSLWantReadError:
                        pass  # the other one's turn
            return client.getpeercert() or {}
        except ssl.SSLError as exc:
            why = getattr(exc, "verify_message", None) or reason_of(exc)
            raise InvalidConfigError(
                f"no peer with these files would accept this server's certificate: {why}"
            ) from exc


def _warn_of_readers(key: _Path) -> None:
    """Warn of a private key that others can read: they can pass for this server."""
    if os.stat(key).st_mode & 0o077:
        logger.warning("others may read the private key: chmod 600 path=%s", os.fspath(key))


def reason_of(error: OSError) -> str:
    """Return what OpenSSL says, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        if error.reason in _NO_TLS:
            return "it does not speak TLS"
        return error.reason.replace("_", " ").lower()
    return str(error)


def end_of(certificate: Mapping[str, Any]) -> float | None:
    """Return when a certificate ends, in seconds since 1970, None if it does not say."""
    until = certificate.get("notAfter")
    return None if until is None else float(ssl.cert_time_to_seconds(until))
