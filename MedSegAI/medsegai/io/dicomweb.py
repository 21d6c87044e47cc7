"""Client for a DICOMweb archive: search (QIDO-RS), download of a series (WADO-RS), storage (STOW-RS).

Credentials come from the environment or a netrc file, and never appear in an address, a message or a log.
"""

from __future__ import annotations

import contextlib
import filecmp
import functools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.datadict import tag_for_keyword
from requests.auth import AuthBase, HTTPBasicAuth

from medsegai.errors import InputError, MedSegAIError, OutputError, RequestError, counted
from medsegai.io.archive_connection import (
    ANSWER_SECONDS,
    ArchiveSession,
    Excessive,
    Redirected,
    parts,
)
from medsegai.io.atomic import output_error
from medsegai.io.dicom_files import DAMAGE, opened_header, read_file

USER, PASSWORD = "MEDSEGAI_DICOMWEB_USER", "MEDSEGAI_DICOMWEB_PASSWORD"
TOKEN = "MEDSEGAI_DICOMWEB_TOKEN"
"""The environment variables of the credentials; without them, requests reads ~/.netrc."""

UID = re.compile(r"[0-9]+(\.[0-9]+)*")

MOST_FOUND = 100_000
"""The largest number of series of a study, or files of a series; an archive that sends more is not trusted."""

LONGEST_UID = 64

STUDY_FIELDS = (
    "StudyInstanceUID",
    "PatientID",
    "StudyDate",
    "StudyDescription",
    "ModalitiesInStudy",
)
SERIES_FIELDS = (
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "NumberOfSeriesRelatedInstances",
)

BROKEN = (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError)
"""What a broken connection raises."""

FOREIGN = (
    "{archive} sent an image of another series, study or patient, so none was "
    "kept. Ask its operator."
)

INVALID = (
    requests.RequestException,
    SyntaxError,  # of XML
    *(kind for kind in DAMAGE if kind is not OSError),  # which a full disk raises, too
)
"""What an answer raises that is cut off or not what was asked for."""

Found = dict[str, str]
"""The attributes of a study or series: text by DICOM keyword, "" if the archive does not state it."""


@dataclass(frozen=True)
class Series:
    """A series and its study, by their UIDs."""

    study: str
    series: str


