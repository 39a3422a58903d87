"""A stand-in for the hub itself on this machine's loopback, as far as a download asks it."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from tests.hub_cache import COMMIT

# A repository's name -> status and X-Error-Code, as the hub answers.
REFUSALS = {
    "org/gated": (403, "GatedRepo"),
    "org/private": (401, "RepoNotFound"),
    "org/gone": (404, "RepoNotFound"),
    "org/broken": (500, ""),
}


@contextlib.contextmanager
def serve(files: Path, repo_id: str) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as the main branch of a repository; yields the address and what is asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
            asked.append(path)
            self.answer(*respond(path, files, repo_id))

        def answer(self, status, headers, body):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def respond(path: str, files: Path, repo_id: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for what was asked."""
    owner, _, rest = path.removeprefix("api/models/").partition("/")
    name, _, rest = rest.partition("/")
    asked = f"{owner}/{name}"
    if asked in REFUSALS:
        status, code = REFUSALS[asked]
        return status, {"X-Error-Code": code}, b""
    if asked != repo_id:
        return 404, {"X-Error-Code": "RepoNotFound"}, b""
    what, _, rest = rest.partition("/")
    revision, _, file = rest.partition("/")
    if revision not in ("main", COMMIT, ""):
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    if what == "tree":
        return as_json([_entry(entry) for entry in sorted(files.iterdir())])
    if what in ("", "revision"):
        names = [{"rfilename": entry.name} for entry in sorted(files.iterdir())]
        return as_json({"id": repo_id, "sha": COMMIT, "siblings": names})
    if not (files / file).is_file():
        return 404, {"X-Error-Code": "EntryNotFound"}, b""
    content = (files / file).read_bytes()
    etag = hashlib.sha256(content).hexdigest()
    return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content


def as_json(content: object) -> tuple[int, dict[str, str], bytes]:
    """A good answer."""
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {
        "type": "file",
        "path": file.name,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
