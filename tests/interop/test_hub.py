"""Uploading to a hub and downloading from it, against a stand-in that speaks as much of its protocol as is used."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from retinanet import Predictor, push
from retinanet.card import OURS
from retinanet.cli.main import main
from retinanet.detector import Detector
from retinanet.errors import UserError

TOKEN = "hf_0123456789secret"


class Hub(BaseHTTPRequestHandler):
    """Repositories of commits; a commit is its files by name."""

    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        server.asked.append((self.path, self.headers.get("Authorization")))
        if server.refusal:
            return self.answer(403, {"error": f"{server.refusal} {self.headers.get('Authorization')}"})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": f"{server.address}/me/cells", "name": "me/cells"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.answer(200, {"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{server.address}/lfs/{entry['oid']}"}}
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {}
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = server.large[value["oid"]]
            commit = hashlib.sha1(body).hexdigest()
            server.commits |= {commit: files, "main": files}
            server.heads["main"] = commit
            address = f"{server.address}/me/cells/commit/{commit}"
            return self.answer(200, {"success": True, "commitOid": commit, "commitUrl": address})
        if "/tag/" in self.path:
            if json.loads(body)["tag"] in server.heads:
                return self.answer(409, {"error": "Tag reference exists already"})
            server.heads[json.loads(body)["tag"]] = self.path.rpartition("/")[2]
            return self.answer(200, {})
        return self.answer(404, {"error": self.path})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers.get("Authorization") is None  # the store of large files is another host
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self.answer(200, {})

    def do_GET(self):
        path, server = self.path.partition("?")[0], self.server
        name = path.partition("/resolve/")[2]
        if name:
            revision, _, name = name.partition("/")
        else:
            revision = path.replace("/tree/", "/revision/").partition("/revision/")[2]
        commit = server.heads.get(revision, revision)
        if commit not in server.commits:
            return self.answer(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        files = server.commits[commit]
        if "/tree/" in path:
            sizes = {one: len(content) for one, content in files.items()}
            entries = [{"type": "file", "path": one, "size": size, "oid": "0"} for one, size in sizes.items()]
            return self.answer(200, entries)
        if not name:
            return self.answer(
                200, {"id": "me/cells", "sha": commit, "siblings": [{"rfilename": one} for one in files]}
            )
        etag = hashlib.sha256(files[name]).hexdigest()
        return self.answer(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def answer(self, code, content, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, which is where the hub's library looks, with a cache and a token of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.large, server.commits, server.heads, server.refusal = [], {}, {}, {}, ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(trained, tmp_path):
    """A copy of a run, whose card may be written."""
    return Path(shutil.copytree(trained, tmp_path / "mine" / "cells"))


def test_a_model_goes_up_and_comes_down(hub, model, data, tmp_path, capsys):
    words = ["push", str(model), "me/cells", "--license", "cc-by-4.0", "--tag", "v1"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "me/cells@v1" in told.out and TOKEN not in told.out + told.err
    assert "push: me/cells: README.md" in told.err and "model.safetensors 1.9 MB" in told.err
    assert "push: not uploaded:" in told.err and "state.pt" in told.err and "curves.png" in told.err
    files = hub.commits["main"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert all(files[name] == (model / name).read_bytes() for name in files)
    assert {who for _, who in hub.asked} == {f"Bearer {TOKEN}"}
    assert not any(TOKEN.encode() in content for content in files.values())

    first = Detector.load("me/cells@v1").net.state_dict()
    other = Detector.load(model)
    with torch.no_grad():
        other.net.heads.cls.output.bias += 1
    other.save(model)
    commit = push(str(model), "me/cells").revision  # the licence is still the card's
    assert "license: cc-by-4.0" in hub.commits["main"]["README.md"].decode()
    now, then = (Detector.load(f"me/cells@{revision}").net for revision in (commit, "v1"))
    assert torch.equal(then.heads.cls.output.bias, first["heads.cls.output.bias"])
    assert torch.equal(now.heads.cls.output.bias, other.net.heads.cls.output.bias)
    assert Predictor.load("me/cells@v1").class_names == ("disc", "square")
    assert main(["predict", "me/cells@v1", f"{data}/test", "--output", "out", "--device", "cpu"]) == 0
    with pytest.raises(UserError, match=r"no model in me/cells@v2: .*RevisionNotFoundError"):
        Predictor.load("me/cells@v2")


def test_a_dry_run_asks_nobody(hub, model, tmp_path, capsys):
    folder = tmp_path / "dry"
    result = push(str(model), "me/cells", license="apache-2.0", dry_run=str(folder))
    assert hub.asked == [] and sorted(path.name for path in folder.iterdir()) == sorted(result.sizes)
    assert str(result) == f"nothing was uploaded; what me/cells would hold is in {folder}"
    assert result.sizes["model.safetensors"] == (model / "model.safetensors").stat().st_size
    assert Detector.load(folder).spec == Detector.load(model).spec
    text = (folder / "README.md").read_text()
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "apache-2.0" and 'Predictor.load("me/cells")' in text
    card.validate()  # the rules are the hub's; here, that the request is what it expects
    assert hub.asked[-1][0] == "/api/validate-yaml"
    assert str(tmp_path) not in text
    with pytest.raises(UserError, match=r"--dry_run .*dry: expected a new or empty folder"):
        push(str(model), "me/cells", dry_run=str(folder))


def test_a_refusal_is_told_without_the_token(hub, model, capsys):
    hub.refusal = "you are not who you say:"
    assert main(["push", str(model), "me/cells"]) == 2
    error = capsys.readouterr().err
    assert "me/cells could not be uploaded (" in error and "set HF_TOKEN" in error and TOKEN not in error
    assert "the card states no licence" in error


def test_a_tag_stays_where_it_is(hub, model):
    push(str(model), "me/cells", tag="v1")
    with pytest.raises(UserError, match=r"me/cells@\w+ is uploaded, but it could not be named v1 \(.*exists already"):
        push(str(model), "me/cells", license="mit", tag="v1")
    assert b"license: mit" in hub.commits["main"]["README.md"]
    assert hub.commits[hub.heads["v1"]] != hub.commits["main"]


def test_mistakes_are_told_before_anything_is_written(hub, model, tmp_path):
    before = (model / "README.md").read_bytes()
    for name in ("cells", "me/cells/best", "me/cells@v1", "../cells"):
        with pytest.raises(UserError, match="expected owner/name"):
            push(str(model), name)
    with pytest.raises(UserError, match="license 'Apache 2': expected the hub's spelling"):
        push(str(model), "me/cells", license="Apache 2")
    with pytest.raises(UserError, match="tag 'a b'"):
        push(str(model), "me/cells", tag="a b")
    with pytest.raises(UserError, match="no model in"):
        push(str(tmp_path), "me/cells")
    with pytest.raises(UserError, match=r"--reports .*: expected a folder with evaluation\.json"):
        push(str(model), "me/cells", reports=[str(tmp_path)])
    assert (model / "README.md").read_bytes() == before
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is damaged or was replaced"):
        push(str(model), "me/cells")
    (model / "README.md").write_text(before.decode().replace(OURS, ""))
    assert hub.asked == []
