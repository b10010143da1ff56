"""The Hub: the real client against a stand-in server on this machine, and the model card."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from make_golden import GOLDEN
from showtell.cli import main
from showtell.errors import ArgumentError, NotFoundError
from showtell.hub import model_card, push, resolve
from showtell.storage import read_folder, write_folder

FILES = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


def sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


class StandIn(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP API as huggingface_hub uses for one upload and one download."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.server.calls.append(f"POST {path}")
        if self.headers["Authorization"] != "Bearer hf_good":
            self.refuse(403, "Forbidden")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            known = repo in self.server.repos
            self.server.private |= {repo} if asked.get("visibility") == "private" or asked.get("private") else set()
            self.server.repos.setdefault(repo, {"main": {}})
            self.answer({"url": f"{self.server.address}/{repo}"}, 409 if known else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/branch/(\w+)", path):
            self.server.repos[found[1]].setdefault(found[2], {})
            self.answer({})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/tag/(\w+)", path):
            revisions, tag = self.server.repos[found[1]], json.loads(body)["tag"]
            name = next((name for name in revisions if found[2] in (name, sha(name))), None)
            if name is None or tag in revisions:
                self.refuse(404 if name is None else 409, "RevisionNotFound" if name is None else "TagExists")
            else:
                revisions[tag] = dict(revisions[name])
                self.answer({})
        elif re.fullmatch(r"/api/models/(\w+/[\w-]+)/preupload/(\w+)", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/commit/(\w+)", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repos[found[1]][found[2]][line["value"]["path"]] = content
            oid = sha(found[2])
            self.answer(
                {"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{found[1]}/commit/{oid}"}
            )
        else:
            self.refuse(404, "Unknown")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.calls.append(f"{self.command} {path}")
        found = re.fullmatch(r"(?:/api/models)?/(\w+/[\w-]+)(?:/(?:revision|tree|resolve)/(\w+))?(?:/(.+))?", path)
        repo = found[1] if found else ""
        if repo == "u/strange":
            self.answer(b"<html>Please log in to the hotel's network</html>")
        elif repo == "u/broken":
            self.refuse(500, "InternalError")
        elif repo == "u/gated":
            self.refuse(403, "GatedRepo")
        elif found is None or repo not in self.server.repos or not self.may_see(repo):
            self.refuse(401, "RepoNotFound")
        else:
            revisions = self.server.repos[repo]
            name = next((name for name in revisions if found[2] in (name, sha(name), None)), None)
            if name is None:
                self.refuse(404, "RevisionNotFound")
            else:
                self.serve(path, repo, sha(name), revisions[name], found[3])

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def may_see(self, repo: str) -> bool:
        return repo not in self.server.private or self.headers["Authorization"] == "Bearer hf_good"

    def serve(self, path: str, repo: str, commit: str, files: dict[str, bytes], name: str | None) -> None:
        if "/tree/" in path:
            self.answer([{"type": "file", "path": n, "size": len(d), "oid": sha(n)} for n, d in files.items()])
        elif path.startswith("/api/"):
            self.answer({"id": repo, "sha": commit, "siblings": [{"rfilename": n} for n in files]})
        elif name in files:
            etag = hashlib.sha1(files[name]).hexdigest()
            self.answer(files[name], headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit})
        else:
            self.refuse(404, "EntryNotFound")

    def log_message(self, *_: Any) -> None:
        """Silence."""


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StandIn)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.calls: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CLIENT = """
import json, sys
from showtell import hub
from showtell.errors import ShowtellError
def load(**arguments):
    from make_golden import said
    from showtell import Captioner
    return json.dumps(said(Captioner.from_pretrained(**arguments)))
