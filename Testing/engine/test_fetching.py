"""Models from an address: whatever a server does, what is not the file that was meant is never opened."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import ssl
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import tiny_quicknat
from medsegai.cli import main
from medsegai.errors import Cancelled, InputError, ModelError
from medsegai.io import fetching
from medsegai.models import importing
from medsegai.models.index import ModelIndex
from medsegai.models.json_fields import from_json
from medsegai.progress import Progress

CONTENT = bytes(range(256)) * 4000
HASH = hashlib.sha256(CONTENT).hexdigest()
MOST = len(CONTENT) + 1000


class Server:
    """An https server on loopback. `answers` says what each path does; `asked` holds what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, Callable[[Any], None]] = {}
        self.asked: list[tuple[str, str | None]] = []
        authority = trustme.CA()
        self.trusted = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.trusted)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Range")))
                with contextlib.suppress(OSError):
                    outer.answers[self.path.partition("?")[0]](self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"https://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def sending(
    content: bytes, upto: int | None = None, ranges: bool = True, length: bool = True
) -> Callable[[Any], None]:
    """Sends a file, or its beginning only, from where it was asked for."""

    def answer(handler: Any) -> None:
        asked = handler.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and ranges else 0
        if begin >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if begin else 200)
        if length:
            handler.send_header("Content-Length", str(len(content) - begin))
        handler.end_headers()
        handler.wfile.write(content[begin:upto])
        handler.wfile.flush()
        handler.connection.close()

    return answer


