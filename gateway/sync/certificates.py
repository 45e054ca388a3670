"""When the certificates end that the way to the central rests on, as a metric: a certificate that ends unseen
cuts off every gate at once."""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography import x509
from prometheus_client import Gauge

from gateway import log


def note_ends(context: ssl.SSLContext, ca_file: Path | None, client_cert: Path | None, ends: Gauge) -> None:
    """Set ``ends``, labelled by certificate, in seconds since 1970: now for those that were loaded into the
    context, and after each TLS handshake for the central's own."""
    if ca_file is not None:
        _note(ca_file, "authority", ends)
    if client_cert is not None:
        _note(client_cert, "client", ends)

    class Noting(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            told = self.getpeercert() or {}
            if isinstance(end := told.get("notAfter"), str):
                ends.labels("central").set(ssl.cert_time_to_seconds(end))

    context.sslobject_class = Noting


def _note(path: Path, name: str, ends: Gauge) -> None:
    """The first of a file to end: a chain holds for as long as each of its parts."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:  # OpenSSL has taken the file, so there is no fault to stop for
        log.logger("sync").warning("the end of a certificate is not known", file=str(path), reason=str(error))
        return
    ends.labels(name).set(min(each.not_valid_after_utc for each in found).timestamp())
