"""A store behind a server: asked as MLflow's own client asks, with all its variables."""

import base64
import ssl
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import mlflow
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lightning_unlearn.tracking import store
from lightning_unlearn.tracking.store import open_store, tracking_uri, ui_command

VARIABLES = [
    f"MLFLOW_TRACKING_{name}" for name in ("INSECURE_TLS", "SERVER_CERT_PATH", "USERNAME", "PASSWORD", "TOKEN")
]


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.logins.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"OK")

    def do_POST(self):
        self.do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """File of a certificate that only its owner trusts, with its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return file


@pytest.fixture
def server(certificate, monkeypatch):
    """An HTTPS server of this process, and MLflow as if none of its variables were set."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    server = ThreadingHTTPServer(("localhost", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket, server.logins = context.wrap_socket(server.socket, server_side=True), []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
def test_a_certificate_is_trusted_as_mlflow_is_told_to(server, certificate, monkeypatch):
    address = f"https://localhost:{server.server_port}"
    with pytest.raises(ValueError, match=r"CERTIFICATE_VERIFY_FAILED.*MLFLOW_TRACKING_SERVER_CERT_PATH"):
        open_store(address)
    mlflow.set_tracking_uri(address)
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert store.is_reachable()
    monkeypatch.delenv("MLFLOW_TRACKING_INSECURE_TLS")
    assert not store.is_reachable()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    assert store.is_reachable()


def test_a_login_in_the_address_reaches_the_server_and_is_never_shown(server, certificate, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    with pytest.raises(ValueError, match="cannot be opened") as refused:  # OK is no list of experiments
        open_store(f"https://me:se%2Fcret@localhost:{server.server_port}")
    assert set(server.logins) == {f"Basic {base64.b64encode(b'me:se/cret').decode()}"}
    shown = [str(refused.value), str(refused.value.__cause__), tracking_uri(), ui_command()]
    assert all("cret" not in text and f"localhost:{server.server_port}" in text for text in (shown[0], *shown[2:]))
    assert "cret" not in shown[1]
