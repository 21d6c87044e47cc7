"""Archives: a real Orthanc gives and takes, and what a broken one answers is one clear message."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests as http_requests

import dicom_files
from medsegai.cli import main
from medsegai.commands import dicomweb as command
from medsegai.errors import Cancelled, InputError, RequestError
from medsegai.io import read_volume
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
    of_study = ["dicomweb", "find", orthanc.url, "--study", orthanc.study]
    assert main(of_study) == 0
    assert orthanc.series in capsys.readouterr().out
    assert main([*of_study, "--patient", "nobody"]) == 2
    assert "--patient chooses among studies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("date", "right"),
    [
        ("20260131", True),
        ("20260101-20261231", True),
        ("20260101-", True),
        ("-20260101", True),
        ("2026-01-01", False),
        ("20261331", False),
        ("today", False),
    ],
)
def test_a_date_is_one_of_dicom(
    date: str, right: bool, orthanc: Orthanc, known: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Archives find nothing for another one, which looks as if there were no studies."""
    assert main(["dicomweb", "find", orthanc.url, f"--date={date}"]) == (0 if right else 2)
    assert ("is not a date in DICOM" in capsys.readouterr().err) != right


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


# Addresses


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://archive/dicom-web", "not encrypted"),
        ("https://me:word@archive/dicom-web", "name or password"),
        ("archive/dicom-web", "not the address"),
        ("ftp://archive", "not the address"),
        ("https://[::1/x", "not the address"),
        ("https://archive:99999/x", "not the address"),
        ("https://archive:port/x", "not the address"),
        ("https://archive/x?token=word", "not the address"),
        ("https://archive/x#part", "not the address"),
        ("https://arch ive/x", "not the address"),
        ("HTTP://archive/x", "not encrypted"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Archive(url)
    assert ":word@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "first"),
    [
        ("HTTPS://archive:8443/dicom-web/", "archive:8443", "https://archive:8443/dicom-web"),
        ("https://[::1]:8042/x", "[::1]:8042", "https://[::1]:8042/x"),
        ("http://LOCALHOST/x", "localhost", "http://localhost/x"),
        ("https://archív.example/x", "xn--archv-2sa.example", "https://xn--archv-2sa.example/x"),
    ],
)
def test_a_host_is_asked_by_its_name(url: str, host: str, first: str) -> None:
    """With its port, and as the network writes it."""
    archive = Archive(url)
    assert archive._client.host == host
    assert archive._client.base_url == first


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


def test_the_one_radiograph_of_a_study_need_not_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        {"Modality": "DX", "SeriesInstanceUID": "1.2.3"},
        {"Modality": "SR", "SeriesInstanceUID": "1.2.4"},
    ]
    fetched: list[Series] = []

    class Known:
        def series(self, study: str, filters: object) -> list[dict[str, str]]:
            return found

        def fetch(self, wanted: Series, folder: Path, step: object) -> int:
            fetched.append(wanted)
            return 1

    monkeypatch.setattr(command, "_archive", lambda arguments: Known())
    words = ["dicomweb", "fetch", "https://host/dicom-web", "--study", "1.2", "-o", f"{tmp_path}/x"]
    assert main(words) == 0
    assert fetched == [Series("1.2", "1.2.3")]
    found.pop(0)
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "The study has 0 series of images, among 1 in all" in said
    assert "1.2.4" in said, "what there is instead is listed"
