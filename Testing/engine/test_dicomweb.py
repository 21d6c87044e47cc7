"""Archives: a real Orthanc gives and takes, and what a broken one answers is one clear message."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests as http_requests

import dicom_files
from medsegai.cli import main
from medsegai.errors import Cancelled, InputError, OutputError, RequestError
from medsegai.io import dicomweb, read_volume
from medsegai.io.dicomweb import PASSWORD, TOKEN, USER, Archive, Series, check_uid
from medsegai.volume import Geometry, Volume

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SECRET = "word-of-the-archive"


@dataclass(frozen=True)
class Orthanc:
    """A real archive on loopback, with one series of a head."""

    url: str
    study: str
    series: str
    scan: Volume
    log: Path


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or not PLUGIN.exists():
        reason = "no Orthanc with DICOMweb: apt-get install orthanc orthanc-dicomweb"
        if os.environ.get("CI") and shutil.which("apt-get"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"me": SECRET},
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        base = f"http://127.0.0.1:{port}"
        _wait_for(base, process, folder / "log")
        voxels = np.random.default_rng(0).integers(0, 200, (7, 6, 5)).astype(np.int16)
        scan = Volume(voxels, Geometry.from_spacing((7, 6, 5), (1.0, 1.5, 2.0)))
        dicom_files.write_series(folder / "scan", scan)
        for file in sorted((folder / "scan").iterdir()):
            sent = http_requests.post(f"{base}/instances", file.read_bytes(), auth=("me", SECRET))
            sent.raise_for_status()
        head = pydicom.dcmread(file)
        yield Orthanc(
            f"{base}/dicom-web", head.StudyInstanceUID, head.SeriesInstanceUID, scan, folder / "log"
        )
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(base: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(http_requests.RequestException):
            http_requests.get(f"{base}/system", auth=("me", SECRET), timeout=2).raise_for_status()
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The credentials of the archive stand in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setenv(USER, "me")
    monkeypatch.setenv(PASSWORD, SECRET)


def test_studies_and_series_are_found(
    orthanc: Orthanc, known: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dicomweb", "find", orthanc.url, "--json", "--modality", "MR"]) == 0
    (study,) = json.loads(capsys.readouterr().out)
    assert study["StudyInstanceUID"] == orthanc.study
    assert main(["dicomweb", "find", orthanc.url, "--patient", "nobody"]) == 0
    assert "Nothing fits" in capsys.readouterr().out
    assert main(["dicomweb", "find", orthanc.url, "--study", orthanc.study]) == 0
    assert orthanc.series in capsys.readouterr().out


def test_a_series_is_fetched_whole(orthanc: Orthanc, known: None, tmp_path: Path) -> None:
    words = ["dicomweb", "fetch", orthanc.url, "--study", orthanc.study, "-o", f"{tmp_path}/scan"]
    assert main(words) == 0
    found = read_volume(tmp_path / "scan")
    np.testing.assert_array_equal(found.voxels, orthanc.scan.voxels)
    np.testing.assert_allclose(found.geometry.ijk_to_ras, orthanc.scan.geometry.ijk_to_ras)
    assert main(words) == 5  # what is there is not touched


def test_a_series_is_segmented_and_the_results_are_stored(
    orthanc: Orthanc,
    known: None,
    model: str,
    requests: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "dicomweb",
        "segment",
        orthanc.url,
        "--study",
        orthanc.study,
        "--series",
        orthanc.series,
    ]
    assert main([*words, "-o", f"{tmp_path}/out", "--model", model, "--store"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "segmentation.seg.nrrd",
        "report.json",
        "seg.dcm",
        "sr.dcm",
    }
    series = Archive(orthanc.url).series(orthanc.study, {})
    assert sorted(item["Modality"] for item in series) == ["MR", "SEG", "SR"]
    seg = next(item["SeriesInstanceUID"] for item in series if item["Modality"] == "SEG")
    Archive(orthanc.url).fetch(Series(orthanc.study, seg), tmp_path / "back", lambda *_: None)
    (stored,) = (tmp_path / "back").iterdir()
    sent, back = pydicom.dcmread(tmp_path / "out" / "seg.dcm"), pydicom.dcmread(stored)
    assert back.SOPInstanceUID == sent.SOPInstanceUID
    np.testing.assert_array_equal(back.pixel_array, sent.pixel_array)
    said = "".join(capsys.readouterr())
    assert SECRET not in said + orthanc.log.read_text()


@pytest.mark.parametrize("how", ["none", "wrong", "netrc"])
def test_credentials_come_from_the_environment_or_a_netrc(
    how: str, orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (USER, PASSWORD, TOKEN):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n" if how == "netrc" else "")
    netrc.chmod(0o600)
    if how == "wrong":
        monkeypatch.setenv(USER, "me")
        monkeypatch.setenv(PASSWORD, "another")
    if how == "netrc":
        assert len(Archive(orthanc.url).studies({}, 5)) == 1
    else:
        with pytest.raises(
            InputError, match=r"responded with 401.*MEDSEGAI_DICOMWEB_USER"
        ) as caught:
            Archive(orthanc.url).studies({}, 5)
        assert "another" not in str(caught.value)


def test_what_there_is_not_is_said(orthanc: Orthanc, known: None, tmp_path: Path) -> None:
    wanted = Series(orthanc.study, "1.2.3")
    with pytest.raises(InputError, match="does not have the series"):
        Archive(orthanc.url).fetch(wanted, tmp_path / "x", lambda *_: None)
    with pytest.raises(InputError, match="responded with 404"):
        Archive(f"{orthanc.url}-elsewhere").studies({}, 5)
    (tmp_path / "x.dcm").write_text("not DICOM")
    with pytest.raises(InputError, match=r"x\.dcm was not sent, because it is not a DICOM file"):
        Archive(orthanc.url).store([tmp_path / "x.dcm"], orthanc.study)


def test_a_stop_leaves_nothing(orthanc: Orthanc, known: None, tmp_path: Path) -> None:
    def stop(done: int, of: int) -> None:
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        Archive(orthanc.url).fetch(Series(orthanc.study, orthanc.series), tmp_path / "x", stop)
    assert list(tmp_path.iterdir()) == []


# Archives that are broken


class Broken:
    """A server whose answers a test decides, by the end of the path."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], None]] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                end = next(end for end in outer.answers if path.endswith(end))
                with contextlib.suppress(OSError):
                    outer.answers[end](self)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/dicom-web"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def broken() -> Iterator[Broken]:
    server = Broken()
    yield server
    server.close()


