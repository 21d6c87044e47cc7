"""What a broken or hostile archive answers is one clear message, and nothing is kept of it."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

from broken_archive import (
    JSON,
    MULTIPART,
    SERIES,
    STUDY,
    Broken,
    answering,
    images,
    listed,
    multipart,
)
from dicom_files import SECRETS
from medsegai.cli import main
from medsegai.errors import InputError, OutputError
from medsegai.io import archive_connection, dicomweb
from medsegai.io.dicomweb import PASSWORD, USER, Archive

WORD = "word-of-the-archive"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Broken]:
    monkeypatch.setenv(USER, "me")
    monkeypatch.setenv(PASSWORD, WORD)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = Broken()
    yield server
    server.close()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What was printed or logged since the last call; it never names the patient or a password."""
    caplog.set_level(logging.INFO)

    def read() -> str:
        found = "".join(capsys.readouterr()) + caplog.text
        caplog.clear()
        assert not [word for word in (*SECRETS, WORD) if word in found]
        return found

    return read


def fetched(broken: Broken, folder: Path, *more: str) -> int:
    """The exit code of a fetch into `folder / "x"`, beside which nothing is left."""
    words = ["dicomweb", "fetch", broken.url, "--study", STUDY, "--series", SERIES, "-q"]
    code = main([*words, "-o", f"{folder}/x", *more])
    assert [path.name for path in folder.iterdir()] == ([] if code else ["x"])
    return code


def sending(
    broken: Broken, content: bytes, kind: str = MULTIPART, instances: object = 3, **more: Any
) -> None:
    """The archive has the series and sends this for it."""
    broken.answers[f"{STUDY}/series"] = answering(listed(SERIES, instances=instances), JSON)
    broken.answers[f"series/{SERIES}"] = answering(content, kind, **more)


# Searches


@pytest.mark.parametrize("code", [304, 400, 401, 403, 404, 408, 409, 429, 500, 502, 503, 504])
def test_each_refusal_is_one_message(
    code: int, broken: Broken, said: Callable[[], str], tmp_path: Path
) -> None:
    """Also of a search for a patient, whose ID is in the address."""
    content = b"" if code == 304 else b"patient Doe"
    broken.answers["/studies"] = answering(content, "text/html", code, Retry_After="86400")
    assert main(["dicomweb", "find", broken.url, "--patient", SECRETS[2]]) == InputError.exit_code
    text = said()
    assert f"responded with {code}" in text
    assert text.count("\n") == 1
    broken.answers[f"{STUDY}/series"] = broken.answers["/studies"]
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert f"responded with {code}" in said()


def test_a_busy_archive_is_asked_once_more(broken: Broken) -> None:
    def busy(handler: Any) -> None:
        broken.answers["/studies"] = answering(b"[]", JSON)
        answering(b"", JSON, 503)(handler)

    broken.answers["/studies"] = busy
    assert Archive(broken.url).studies({}, 5) == []


def test_a_broken_connection_names_nobody(
    broken: Broken, said: Callable[[], str], tmp_path: Path
) -> None:
    broken.answers["/studies"] = lambda handler: handler.connection.close()
    assert main(["dicomweb", "find", broken.url, "--patient", SECRETS[2]]) == InputError.exit_code
    text = said()
    assert "connection broke" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"<html>",
        b"[1]",
        b'[{"0020000D": 3}]',
        b"[[]]",
        b"[null]",
        b'"text"',
        b"[" * 100_000,
        b'[{"0020000D": {"Value": [{}]}}]',
        b'[{"0020000D": {"Value": ["../x"]}}]',
        b'[{"0020000D": {"vr": "UI"}}]',
        b'[{"0020000D": {"Value": [' + b"1" * 5000 + b"]}}]",
        b'[{"0020000D": {"Value": ["1.2"]}, "00100020": {"Value": [["x"]]}}]',
        b"\xff\xfe[]",
    ],
)
def test_an_answer_that_makes_no_sense_is_said(
    content: bytes, broken: Broken, said: Callable[[], str]
) -> None:
    broken.answers["/studies"] = answering(content, JSON)
    assert main(["dicomweb", "find", broken.url]) == InputError.exit_code
    assert "does not give its studies, because its response is truncated or invalid" in said()


