"""Answers what W&B's own programs ask of a server when a run is synchronised, and keeps what they send."""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WandbServer:
    """A server of this machine that takes everything for the run of nobody in particular.

    Attributes:
        runs: Variables of every request to create or change a run.
        history: Rows of the run's log.
        uploaded: Files by name.
        sweeps: Variables of every request to register a sweep.
    """

    def __init__(self):
        self.runs, self.history, self.uploaded, self.sweeps = [], [], {}, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path, request):
        """The answer to a request in JSON."""
        if path.endswith("/file_stream"):
            rows = request.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.history += map(json.loads, rows)
            return {}
        asked = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
        variables = request.get("variables") or {}
        return {"data": getattr(self, f"_{asked[1]}", lambda _: {})(variables) if asked else {}}

    def _UpsertBucket(self, variables):
        self.runs.append(variables)
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "someone"}}
        run = {"id": "r", "name": variables["name"], "displayName": "shown", "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": {**run, "sweepName": None}, "inserted": True}}

    def _Viewer(self, _):
        return {
            "viewer": {"id": "u", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
        }

    def _UpsertSweep(self, variables):
        self.sweeps.append(variables)
        project = {"id": "p", "name": variables["projectName"], "entity": {"id": "e", "name": "someone"}}
        return {"upsertSweep": {"sweep": {"name": "sweep0", "project": project}, "configValidationWarnings": []}}

    def _CreateArtifact(self, variables):
        latest = {"id": "a", "versionIndex": 0}
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": latest}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateRunFiles(self, variables):
        files = [{"name": name, "uploadUrl": f"{self.address}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            def body(self):
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

            def reply(self, content):
                text = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_PUT(self):
                server.uploaded[self.path[1:]] = self.body()
                self.reply({})

            def do_POST(self):
                content = self.body()
                try:
                    request = json.loads(content)
                except ValueError:  # measurements of its own
                    request = {}
                self.reply(server.answer(self.path, request))

            def log_message(self, *_):
                pass

        return Handler