def answering(content: bytes, kind: str, code: int = 200, more: int = 0) -> Callable[[Any], None]:
    """Sends this; `more` bytes are promised and never come."""

    def answer(handler: Any) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content) + more))
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = True

    return answer


JSON = "application/dicom+json"


def listed(count: int, instances: int = 3) -> bytes:
    """Series as an archive lists them."""
    series = [
        {
            "0020000E": {"vr": "UI", "Value": [f"1.2.3.{number}"]},
            "00080060": {"vr": "CS", "Value": ["MR"]},
            "00201209": {"vr": "IS", "Value": [instances]},
        }
        for number in range(1, count + 1)
    ]
    return json.dumps(series).encode()


@pytest.mark.parametrize("code", [400, 401, 403, 404, 500, 502])
def test_each_refusal_is_one_message(code: int, broken: Broken) -> None:
    broken.answers["/studies"] = answering(b"patient Doe", "text/html", code)
    with pytest.raises(InputError, match=f"responded with {code}") as caught:
        Archive(broken.url).studies({}, 5)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"<html>", b"[1]", b'[{"0020000D": 3}]', b"[[]]"])
def test_an_answer_that_makes_no_sense_is_said(content: bytes, broken: Broken) -> None:
    broken.answers["/studies"] = answering(content, JSON)
    with pytest.raises(InputError, match="does not give its studies"):
        Archive(broken.url).studies({}, 5)


def parts(tmp_path: Path, count: int) -> bytes:
    """A series as multipart, as WADO-RS sends it."""
    shape = (count, 6, 5)
    scan = Volume(np.zeros(shape, np.int16), Geometry.from_spacing(shape, (1, 1, 1)))
    dicom_files.write_series(tmp_path / "made", scan)
    files = [path.read_bytes() for path in sorted((tmp_path / "made").iterdir())]
    shutil.rmtree(tmp_path / "made")
    head = b"--cut\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + file + b"\r\n" for file in files) + b"--cut--\r\n"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("more", [0, 500], ids=["ended", "cut off"])