@pytest.mark.parametrize(
    "element",
    [
        '{"Value": ["MR"]}',
        '{"vr": "CS", "Value": ["MR", null]}',
        '{"vr": "CS", "Value": "MR"}',
        '{"vr": "CS", "Value": ["MR "]}',
    ],
)
def test_answers_that_are_odd_but_clear_are_read(element: str, broken: Broken) -> None:
    other = (
        '{"0020000E": {"Value": ["1.2.4\\u0000"]}, "00080060": null, "00201209": {"Value": null}}'
    )
    series = f'[{{"0020000E": {{"Value": ["1.2.3"]}}, "00080060": {element}}}, {other}]'
    broken.answers["/series"] = answering(series.encode(), JSON)
    first, second = Archive(broken.url).series(STUDY, {})
    assert first["Modality"] == "MR"
    assert first["NumberOfSeriesRelatedInstances"] == ""
    assert second["SeriesInstanceUID"] == "1.2.4"
    assert second["Modality"] == ""


def page(broken: Broken, count: int, size: int) -> Callable[[Any], None]:
    """Answers with so many results at a time."""
    found = [
        {tag: {"Value": [f"1.2.3.{number}"]} for tag in ("0020000D", "0020000E")}
        | {"00080060": {"Value": ["MR"]}}
        for number in range(1, count + 1)
    ]

    def answer(handler: Any) -> None:
        begin = int(handler.path.partition("offset=")[2].partition("&")[0] or 0)
        answering(json.dumps(found[begin : begin + size]).encode(), JSON)(handler)

    return answer


