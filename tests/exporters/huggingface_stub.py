"""A server of a few lines that answers an upload as the Hugging Face Hub does, and keeps what it was sent."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

TOKEN = "hf_of_the_tests"


class Hub(HTTPServer):
    """The server, with what it was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repository, self.files, self.refuses = None, {}, False

    def close(self):
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        is_user = self.path == "/api/whoami-v2"
        self._answer({"name": "me", "type": "user"} if is_user else {"id": "me/forgot", "sha": "0" * 40})

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        hub, url = self.server, f"{self.server.address}/me/forgot"
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"]} for file in json.loads(content)["files"]]
            self._answer({"files": [file | {"uploadMode": "regular", "shouldIgnore": False} for file in files]})
        elif self.path.endswith("/commit/main"):
            sent = [json.loads(line) for line in content.splitlines()]
            files = [line["value"] for line in sent if line["key"] == "file"]
            hub.files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            self._answer({"commitUrl": f"{url}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None})
        elif self.path == "/api/repos/create":
            named = json.loads(content)
            hub.repository = "/".join(part for part in (named.get("organization"), named["name"]) if part)
            self._answer({"url": url, "name": hub.repository})
        else:
            self._answer({"errors": [], "warnings": []})

    def _answer(self, content):
        forbidden = self.headers.get("Authorization") != f"Bearer {TOKEN}"
        refused = self.server.refuses and self.path != "/api/whoami-v2"
        body = json.dumps(content).encode()
        self.send_response(401 if forbidden else 403 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Print nothing."""


@contextmanager
def serve():
    """Yield a running server."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.close()