class Archive:
    """An archive at an address.

    Args:
        url: the address of its DICOMweb service, such as https://host/dicom-web.
        unencrypted: whether http may be used for other computers.

    Raises:
        RequestError: the address cannot be used, or the credentials are incomplete.
    """

    def __init__(self, url: str, unencrypted: bool = False) -> None:
        self._url = _checked_address(url, unencrypted)
        self._session = ArchiveSession()
        self._session.auth = _credentials()
        self._client = DICOMwebClient(self._url, session=self._session, timeout=ANSWER_SECONDS)
        self._client.host = urlsplit(
            self._url
        ).netloc  # which the library cuts off at the first colon
        self._client.set_http_retry_params(retry=False)  # the session does it

    def studies(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        """Find at most `limit` studies, by DICOM keywords such as PatientID. Raises InputError."""
        with self._asking("its studies"):
            search = functools.partial(self._client.search_for_studies, limit=limit)
            return _found(search, STUDY_FIELDS, filters, limit)

    def series(self, study: str, filters: Mapping[str, str]) -> list[Found]:
        """Find all matching series of a study. Raises InputError."""
        check_uid(study)
        with self._asking("the series of the study"):
            search = functools.partial(self._client.search_for_series, study)
            return _found(search, SERIES_FIELDS, filters)

    def fetch(self, wanted: Series, folder: Path, step: Callable[[int, int], None]) -> int:
        """Download a series into a new folder, completely or not at all.

        Args:
            wanted: the series.
            folder: the folder, which must not exist or must be empty.
            step: the function that receives the numbers of received files and of all files. It may raise, to stop.

        Returns:
            The number of its files.

        Raises:
            InputError: the archive does not send the series, or sends only a part of it.
            OutputError: the folder cannot be written.
        """
        check_uid(wanted.study)
        check_uid(wanted.series)
        promised = self._count(wanted)
        try:
            with tempfile.TemporaryDirectory(
                prefix=".fetch-", dir=folder.absolute().parent
            ) as name:
                there = self._write(wanted, Path(name) / "series", promised, step)
                if folder.exists():
                    folder.rmdir()
                (Path(name) / "series").rename(folder)
        except OSError as error:
            raise output_error(folder, error) from error
        return there

    def _write(
        self, wanted: Series, folder: Path, promised: int, step: Callable[[int, int], None]
    ) -> int:
        folder.mkdir()
        address = f"{self._url}/studies/{wanted.study}/series/{wanted.series}"
        kinds = {"Accept": 'multipart/related; type="application/dicom"'}
        received = _Received(folder, wanted)
        with (
            self._asking("the images of the series"),
            self._session.get(
                address, headers=kinds, stream=True, timeout=ANSWER_SECONDS
            ) as answer,
        ):
            answer.raise_for_status()
            for blocks in parts(answer):
                if not received.add(blocks):
                    raise InputError(FOREIGN.format(archive=self._url))
                step(received.count, max(promised, received.count))
        self._check_complete(received.count, promised)
        return received.count

    def _check_complete(self, received: int, promised: int) -> None:
        if received < promised or not received:
            raise InputError(
                f"{self._url} sent {received} of the {counted(promised, 'file', 'files')} of the series, so none "
                "was kept. Try again, or ask the operator of the archive."
            )

    def _count(self, wanted: Series) -> int:
        """Return how many files the series has."""
        found = self.series(wanted.study, {"SeriesInstanceUID": wanted.series})
        numbers = [
            item["NumberOfSeriesRelatedInstances"]
            for item in found
            if item["SeriesInstanceUID"] == wanted.series
        ]
        if not numbers:
            raise InputError(
                f"{self._url} does not have the series in the study. List its series with "
                "`medsegai dicomweb find --study UID`."
            )
        if re.fullmatch("[1-9][0-9]{0,8}", numbers[0]):
            return int(numbers[0])
        with self._asking("the number of images of the series"):
            search = functools.partial(
                self._client.search_for_instances, wanted.study, wanted.series
            )
            return len(_found(search, ("SOPInstanceUID",), {}))

    def store(self, files: Sequence[Path], study: str) -> None:
        """Store DICOM files in the study to which they belong.

        Raises:
            RequestError: the study is not a UID.
            InputError: a file is not DICOM, or belongs to another study.
            OutputError: the archive does not accept all files.
        """
        check_uid(study)
        heads = [_read(file, study) for file in files]
        with self._asking("results", OutputError):
            answer = self._client.store_instances(heads, study)
            failed = answer.get("FailedSOPSequence") or ()
            reasons = [str(item.get("FailureReason", "unknown")) for item in failed]
            stored = {
                str(item.get("ReferencedSOPInstanceUID"))
                for item in answer.get("ReferencedSOPSequence") or ()
            }
        missing = sum(str(head.SOPInstanceUID) not in stored for head in heads)
        self._check_stored(len(files), reasons, missing)

    def _check_stored(self, count: int, reasons: Sequence[str], missing: int) -> None:
        """Refuse an answer that reports failed files, or does not confirm that the others were stored."""
        files = counted(count, "file", "files")
        if reasons:
            raise OutputError(
                f"{self._url} did not accept {len(reasons)} of {files} (reason "
                f"{reasons[0]}). Ask the operator of the archive."
            )
        if missing:
            raise OutputError(
                f"{self._url} did not confirm that it stored {missing} of {files}. "
                "See what it has with `medsegai dicomweb find --study UID`."
            )

    @contextlib.contextmanager
    def _asking(self, what: str, error: type[MedSegAIError] = InputError) -> Iterator[None]:
        """Turn errors of a request into one message, without the content of the request."""
        verb = "take" if error is OutputError else "give"
        start = f"{self._url} does not {verb} {what}"
        for name in ("dicomweb_client", "retrying", "urllib3"):  # they quote what was asked for
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            with pydicom.config.disable_value_validation():  # whose warnings quote values
                yield
        except (Redirected, Excessive, *BROKEN, *INVALID) as caught:
            raise error(f"{start}{_reason(caught)}") from None


_REASONS = {
    206: "which means that it sends only a part",
    400: "which means that it does not understand the request",
    401: f"which asks for credentials. Set {USER} and {PASSWORD}, or {TOKEN}, or write them into ~/.netrc",
    403: "which means that you do not have permission. Ask its operator",
    404: "which means that it was not found. Check the address and the UIDs",
    409: "which means that it refused all files",
    413: "which means that the files are too large for it",
    429: "which means that it is too busy. Try again later",
    503: "which means that it is too busy. Try again later",
}
_OTHER = "which means that it has a problem. Ask its operator"


def _reason(caught: BaseException) -> str:
    """Return the rest of a sentence about a request that failed, and what to do."""
    name = type(caught).__name__
    if isinstance(caught, Redirected):
        return f": it redirects to {caught.elsewhere}. If you trust that server, use its address."
    if isinstance(caught, Excessive):
        return f", because its response is {caught}. Ask its operator."
    if isinstance(caught, requests.HTTPError):
        code = caught.response.status_code if caught.response is not None else 0
        return f": it responded with {code}, {_REASONS.get(code, _OTHER)}."
    if isinstance(caught, requests.exceptions.SSLError):
        return (
            ", because this computer does not trust its certificate. Ask its "
            "operator, or name a file of trusted certificates in REQUESTS_CA_BUNDLE."
        )
    if isinstance(caught, BROKEN):
        return f", because the connection broke ({name}). Try again."
    return (
        f", because its response is truncated or invalid ({name}). Try again, or ask its operator."
    )


def check_uid(text: str) -> None:
    """Check a UID. Raises RequestError unless it is a DICOM UID."""
    if not _is_uid(text):
        raise RequestError(
            f"{text[:80]!r} is not a DICOM UID, which consists of at most 64 digits and dots."
        )


def _is_uid(text: str) -> bool:
    return len(text) <= LONGEST_UID and UID.fullmatch(text) is not None


CREDENTIALS = (
    f"The address contains a name or password, which others could read. Remove it, and set {USER} and "
    f"{PASSWORD}."
)


def _checked_address(url: str, unencrypted: bool) -> str:
    """Return the address as it is sent. Raises RequestError."""
    address = "The text is not the address of an archive. Write https://HOST/dicom-web."
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise RequestError(address)
        if parts.username is not None or parts.password is not None:
            raise RequestError(CREDENTIALS)
        sent = requests.Request("GET", url).prepare().url or ""
        host = urlsplit(sent).hostname
    except (ValueError, requests.RequestException):
        raise RequestError(address) from None
    if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1") and not unencrypted:
        raise RequestError(
            f"http://{host} is not encrypted, so others could read names of patients and "
            "passwords. Use https, or add --unencrypted if the network is trusted."
        )
    return sent.rstrip("/")


class _Bearer(AuthBase):
    """A token, passed as an object, because requests prefers a netrc file to a header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _credentials() -> AuthBase | None:
    token, user, password = (os.environ.get(name) for name in (TOKEN, USER, PASSWORD))
    if token:
        return _Bearer(token)
    if bool(user) != bool(password):
        raise RequestError(f"Only one of {USER} and {PASSWORD} is set. Set both or neither.")
    return HTTPBasicAuth(user.encode(), password.encode()) if user and password else None


class _Received:
    """The files of a series that arrived.

    Attributes:
        count: the number of different files.
    """

    def __init__(self, folder: Path, wanted: Series) -> None:
        self._folder, self._wanted = folder, wanted
        self._files: dict[str, Path] = {}
        self._patients: set[str] = set()
        self._parts = 0

    @property
    def count(self) -> int:
        return len(self._files)

    def add(self, blocks: Iterator[bytes]) -> bool:
        """Write a part. Returns False if it belongs elsewhere; raises one of INVALID if it cannot be used."""
        self._parts += 1
        if self._parts > MOST_FOUND:
            raise ValueError("the archive sends too many files")
        file = self._folder / f"{self.count + 1:06}.dcm"
        with file.open("wb") as out:
            out.writelines(blocks)
        with file.open("rb") as stream:
            head, _ = opened_header(file, stream, _IDENTITY)
        uid, study, series, patient = (str(head.get(name) or "") for name in _IDENTITY)
        if not uid or read_file(file).problem is not None:
            raise ValueError("not a whole DICOM file")  # the last part may be cut off
        self._patients.add(patient)
        if Series(study, series) != self._wanted or len(self._patients) > 1:
            return False
        self._keep(uid, file)
        return True

    def _keep(self, uid: str, file: Path) -> None:
        if uid not in self._files:
            self._files[uid] = file
        elif not filecmp.cmp(file, self._files[uid], shallow=False):
            raise ValueError("two files have the same UID")
        else:
            file.unlink()


_IDENTITY = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID")


def _found(
    search: Callable[..., Any],
    fields: Sequence[str],
    filters: Mapping[str, str],
    limit: int | None = None,
) -> list[Found]:
    """Return what a search finds, page by page, until nothing new comes.

    Args:
        search: the method of the client.
        fields: the attributes to ask for; the first one is the UID.
        filters: the wanted values, by DICOM keyword.
        limit: the largest number of results; None for all of them.

    Raises:
        ValueError: the archive sends more than anybody has, or something else than was asked for.
    """
    found: dict[str, Found] = {}
    before = -1
    while before < len(found) < (limit or MOST_FOUND):
        before = len(found)
        page = search(offset=before or None, fields=list(fields), search_filters=dict(filters))
        for item in page:
            words = _in_words(item, fields)
            if not _is_uid(words[fields[0]]):
                raise ValueError("the archive sends something else than a UID")
            found[words[fields[0]]] = words
    if limit is None and len(found) >= MOST_FOUND:
        raise ValueError("the archive sends too much")
    return list(found.values())[:limit]


def _in_words(item: Mapping[str, Any], keywords: Sequence[str]) -> Found:
    """Return DICOM JSON as text; several values are joined by a backslash, as in DICOM."""
    found: Found = {}
    for keyword in keywords:
        element = item.get(f"{tag_for_keyword(keyword):08X}") or {}
        values = element.get("Value")
        values = values if isinstance(values, list) else [values]  # some archives forget the list
        texts = [_text(value) for value in values if value is not None]
        found[keyword] = "\\".join(texts).strip(" \0")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError("the archive sends another type of value")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _read(file: Path, study: str) -> pydicom.Dataset:
    try:
        with pydicom.config.disable_value_validation():  # whose warnings quote values
            head = pydicom.dcmread(file)
            found, _ = str(head.StudyInstanceUID), head.SOPInstanceUID
            known = read_file(file)
            lost = known.is_segmentation and "PixelData" not in head
            if known.problem is not None or lost or _is_cut(head):
                raise EOFError
    except DAMAGE:  # whose messages may quote the header
        raise InputError(
            f"{file} was not sent, because it is not a DICOM file of a study, or is damaged."
        ) from None
    if found != study:
        raise InputError(f"{file} was not sent, because it belongs to another study.")
    return head


def _is_cut(head: pydicom.Dataset) -> bool:
    """Whether the last element has fewer bytes than it promises, which pydicom accepts."""
    last: Any = head.get_item(max(head.keys()))
    promised = getattr(last, "length", _UNDEFINED)
    return promised != _UNDEFINED and len(last.value or b"") < promised


_UNDEFINED = 0xFFFFFFFF
"""The length of elements that end with a mark."""