for function, arguments in json.loads(sys.argv[1]):
    try:
        if function == "load":
            print(json.dumps(load(**arguments)))
            continue
        print(json.dumps(str(getattr(hub, function)(**arguments))))
    except ShowtellError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def client(address: str, home: Path, *calls: tuple[str, dict[str, Any]], **environment: str) -> list[str]:
    """What each call to showtell.hub returned, or its error, in a process of its own: the client reads its
    environment when it is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    settings = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(calls)],
        env={**kept, **settings, "PYTHONPATH": str(Path(__file__).parent), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def captioner(folder: Path) -> Path:
    part = {"name": "x.v1", "class": "m:X", "config": {}}
    config = {"format": "showtell.captioner", "format_version": 1, "weights_dtype": "float32"}
    write_folder(
        folder,
        config={**config, "encoder": part, "decoder": part, "generation": {}},
        tokenizer="{}",
        tensors={},
        card=model_card(title="Test", license="apache-2.0"),
        extra={"training.pt": b"secret"},
    )
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_captioner_goes_to_the_hub_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    folder = captioner(tmp_path / "mine")
    home = tmp_path / "home"
    upload = {"folder": str(folder), "repo_id": "u/dogs", "private": True, "token": "hf_good"}
    fetch = {"source": "u/dogs", "token": "hf_good"}
    address, again, branch, fetched, at_branch, cached, stranger, no_revision, refused = client(
        hub.address,
        home,
        ("push", upload),
        ("push", upload),
        ("push", {**upload, "revision": "v1"}),
        ("resolve", fetch),
        ("resolve", {**fetch, "revision": "v1"}),
        ("resolve", {**fetch, "local_files_only": True}),
        ("resolve", {"source": "u/dogs", "token": "hf_bad", "revision": "v2"}),
        ("resolve", {**fetch, "revision": "v9"}),
        ("push", {**upload, "token": "hf_bad"}),
    )
    assert address == again == branch == f"{hub.address}/u/dogs"
    assert hub.private == {"u/dogs"}
    assert {name: sorted(files) for name, files in hub.repos["u/dogs"].items()} == {"main": FILES, "v1": FILES}
    assert fetched == cached
    assert at_branch != fetched
    for path in (Path(fetched), Path(at_branch)):
        assert sorted(file.name for file in path.iterdir()) == FILES
        assert read_folder(path).config == read_folder(folder).config
    assert stranger.startswith("NotFoundError: there is no folder 'u/dogs' here and the Hub has no repository")
    assert no_revision == "NotFoundError: the Hub's repository 'u/dogs' has no revision 'v9'"
    assert refused.startswith("HubError: the Hub can't be reached or refuses, for 'u/dogs'")
    offline = client(
        hub.address, home, ("resolve", fetch), ("resolve", {"source": "u/cats"}), ("push", upload), HF_HUB_OFFLINE="1"
    )
    assert offline[0] == fetched
    assert offline[1].startswith("NotFoundError: 'u/cats' isn't in the cache")
    assert offline[2] == "HubError: the Hub can't be used while HF_HUB_OFFLINE is set; unset it"


def test_an_upload_is_tagged_loaded_by_its_tag_and_says_the_same(hub: Hub, tmp_path: Path) -> None:
    home, upload = tmp_path / "home", {"repo_id": "u/dogs", "token": "hf_good", "tag": "v1"}
    lstm, attention = (str(GOLDEN / name) for name in ("lstm", "attention"))
    hub.repos["u/other"] = {"main": {"config.json": b'{"model_type": "bert"}', "tokenizer.json": b"{}",
                                     "model.safetensors": b"", "README.md": b"library_name: transformers"}}  # fmt: skip
    hub.repos["u/empty"] = {"main": {"README.md": b"nothing yet"}}
    _, first, again, newest, tagged, offline, other, empty = client(
        hub.address,
        home,
        ("push", {**upload, "folder": lstm}),
        ("load", {"source": "u/dogs", "revision": "v1"}),
        ("push", {**upload, "folder": attention}),
        ("load", {"source": "u/dogs"}),
        ("load", {"source": "u/dogs", "revision": "v1"}),
        ("load", {"source": "u/dogs", "revision": "v1", "local_files_only": True}),
        ("load", {"source": "u/other"}),
        ("load", {"source": "u/empty"}),
    )
    says = {name: json.loads((GOLDEN / name / "says.json").read_bytes()) for name in ("lstm", "attention")}
    assert json.loads(first) == json.loads(tagged) == json.loads(offline) == says["lstm"]
    assert again.startswith("HubError: the Hub can't be reached or refuses, for 'u/dogs'")
    assert json.loads(newest) == says["attention"]
    assert "is no showtell captioner's" in other
    assert other.startswith("FormatError")
    assert empty.startswith("NotFoundError")
    assert "config.json" in empty


def test_only_the_needed_files_are_fetched_and_failures_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    surplus = {"training.pt": b"pickle", "evil.py": b"boom", "sub/config.json": b"{}"}
    hub.repos["u/full"] = {"main": {**dict.fromkeys(FILES, b"{}"), **surplus}}
    nowhere = ["u/gated", "u/absent", "u/broken", "u/strange"]
    fetched, local, *errors, anonymous = client(
        hub.address,
        tmp_path,
        ("resolve", {"source": "u/full"}),
        ("resolve", {"source": "u/absent", "local_files_only": True}),
        *(("resolve", {"source": source}) for source in nowhere),
        ("resolve", {"source": "u/absent", "token": True}),
    )
    assert sorted(path.name for path in Path(fetched).iterdir()) == FILES
    assert [call for call in hub.calls if "training" in call or "evil" in call or "sub/" in call] == []
    assert local.startswith("NotFoundError: 'u/absent' isn't in the cache, and the network isn't to be used")
    assert errors[0].startswith("HubError: the Hub's repository 'u/gated' is gated: ask for access")
    assert errors[1].startswith("NotFoundError: there is no folder 'u/absent' here and the Hub has no repository")
    assert errors[2].startswith("HubError: 'u/broken' isn't in the cache, and the Hub can't be reached or refuses")
    assert errors[3].startswith("HubError: the Hub can't be reached or refuses, for 'u/strange'")
    assert anonymous.startswith("HubError: no Hub token is stored")


def test_a_hub_that_cannot_be_reached_is_said_plainly(hub: Hub, tmp_path: Path) -> None:
    closed = hub.address
    hub.server_close()
    folder = captioner(tmp_path / "mine")
    fetched, pushed = client(
        closed,
        tmp_path / "home",
        ("resolve", {"source": "u/dogs"}),
        ("push", {"folder": str(folder), "repo_id": "u/dogs", "token": "hf_good"}),
    )
    assert fetched.startswith("HubError: 'u/dogs' isn't in the cache, and the Hub can't be reached")
    assert "check the network" in fetched
    assert pushed.startswith("HubError: the Hub can't be reached or refuses, for 'u/dogs'")


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "user" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("user/name") == Path("user/name")
    with pytest.raises(ArgumentError, match="has no revisions"):
        resolve("user/name", revision="v1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/user") == tmp_path / "user"


@pytest.mark.parametrize(
    "source",
    [
        "",
        "./mine",
        "../mine/it",
        "/nowhere/mine",
        "~/nowhere",
        "a/b/c",
        "mine",
        "mine/",
        "a\\b",
        "user/na me",
        "\0",
        "x" * 5000,
        "https://huggingface.co/u/m",
        "u/" + "x" * 300,
        Path("user/name"),
    ],
)
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(source: Any) -> None:
    with pytest.raises(NotFoundError, match="there is no folder"):
        resolve(source)


def test_the_command_pushes_captioners_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def push_instead(folder: Path, *rest: Any, **options: Any) -> str:
        asked.append((read_folder(folder).config, rest, options))
        return "https://hub/u/dogs"

    monkeypatch.setattr("showtell.hub.push", push_instead)
    assert main(["push", str(GOLDEN / "lstm"), "u/dogs", "--private", "--tag", "v1"]) == 0
    assert capsys.readouterr().out == "https://hub/u/dogs\n"
    assert asked[0][0] == read_folder(GOLDEN / "lstm").config
    assert asked[0][1] == ("u/dogs",)
    assert asked[0][2]["private"]
    assert asked[0][2]["tag"] == "v1"
    shutil.copytree(GOLDEN / "lstm", tmp_path / "mixed")
    shutil.copyfile(GOLDEN / "attention" / "model.safetensors", tmp_path / "mixed" / "model.safetensors")
    assert main(["push", str(tmp_path / "mixed"), "u/dogs"]) == 2
    assert "don't fit" in capsys.readouterr().err
    for name in FILES:
        (tmp_path / name).write_text("{}")
    assert main(["push", str(tmp_path), "u/dogs"]) == 2
    assert main(["push", str(tmp_path / "nothing"), "u/dogs"]) == 2
    assert len(asked) == 1
    assert "is no showtell captioner's" in capsys.readouterr().err


@pytest.mark.parametrize("tag", ["", "v 1", 5, "../x", "-v", "a" * 101])
def test_a_tag_is_checked_before_anything_is_uploaded(tag: Any) -> None:
    with pytest.raises(ArgumentError, match="a tag is a short name"):
        push(GOLDEN / "lstm", "u/dogs", tag=tag)


def test_a_readme_that_is_no_card_is_not_uploaded(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "lstm", tmp_path / "mine")
    (tmp_path / "secret.txt").write_text("password")
    (tmp_path / "mine" / "README.md").unlink()
    (tmp_path / "mine" / "README.md").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ArgumentError, match="no model card"):
        push(tmp_path / "mine", "u/dogs")


def test_what_is_no_captioner_or_no_name_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json, tokenizer\.json, model\.safetensors missing"):
        push(tmp_path, "u/m")
    for name in ("", "a/b/c", "u/na me", "u m"):
        with pytest.raises(ArgumentError, match="named like 'user/name'"):
            push(tmp_path, name)
    with pytest.raises(ArgumentError, match="can't be a repository"):
        push(captioner(tmp_path / "a"), "u/--")


def test_the_card_has_what_the_catalogue_of_the_hub_asks_for() -> None:
    text = model_card(
        title='Dogs: "good"\nones',
        repo_id="u/dogs",
        license="cc-by-nc-4.0",
        languages=["en", "de"],
        datasets=["u/photos: 2"],
        data="8,000 photos of dogs.",
        scores={"BLEU-4": 0.21, "CIDEr": 0.5},
        search="beam:3",
        limits="Cats.",
    )
    assert text == model_card(
        title='Dogs: "good"\nones',
        repo_id="u/dogs",
        license="cc-by-nc-4.0",
        languages=("en", "de"),
        datasets=("u/photos: 2",),
        data="8,000 photos of dogs.",
        scores={"BLEU-4": 0.21, "CIDEr": 0.5},
        search="beam:3",
        limits="Cats.",
    )
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "showtell",
        "pipeline_tag": "image-to-text",
        "language": ["en", "de"],
        "license": "cc-by-nc-4.0",
        "datasets": ["u/photos: 2"],
        "tags": ["image-captioning"],
    }
    assert '# Dogs: "good" ones\n' in card.text
    assert 'Captioner.from_pretrained("u/dogs")' in card.text
    assert "| BLEU-4 | 0.210 |\n| CIDEr | 0.500 |" in card.text
    assert "Captions found with `beam:3`." in card.text
    assert card.text.endswith("## Limits\n\nCats.\n")


def test_a_card_shows_the_signature_of_its_scores_below_them() -> None:
    line = "metrics:BLEU-4|images:3|search:given"
    text = model_card(title="Mine", scores={"BLEU-4": 0.21}, signature=line)
    assert (
        text.split("## Scores")[1]
        .split("## Limits")[0]
        .endswith(f"| BLEU-4 | 0.210 |\n\nSignature, to compare with scores that have the same one: `{line}`\n\n")
    )
    assert line not in model_card(title="Mine", signature=line)


def test_a_card_needs_nothing_but_a_title() -> None:
    card = ModelCard(model_card(title="Mine"))
    assert card.data.license is None
    assert card.data.datasets is None
    for absent in ("## Scores", "## Data"):
        assert absent not in card.text
    assert "wrong about numbers" in card.text


@pytest.mark.parametrize("odd", ["no", "a: b # c", "- 1", "a\nb", "a\x7fb\x85", "a\ufffeb", "\U0001f600"])
def test_a_card_takes_any_name_of_a_licence(odd: str) -> None:
    assert ModelCard(model_card(title="Mine", license=odd)).data.license == odd