def test_a_study_of_4000_series_is_listed_in_short(
    broken: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Archives send some at a time."""
    broken.answers["/series"] = page(broken, 4000, 1000)
    words = ["dicomweb", "fetch", broken.url, "--study", "1.2.3", "-o", f"{tmp_path}/x"]
    assert main(words) == InputError.exit_code
    said = capsys.readouterr().err
    assert "4000 series of images" in said
    assert "--series" in said
    assert said.count("1.2.3.") == 20
    find = ["dicomweb", "find", broken.url, "--json", "--limit"]
    assert main([*find, "5000", "--study", "1.2.3"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4000
    broken.answers["/studies"] = page(broken, 250, 100)
    assert main([*find, "200"]) == 0
    found = capsys.readouterr()
    assert len(json.loads(found.out)) == 200
    assert "more results" in found.err
    assert main([*find, "300"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 250


def test_pages_that_repeat_or_never_end_are_not_read_for_ever(
    broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken.answers["/series"] = answering(listed("1.2.3", "1.2.4"), JSON)
    assert len(Archive(broken.url).series(STUDY, {})) == 2
    monkeypatch.setattr(dicomweb, "MOST_FOUND", 10)
    broken.answers["/series"] = lambda handler: answering(listed(generate_uid()), JSON)(handler)
    with pytest.raises(InputError, match="truncated or invalid"):
        Archive(broken.url).series(STUDY, {})


def test_an_answer_without_end_takes_no_memory(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str], tmp_path: Path
) -> None:
    monkeypatch.setattr(archive_connection, "MOST_ANSWER", 100_000)
    packed = gzip.compress(b"[" + b" " * 10_000_000 + b"]")
    broken.answers["/studies"] = answering(packed, JSON, Content_Encoding="gzip")
    assert main(["dicomweb", "find", broken.url]) == InputError.exit_code
    assert "its response is too large" in said()
    monkeypatch.setattr(archive_connection, "MOST_SERIES", 100_000)
    sending(broken, multipart([bytes(200_000)]))
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert "its response is too large" in said()


def test_drops_are_not_waited_for_for_ever(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str], tmp_path: Path
) -> None:
    monkeypatch.setattr(archive_connection, "SLOW_SECONDS", 0.2)

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", MULTIPART)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    broken.answers["/studies"] = broken.answers[f"series/{SERIES}"] = drip
    broken.answers[f"{STUDY}/series"] = answering(listed(SERIES), JSON)
    assert main(["dicomweb", "find", broken.url]) == InputError.exit_code
    assert "its response is too slow" in said()
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert "its response is too slow" in said()


# Redirects


@pytest.fixture
def other() -> Iterator[Broken]:
    """Another server, which nobody trusts."""
    server = Broken()
    for end in ("/studies", STUDY):
        server.answers[end] = answering(b"[]", JSON)
    yield server
    server.close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_nobody_else_is_asked(
    code: int, broken: Broken, other: Broken, said: Callable[[], str], tmp_path: Path
) -> None:
    """Neither for a patient, nor to store; a POST would become a GET that stores nothing and succeeds."""
    there = f"{other.url}/studies?token={WORD}"
    broken.answers["/studies"] = answering(b"", "", code, Location=there)
    assert main(["dicomweb", "find", broken.url]) == InputError.exit_code
    assert f"it redirects to {other.url.removesuffix('/dicom-web')}" in said()
    file = tmp_path / "file.dcm"
    file.write_bytes(images(tmp_path, 1)[0])
    for place in (other.url, broken.url):
        broken.answers[STUDY] = answering(b"", "", code, Location=f"{place}/studies/{STUDY}")
        with pytest.raises(OutputError, match="redirects to"):
            Archive(broken.url).store([file], STUDY)
    assert other.asked == []


def test_the_same_server_may_have_another_path(broken: Broken) -> None:
    broken.answers["/studies"] = answering(b"", "", 302, Location="/elsewhere")
    broken.answers["/elsewhere"] = answering(b"[]", JSON)
    assert Archive(broken.url).studies({}, 5) == []
    broken.answers["/elsewhere"] = answering(b"", "", 302, Location="/elsewhere")
    with pytest.raises(InputError, match="TooManyRedirects"):
        Archive(broken.url).studies({}, 5)


# Series


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.95, 0.998])
@pytest.mark.parametrize("more", [0, 500], ids=["ended", "cut off"])
@pytest.mark.parametrize("instances", [3, None])
def test_half_a_multipart_leaves_nothing(
    share: float, more: int, instances: object, broken: Broken, tmp_path: Path
) -> None:
    """Also where the archive does not say how many images there are."""
    whole = multipart(images(tmp_path, 3))
    sending(broken, whole[: int(share * len(whole))], instances=instances, more=more)
    found = [{"00080018": {"Value": [f"1.2.{number}"]}} for number in range(3)]
    broken.answers["/instances"] = answering(json.dumps(found).encode(), JSON)
    assert fetched(broken, tmp_path) == InputError.exit_code
    sending(broken, whole, instances=instances)
    assert fetched(broken, tmp_path) == 0
    assert len(list((tmp_path / "x").iterdir())) == 3


@pytest.mark.parametrize(
    "number", [None, "²", "three", "9" * 5000, "-3", 3.0, 4, [3]], ids=lambda it: str(it)[:5]
)
def test_the_number_of_images_is_known(
    number: object, broken: Broken, said: Callable[[], str], tmp_path: Path
) -> None:
    """An archive that does not say it, or not in digits, is asked for the images."""
    sending(broken, multipart(images(tmp_path, 2)), instances=number)
    found = [{"00080018": {"Value": [f"1.2.{number}"]}} for number in range(3)]
    broken.answers["/instances"] = answering(json.dumps(found).encode(), JSON)
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert "sent 2 of the" in said() or number == [3]


@pytest.mark.parametrize(
    "kind",
    ["", "text/html", "application/json", "multipart/related", "multipart/related; boundary=other"],
)
def test_another_kind_of_answer_is_refused(
    kind: str, broken: Broken, said: Callable[[], str], tmp_path: Path
) -> None:
    sending(broken, multipart(images(tmp_path, 3)), kind)
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert "truncated or invalid" in said()


@pytest.mark.parametrize(
    "kind", ['Multipart/Related;Boundary="cut"', "multipart/related; x=a;boundary=cut ;type=b"]
)
def test_a_boundary_is_read_however_it_is_written(
    kind: str, broken: Broken, tmp_path: Path
) -> None:
    """What stands before the first and after the last boundary does not count."""
    sending(broken, b"ignored\r\n" + multipart(images(tmp_path, 3)) + b"ignored", kind)
    assert fetched(broken, tmp_path) == 0
    assert len(list((tmp_path / "x").iterdir())) == 3


def test_one_file_without_parts_is_read(broken: Broken, tmp_path: Path) -> None:
    sending(broken, images(tmp_path, 1)[0], "application/dicom", instances=1)
    assert fetched(broken, tmp_path) == 0


def test_a_part_that_is_not_dicom_is_refused(broken: Broken, tmp_path: Path) -> None:
    for part in (b"", b"<html>", b"\r\n--", bytes(200), b"x" * 100_000):
        sending(broken, multipart([*images(tmp_path, 2), part]))
        assert fetched(broken, tmp_path) == InputError.exit_code
    head = b"--cut\r\n" + b"x" * 1_000_000
    sending(broken, head + multipart(images(tmp_path, 3)))
    assert fetched(broken, tmp_path) == InputError.exit_code


def test_copies_count_once(broken: Broken, said: Callable[[], str], tmp_path: Path) -> None:
    """A copy does not replace another image, and an image that differs from its copy is refused."""
    first, second, third = images(tmp_path, 3)
    sending(broken, multipart([first, second, first]))
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert "sent 2 of the 3 files" in said()
    sending(broken, multipart([first, second, first, third, second]))
    assert fetched(broken, tmp_path) == 0
    there = sorted(path.read_bytes() for path in (tmp_path / "x").iterdir())
    assert there == sorted([first, second, third])
    for path in (tmp_path / "x").iterdir():
        path.unlink()
    changed = first[:-1] + bytes([first[-1] ^ 1])
    sending(broken, multipart([first, second, third, changed]))
    words = ["dicomweb", "fetch", broken.url, "--study", STUDY, "--series", SERIES, "-q"]
    assert main([*words, "-o", f"{tmp_path}/x"]) == InputError.exit_code
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("name", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_images_of_another_patient_or_series_are_refused(
    name: str, broken: Broken, said: Callable[[], str], tmp_path: Path
) -> None:
    def change(head: pydicom.Dataset, k: int) -> None:
        if k == 1:
            setattr(head, name, "1.2.3")

    sending(broken, multipart(images(tmp_path, 3, change)))
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert "another series, study or patient" in said()


def test_a_packed_file_does_not_unfold(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deflated file is not unpacked as a whole to see to whom it belongs."""
    monkeypatch.setattr(
        zlib, "decompress", lambda *_, **__: pytest.fail("unpacked without a bound")
    )
    meta = pydicom.dcmread(_written(tmp_path, images(tmp_path, 1)[0])).file_meta
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    out = pydicom.filebase.DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    pydicom.filewriter.write_file_meta_info(out, meta)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(bytes(300_000)) + packer.flush()
    sending(broken, multipart([bytes(128) + b"DICM" + out.getvalue() + packed]))
    assert fetched(broken, tmp_path) == InputError.exit_code


def _written(folder: Path, content: bytes) -> Path:
    path = folder.parent / f"{folder.name}.dcm"
    path.write_bytes(content)
    return path


def test_a_series_without_end_is_not_fetched(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if every file is the same, which takes no room but all the time there is."""
    monkeypatch.setattr(dicomweb, "MOST_FOUND", 5)
    sending(broken, multipart(8 * images(tmp_path, 1)), instances=1)
    assert fetched(broken, tmp_path) == InputError.exit_code


def test_a_part_of_the_content_is_not_the_series(
    broken: Broken, said: Callable[[], str], tmp_path: Path
) -> None:
    sending(broken, multipart(images(tmp_path, 3)), code=206)
    assert fetched(broken, tmp_path) == InputError.exit_code
    assert "responded with 206" in said()


def test_a_full_disk_is_not_the_fault_of_the_archive(
    broken: Broken, said: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, shallow: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dicomweb.filecmp, "cmp", full)
    (first,) = images(tmp_path, 1)
    sending(broken, multipart([first, first]))
    assert fetched(broken, tmp_path) == OutputError.exit_code
    assert "the disk is full" in said()


# Storage


def answer(stored: list[str], failed: list[str]) -> bytes:
    """What STOW-RS answers."""

    def items(uids: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "00081155": {"vr": "UI", "Value": [uid]},
                "00081197": {"vr": "US", "Value": [0xA700]},
            }
            for uid in uids
        ]

    return json.dumps(
        {
            "00081198": {"vr": "SQ", "Value": items(failed)},
            "00081199": {"vr": "SQ", "Value": items(stored)},
        }
    ).encode()


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A file to store."""
    path = tmp_path / "result.dcm"
    path.write_bytes(images(tmp_path, 1)[0])
    return path


@pytest.mark.parametrize("code", [401, 403, 409, 413, 429, 500, 503])
def test_results_that_are_refused_are_said(code: int, broken: Broken, result: Path) -> None:
    broken.answers[STUDY] = answering(b"", JSON, code)
    with pytest.raises(OutputError, match=f"responded with {code}"):
        Archive(broken.url).store([result], STUDY)
    assert len(broken.asked) == 1  # what may have arrived is not sent twice


@pytest.mark.parametrize("kind", [JSON, f"{JSON}; charset=utf-8", "Application/JSON"])
@pytest.mark.parametrize("code", [200, 202])
def test_results_that_are_not_taken_are_said(
    kind: str, code: int, broken: Broken, result: Path
) -> None:
    uid = pydicom.dcmread(result).SOPInstanceUID
    broken.answers[STUDY] = answering(answer([], [uid]), kind, code)
    with pytest.raises(OutputError, match=r"did not accept 1 of 1 file \(reason 42752\)"):
        Archive(broken.url).store([result], STUDY)
    broken.answers[STUDY] = answering(answer([uid], []), kind, code)
    Archive(broken.url).store([result], STUDY)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_damaged_result_is_not_sent(share: float, broken: Broken, result: Path) -> None:
    whole = result.read_bytes()
    result.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"result.dcm was not sent"):
        Archive(broken.url).store([result], STUDY)
    result.write_bytes(whole[:132] + bytes(range(256)))
    with pytest.raises(InputError, match=r"result.dcm was not sent"):
        Archive(broken.url).store([result], STUDY)
    assert broken.asked == []


def test_results_are_stored_later(broken: Broken, result: Path, said: Callable[[], str]) -> None:
    """After the archive did not take them at first."""
    words = ["dicomweb", "store", broken.url, "--study", STUDY, str(result)]
    broken.answers[STUDY] = answering(b"", JSON, 500)
    assert main(words) == OutputError.exit_code
    assert "responded with 500" in said()
    uid = pydicom.dcmread(result).SOPInstanceUID
    broken.answers[STUDY] = answering(answer([uid], []), JSON)
    assert main(words) == 0
    assert said() == "Stored result.dcm in the study.\n"


def test_a_series_that_does_not_come_leaves_no_folder(
    broken: Broken, model: str, tmp_path: Path
) -> None:
    sending(broken, b"")
    words = ["dicomweb", "segment", broken.url, "--study", STUDY, "--series", SERIES]
    assert main([*words, "--model", model, "-o", f"{tmp_path}/out"]) == InputError.exit_code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"<html>stored</html>", b'{"00081199": {"vr": "SQ"}}', answer(["1.2"], [])],
)
@pytest.mark.parametrize("kind", [JSON, "text/html", "application/dicom+xml"])
def test_what_is_not_confirmed_is_not_stored(
    content: bytes, kind: str, broken: Broken, result: Path
) -> None:
    broken.answers[STUDY] = answering(content, kind)
    with pytest.raises(OutputError, match=r"did not confirm|truncated or invalid"):
        Archive(broken.url).store([result], STUDY)