def refusing(code: int, **headers: str) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 16))


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture
def server(https: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, trusted by this computer, with no answers yet."""
    monkeypatch.setenv("SSL_CERT_FILE", str(https.trusted))
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0.01)
    https.answers.clear()
    https.asked.clear()
    return https


def load(server: Server, target: Path, path: str = "/model.zip", most: int = MOST) -> None:
    fetching.fetch(f"{server.address}{path}", HASH, target, most, lambda there, total: None)


# One file


@pytest.mark.parametrize("length", [True, False])
def test_a_file_is_loaded(length: bool, server: Server, tmp_path: Path) -> None:
    server.answers["/model.zip"] = sending(CONTENT, length=length)
    heard: list[tuple[int, int | None]] = []
    url = f"{server.address}/model.zip?token=secret"
    fetching.fetch(url, HASH.upper(), tmp_path / "x.zip", MOST, lambda *seen: heard.append(seen))
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert heard[-1] == (len(CONTENT), len(CONTENT) if length else None)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize("cut", [1, 300_000, len(CONTENT) - 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_load_that_breaks_goes_on(cut: int, ranges: bool, server: Server, tmp_path: Path) -> None:
    """Each answer ends after `cut` bytes; a server that begins anew each time never gets to the end."""
    server.answers["/model.zip"] = sending(CONTENT, cut, ranges)
    with pytest.raises(InputError, match="broke off"):
        load(server, tmp_path / "x.zip")
    assert (tmp_path / "x.zip.part").read_bytes() == CONTENT[:cut]
    server.answers["/model.zip"] = sending(CONTENT, ranges=ranges)
    load(server, tmp_path / "x.zip")
    assert server.asked[-1][1] == f"bytes={cut}-"
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert not (tmp_path / "x.zip.part").exists()


def test_a_connection_that_breaks_is_made_again(server: Server, tmp_path: Path) -> None:
    steps = iter([300_000, 700_000, None])
    server.answers["/model.zip"] = lambda handler: sending(CONTENT, next(steps))(handler)
    load(server, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == CONTENT
    assert [begin for _, begin in server.asked] == [None, "bytes=300000-", "bytes=700000-"]


@pytest.mark.parametrize("there", [CONTENT, CONTENT + b"more", b"another" * 9])
def test_what_lies_there_of_an_earlier_try_is_not_trusted(
    there: bytes, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "x.zip.part").write_bytes(there)
    server.answers["/model.zip"] = sending(CONTENT)
    if there.startswith(b"another"):
        with pytest.raises(ModelError, match="not the expected file"):
            load(server, tmp_path / "x.zip")
        assert list(tmp_path.iterdir()) == []
    load(server, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == CONTENT


def test_another_file_is_deleted_unopened(server: Server, tmp_path: Path) -> None:
    server.answers["/model.zip"] = sending(CONTENT[:-1] + b"!")
    with pytest.raises(ModelError, match=r"SHA-256 is [0-9a-f]{64}, not .* deleted and not opened"):
        load(server, tmp_path / "x.zip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer", [endless, sending(bytes(2 * MOST)), sending(bytes(2 * MOST), length=False)]
)
def test_what_is_too_large_is_left(
    answer: Callable[[Any], None], server: Server, tmp_path: Path
) -> None:
    server.answers["/model.zip"] = answer
    with pytest.raises(ModelError, match=r"more than 1\.0 MB"):
        load(server, tmp_path / "x.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(fetching, "QUIET_SECONDS", 0.3)

    def silent(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        over.wait(20)

    server.answers["/model.zip"] = silent
    with pytest.raises(InputError, match="cannot be downloaded"):
        load(server, tmp_path / "x.zip")
    over.set()


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LIES = {
    "nothing": b"",
    "another protocol": b"\x00\x01 220 smtp\r\n\r\n",
    "a status that is none": b"HTTP/1.1 abc\r\n\r\n",
    "a version that is none": b"HTTP/9.9 200 OK\r\n\r\nx",
    "a long status": b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
    "many headers": OK + b"".join(b"X%d: y\r\n" % n for n in range(300)) + b"\r\nx",
    "a long header": OK + b"X: " + b"y" * 70_000 + b"\r\n\r\nx",
    "a size of many digits": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    "a size that is none": OK + b"Content-Length: -5\r\n\r\nx",
    "a chunk that ends": CHUNKED + b"5\r\nab",
    "a chunk without a size": CHUNKED + b"zz\r\nab\r\n",
    "a chunk below nothing": CHUNKED + b"-5\r\nab\r\n",
    "a huge chunk": CHUNKED + b"f" * 20 + b"\r\nab\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "only promises": b"HTTP/1.1 100 Continue\r\n\r\n" * 200,
    "a redirect to nowhere": b"HTTP/1.1 302 Found\r\n\r\n",
    "a redirect with a password": b"HTTP/1.1 302 Found\r\nLocation: https://me:word@localhost/x\r\n\r\n",
    "too many": b"HTTP/1.1 429 Too Many\r\nRetry-After: 9999\r\nContent-Length: 0\r\n\r\n",
}


def saying(content: bytes) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.wfile.write(content)
        handler.wfile.flush()
        handler.connection.close()

    return answer


@pytest.mark.parametrize("name", LIES)
def test_what_is_not_http_is_not_a_fault_of_this_computer(
    name: str, server: Server, tmp_path: Path
) -> None:
    """It was a traceback, or a file that could not be written."""
    server.answers["/model.zip"] = server.answers["/index.json"] = saying(LIES[name])
    with pytest.raises((InputError, ModelError)) as caught:
        load(server, tmp_path / "x.zip")
    words = str(caught.value)
    assert words.startswith((f"{server.address}/model.zip", "The address contains"))
    assert len(words.splitlines()) == 1
    assert "word@" not in words
    assert not (tmp_path / "x.zip").exists()
    with contextlib.suppress(InputError):
        assert len(fetching.fetch_text(f"{server.address}/index.json", MOST)) <= 1


def test_an_index_that_drips_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TEXT_SECONDS", 0.1)
    server.answers["/index.json"] = endless
    with pytest.raises(InputError, match=r"takes more than|has more than"):
        fetching.fetch_text(f"{server.address}/index.json", 1 << 40)


@pytest.mark.parametrize("proxy", ["http://proxy:port", "http://me:secret@127.0.0.1:1", "::::"])
def test_a_proxy_that_cannot_be_used_is_said(
    proxy: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(InputError, match=r"proxy|cannot be downloaded") as caught:
        load(server, tmp_path / "x.zip")
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert server.asked == []


def test_an_address_may_have_letters_of_all_languages(server: Server, tmp_path: Path) -> None:
    server.answers["/mod%C3%A8le.zip"] = sending(CONTENT)
    load(server, tmp_path / "x.zip", "/modèle.zip")
    server.answers["/mod%C3%A8le.zip"] = sending(CONTENT)
    load(server, tmp_path / "y.zip", "/mod%C3%A8le.zip")
    with pytest.raises(InputError, match="is not an address"):
        fetching.check_address("https://modèle.example/x")


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 451, 500, 503])
def test_what_the_server_refuses_is_said(code: int, server: Server, tmp_path: Path) -> None:
    server.answers["/model.zip"] = refusing(code)
    with pytest.raises(InputError, match=str(code)) as caught:
        load(server, tmp_path / "x.zip", "/model.zip?token=secret")
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "target", ["http://localhost/x", "ftp://localhost/x", "file:///etc/passwd", "http://[::1"]
)
def test_no_redirect_leaves_https(target: str, server: Server, tmp_path: Path) -> None:
    server.answers["/model.zip"] = refusing(302, Location=target)
    with pytest.raises(InputError, match=r"redirects|is not encrypted|is not an address"):
        load(server, tmp_path / "x.zip")
    assert list(tmp_path.iterdir()) == []


def test_redirects_are_followed_but_not_for_ever(server: Server, tmp_path: Path) -> None:
    server.answers["/model.zip"] = refusing(302, Location="/there")
    server.answers["/there"] = sending(CONTENT)
    load(server, tmp_path / "x.zip")
    server.answers["/there"] = refusing(302, Location="/model.zip")
    with pytest.raises(InputError, match="302: the server redirects too often"):
        load(server, tmp_path / "y.zip")
    assert len(server.asked) < 20


def test_a_server_that_is_not_known_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    server.answers["/model.zip"] = sending(CONTENT)
    with pytest.raises(InputError, match="certificate"):
        load(server, tmp_path / "x.zip")
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://host/x",
        "ftp://host/x",
        "file:///x",
        "https://",
        "https://me:word@host/x",
        "https://host/a b",
        "x",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetching.fetch(url, HASH, tmp_path / "x", MOST, lambda there, total: None)
    assert "word" not in str(caught.value).replace("password", "")


def test_what_a_slow_server_sends_is_counted_at_once(server: Server, tmp_path: Path) -> None:
    """Ctrl-C waits for the next step, so a step must not wait for a whole block."""
    counted = threading.Event()

    def slow(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT[:10])
        handler.wfile.flush()
        counted.wait(3)
        handler.wfile.write(CONTENT[10:])

    server.answers["/slow"] = slow
    steps: list[int] = []

    def step(there: int, whole: int | None) -> None:
        steps.append(there)
        counted.set()

    fetching.fetch(server.address + "/slow", HASH, tmp_path / "model", MOST, step)
    assert steps[0] == 10


def test_a_stop_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.answers["/model.zip"] = sending(CONTENT)

    def stop(there: int, total: int | None) -> None:
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        fetching.fetch(f"{server.address}/model.zip", HASH, tmp_path / "x", MOST, stop)
    assert (tmp_path / "x.part").stat().st_size > 0


def test_a_stopped_command_says_how_to_resume(
    server: Server,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answers["/model.zip"] = sending(CONTENT)

    def stop(self: Progress) -> None:
        raise Cancelled("Stopped by the user. Nothing was written.")

    monkeypatch.setattr(Progress, "check", stop)
    assert main(["models", "fetch", f"{server.address}/model.zip", "--sha256", HASH, "-q"]) == 130
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert [path.name for path in models.rglob("*.part")] == ["model.zip.part"]


# Models


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A zip archive of a tiny model."""
    folder = tmp_path_factory.mktemp("archive") / "tiny"
    tiny_quicknat.write_model(folder)
    path = folder.parent / "tiny.zip"
    with zipfile.ZipFile(path, "w") as file:
        for part in sorted(folder.iterdir()):
            file.write(part, f"tiny/{part.name}")
        file.writestr("tiny/NOTES.txt", "not needed")
    return path.read_bytes()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's models lie."""
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def listed(server: Server, archive: bytes, **changes: object) -> dict[str, object]:
    entry = {
        "id": "tiny-2",
        "url": f"{server.address}/tiny.zip",
        "sha256": hashlib.sha256(archive).hexdigest(),
        "bytes": len(archive),
        "name": "Tiny",
        "version": "1",
        "licence": "CC0",
        "modalities": ["MR"],
    }
    return entry | changes


def test_a_model_is_fetched_and_imported(
    server: Server,
    archive: bytes,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first time by a process of its own, as users do; it starts in seconds."""
    server.answers["/tiny.zip"] = sending(archive)
    digest = hashlib.sha256(archive).hexdigest()
    words = ["models", "fetch", f"{server.address}/tiny.zip"]
    assert main(words) == 2
    assert "--sha256 is missing" in capsys.readouterr().err
    assert server.asked == []
    assert main([*words, "--sha256", digest]) == 0
    assert "Imported tiny" in capsys.readouterr().out
    assert [path.name for path in models.iterdir()] == ["tiny"]
    assert {path.name for path in (models / "tiny").iterdir()} == {
        "card.json",
        *(f"{view}.safetensors" for view in tiny_quicknat.CLASSES),
    }
    monkeypatch.setattr(importing, "_stage_confined", importing._stage)
    assert main([*words, "--sha256", digest]) == 4
    assert "--replace" in capsys.readouterr().err
    asked = len(server.asked)
    assert main([*words, "--sha256", digest, "--id", "other", "-q"]) == 0
    assert len(server.asked) == asked, "what was complete is not downloaded again"
    assert {path.name for path in models.iterdir()} == {"tiny", "other"}


def test_what_is_not_a_model_is_not_imported(
    server: Server, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers["/x.zip"] = sending(CONTENT)
    assert main(["models", "fetch", f"{server.address}/x.zip", "--sha256", "0" * 64]) == 4
    assert "deleted and not opened" in capsys.readouterr().err
    assert main(["models", "fetch", f"{server.address}/x.zip", "--sha256", HASH]) == 4
    said = capsys.readouterr().err
    assert "not a zip archive" in said
    assert "another one does not help" in said
    assert main(["models", "fetch", "http://localhost/x.zip", "--sha256", HASH]) == 3
    assert "not encrypted" in capsys.readouterr().err
    assert list(models.iterdir()) == []


@pytest.mark.usefixtures("imports_here")
def test_a_model_is_fetched_by_its_name_in_an_index(
    server: Server,
    archive: bytes,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = json.dumps({"models": [listed(server, archive)]})
    server.answers |= {"/tiny.zip": sending(archive), "/index.json": sending(text.encode())}
    monkeypatch.setenv("MEDSEGAI_INDEX", f"{server.address}/index.json")
    assert main(["models", "list"]) == 0
    assert server.asked == []  # nothing is loaded unless it is asked for
    assert main(["models", "index"]) == 0
    assert "tiny-2" in capsys.readouterr().out
    assert main(["models", "index", "--json"]) == 0
    index = from_json(ModelIndex, json.loads(capsys.readouterr().out))
    assert index.find("tiny-2").modalities == ("MR",)
    assert main(["models", "fetch", "tiny-3"]) == 4
    assert "It lists tiny-2" in capsys.readouterr().err
    assert main(["models", "fetch", "tiny-2"]) == 0
    assert [path.name for path in models.iterdir()] == ["tiny-2"]
    server.answers["/tiny.zip"] = sending(archive + b"more")
    assert main(["models", "fetch", "tiny-2", "--replace"]) == 4
    assert "more than" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"models": [{}]}',
        '{"models": 3}',
        '{"modells": []}',
        '{"models": [{"id": "../x", "url": "https://h/x", "sha256": "HASH", "bytes": 1}]}',
        '{"models": [{"id": "x", "url": "http://h/x", "sha256": "HASH", "bytes": 1}]}',
        '{"models": [{"id": "x", "url": "https://h/x", "sha256": "1", "bytes": 1}]}',
        '{"models": [{"id": "x", "url": "https://h/x", "sha256": "HASH", "bytes": -1}]}',
    ],
)
@pytest.mark.parametrize("at", ["url", "file"])
def test_what_is_not_an_index_is_named(
    at: str, content: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = content.replace("HASH", HASH)
    server.answers["/index.json"] = sending(content.encode() or b" ")
    (tmp_path / "index.json").write_text(content)
    place = f"{server.address}/index.json" if at == "url" else str(tmp_path / "index.json")
    assert main(["models", "index", "--index", place]) == 4
    assert "index.json" in capsys.readouterr().err


def test_an_index_of_many_models_is_read_at_once() -> None:
    """Each name was compared with each other."""
    entries = [
        {"id": f"m{n}", "url": "https://h/x", "sha256": HASH.upper(), "bytes": 1}
        for n in range(20_000)
    ]
    index = from_json(ModelIndex, {"models": entries})
    assert index.find("m19999").sha256 == HASH.upper()
    with pytest.raises(ModelError, match="It lists ") as caught:
        index.find("m199x9")
    assert "m19999" in str(caught.value) or "m1999" in str(caught.value)
    assert len(str(caught.value)) < 300
    with pytest.raises(ModelError, match="and 19988 more are listed several times"):
        from_json(ModelIndex, {"models": entries * 2})


def test_an_index_that_cannot_be_opened_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / "none.json", Path("x" * 300)):
        assert main(["models", "index", "--index", str(place)]) in (3, 4)
        assert str(place) in capsys.readouterr().err


def test_without_an_index_nothing_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "index", "--index", ""]) == 2
    assert "MEDSEGAI_INDEX" in capsys.readouterr().err
