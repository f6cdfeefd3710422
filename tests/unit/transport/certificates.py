"""Certificates for tests: an authority that issues whatever a test wants to be shown."""

import datetime
from itertools import count

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raft.transport.certificates import MutualTLS, server_uri

_PEM = serialization.Encoding.PEM
_PKCS8 = serialization.PrivateFormat.PKCS8
_NOW = datetime.datetime.now(datetime.UTC)
_DAY = datetime.timedelta(days=1)
_EARLIER = _NOW - 2 * _DAY


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject, issuer, key, until, since=_EARLIER):
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


class Authority:
    """A certificate authority; files go below `folder`, `file` is its own certificate."""

    def __init__(self, folder, name="cluster ca"):
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._numbers = count(1)
        builder = _builder(name, name, self._key, _NOW + _DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM))

    def issue(self, *ids, names=None, expired=False, early=False, password=None, days=60):
        """Return the files of a certificate and its key; `names` are used in place of `ids`."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = _NOW - _DAY if expired else _NOW + days * _DAY
        # The common name must not count.
        builder = _builder("b", self._name, key, until, since=_NOW + _DAY if early else _EARLIER)
        if names is None:
            names = [x509.UniformResourceIdentifier(server_uri(each)) for each in ids]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        stem = self._folder / f"{self._name}-{next(self._numbers)}"
        certificate, key_file = stem.with_suffix(".crt"), stem.with_suffix(".key")
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM))
        encryption = (
            serialization.NoEncryption()
            if password is None
            else serialization.BestAvailableEncryption(password.encode())
        )
        key_file.write_bytes(key.private_bytes(_PEM, _PKCS8, encryption))
        return certificate, key_file

    def contexts(self, *ids, trust=None, **options):
        """Return the contexts of a server with such a certificate; it trusts this authority.

        Whether anybody would accept them is for the test.
        """
        return MutualTLS._load(*self.issue(*ids, **options), (trust or self).file, None)

    def revoke(self, certificate):
        """Return the file of a list in which this certificate is the only one."""
        number = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
        revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(_NOW)
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self._name))
            .last_update(_EARLIER)
            .next_update(_NOW + 30 * _DAY)
            .add_revoked_certificate(revoked.build())
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"{self._name}-{next(self._numbers)}.crl"
        path.write_bytes(made.public_bytes(_PEM))
        return path