def test_half_a_multipart_leaves_nothing(
    share: float, more: int, broken: Broken, tmp_path: Path
) -> None:
    whole = parts(tmp_path, 3)
    kind = 'multipart/related; type="application/dicom"; boundary=cut'
    broken.answers["1.2.3/series"] = answering(listed(1), JSON)
    broken.answers["series/1.2.3.1"] = answering(whole[: int(share * len(whole))], kind, more=more)
    with pytest.raises(InputError, match=r"of the 3 files|truncated or invalid|broke"):
        Archive(broken.url).fetch(Series("1.2.3", "1.2.3.1"), tmp_path / "x", lambda *_: None)
    assert list(tmp_path.iterdir()) == []
    broken.answers["series/1.2.3.1"] = answering(whole, kind)
    Archive(broken.url).fetch(Series("1.2.3", "1.2.3.1"), tmp_path / "x", lambda *_: None)
    assert len(list((tmp_path / "x").iterdir())) == 3


def test_a_series_without_end_is_not_fetched(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if every file is the same, which takes no room but all the time there is."""
    monkeypatch.setattr(dicomweb, "MOST_FILES", 5)
    whole = parts(tmp_path, 1)
    kind = 'multipart/related; type="application/dicom"; boundary=cut'
    broken.answers["1.2.3/series"] = answering(listed(1, 1), JSON)
    part = whole.removesuffix(b"--cut--\r\n")
    broken.answers["series/1.2.3.1"] = answering(8 * part + b"--cut--\r\n", kind)
    with pytest.raises(InputError, match="truncated or invalid"):
        Archive(broken.url).fetch(Series("1.2.3", "1.2.3.1"), tmp_path / "x", lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_4000_series_is_listed_in_short(
    broken: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def paged(handler: Any) -> None:
        """Archives give some at a time."""
        begin = int(handler.path.partition("offset=")[2].partition("&")[0] or 0)
        page = json.loads(listed(4000))[begin : begin + 1000]
        answering(json.dumps(page).encode(), JSON)(handler)

    broken.answers["/series"] = paged
    words = ["dicomweb", "fetch", broken.url, "--study", "1.2.3", "-o", f"{tmp_path}/x"]
    assert main(words) == InputError.exit_code
    said = capsys.readouterr().err
    assert "4000 series of images" in said
    assert "--series" in said
    assert said.count("1.2.3.") == 20
    assert (
        main(["dicomweb", "find", broken.url, "--study", "1.2.3", "--json", "--limit", "5000"]) == 0
    )
    assert len(json.loads(capsys.readouterr().out)) == 4000


def test_results_that_are_not_taken_are_said(broken: Broken, tmp_path: Path) -> None:
    shape = (1, 6, 5)
    scan = Volume(np.zeros(shape, np.int16), Geometry.from_spacing(shape, (1, 1, 1)))
    dicom_files.write_series(tmp_path / "made", scan)
    (file,) = (tmp_path / "made").iterdir()
    study = pydicom.dcmread(file).StudyInstanceUID
    for code in (401, 409, 500):
        broken.answers[f"/studies/{study}"] = answering(b"", JSON, code)
        with pytest.raises(OutputError, match=f"responded with {code}"):
            Archive(broken.url).store([file], study)


# Addresses


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://archive/dicom-web", "not encrypted"),
        ("https://me:word@archive/dicom-web", "name or password"),
        ("archive/dicom-web", "not the address"),
        ("ftp://archive", "not the address"),
        ("https://[::1/x", "not the address"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Archive(url)
    assert ":word@" not in str(caught.value)


def test_half_of_the_credentials_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER, "me")
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(RequestError, match="both or neither"):
        Archive("https://archive/dicom-web")


@pytest.mark.parametrize("uid", ["", "1.2.", "../x", "1.2.3?x", "1" * 65, "1.2 3"])
def test_what_is_not_a_uid_never_reaches_an_address(uid: str) -> None:
    with pytest.raises(RequestError, match="not a DICOM UID"):
        check_uid(uid)
