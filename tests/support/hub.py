"""A stand-in of the Hugging Face hub: repositories with one revision, kept in memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        *_, action = path = self.path.partition("?")[0].strip("/").split("/")
        if self.headers["Authorization"] != "Bearer hf_secret":
            self.answer({"error": "Invalid username or password."}, 401)
        elif action == "create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.files.setdefault(name, {})
            self.answer({"url": f"http://127.0.0.1:{self.server.server_port}/{name}"})
        elif action == "validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "preupload" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": file, **modes} for file in files]})
        else:  # api/models/USER/NAME/commit/main
            files = self.server.files["/".join(path[2:4])]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://127.0.0.1:{self.server.server_port}/{'/'.join(path[2:4])}/commit/0"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(path[2:4] if path[0] == "api" else path[:2])
        files = self.server.files.get(name)
        if files is None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif "tree" in path:
            entries = [{"path": file, "size": len(x), "oid": "0"} for file, x in files.items()]
            self.answer([{"type": "file", **entry} for entry in entries])
        elif path[0] == "api":
            siblings = [{"rfilename": file} for file in files]
            self.answer({"id": name, "sha": "0" * 40, "siblings": siblings})
        else:  # USER/NAME/resolve/REVISION/FILE
            self.answer(files["/".join(path[4:])])

    do_HEAD = do_GET

    def answer(self, content, status=200, headers=()):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(monkeypatch, cache):
    """Serve an empty hub to `huggingface_hub`, with a cache of its own.

    Yields:
      {name: files}, and the paths that were asked for.
    """
    from huggingface_hub import close_session, constants

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.files, server.asked = {}, []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        # The library reads the environment when it is imported.
        endpoint = f"http://127.0.0.1:{server.server_port}"
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("no_proxy", "*")
        close_session()
        yield server.files, server.asked
        close_session()
        server.shutdown()
        thread.join()
