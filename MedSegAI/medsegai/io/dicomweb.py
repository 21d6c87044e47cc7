"""Client for a DICOMweb archive: search (QIDO-RS), download of a series (WADO-RS), storage (STOW-RS).

Credentials come from the environment or a netrc file, and never appear in an address, a message or a log.
"""

from __future__ import annotations

import contextlib
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
from medsegai.io.atomic import output_error
from medsegai.io.dicom_files import read_file

USER, PASSWORD = "MEDSEGAI_DICOMWEB_USER", "MEDSEGAI_DICOMWEB_PASSWORD"
TOKEN = "MEDSEGAI_DICOMWEB_TOKEN"
"""The environment variables of the credentials; without them, requests reads ~/.netrc."""

ANSWER_SECONDS = 60.0

TRIES = 2
"""The number of tries of a request to a server that responds with 500 or similar."""

UID = re.compile(r"[0-9]+(\.[0-9]+)*")

MOST_FILES = 100_000
"""The largest number of files of a series; an archive that sends more is not trusted."""

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

INVALID = (
    requests.RequestException,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    pydicom.errors.InvalidDicomError,
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
        _check_address(url, unencrypted)
        self._url = url.rstrip("/")
        session = requests.Session()
        session.auth = _credentials()
        self._client = DICOMwebClient(self._url, session=session, timeout=ANSWER_SECONDS)
        self._client.set_http_retry_params(max_attempts=TRIES, wait_exponential_multiplier=100)

    def studies(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        """Find at most `limit` studies, by DICOM keywords such as PatientID. Raises InputError."""
        with self._asking("its studies"):
            found = self._client.search_for_studies(
                limit=limit, fields=list(STUDY_FIELDS), search_filters=dict(filters)
            )
            return [_in_words(item, STUDY_FIELDS) for item in found][:limit]

    def series(self, study: str, filters: Mapping[str, str]) -> list[Found]:
        """Find all matching series of a study. Raises InputError."""
        check_uid(study)
        found: dict[str, Found] = {}
        with self._asking("the series of the study"):
            while page := self._page(study, filters, len(found)):
                before = len(found)
                found |= {item["SeriesInstanceUID"]: item for item in page}
                if len(found) == before:
                    break  # an archive that starts over each time
        return list(found.values())

    def _page(self, study: str, filters: Mapping[str, str], offset: int) -> list[Found]:
        """Return as many series as the archive sends at once."""
        page = self._client.search_for_series(
            study,
            offset=offset or None,
            fields=list(SERIES_FIELDS),
            search_filters=dict(filters),
        )
        return [_in_words(item, SERIES_FIELDS) for item in page]

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
        uids: set[str] = set()
        received = 0
        with self._asking("the images of the series"):
            for head in self._client.iter_series(wanted.study, wanted.series):
                received += 1
                if received > MOST_FILES:
                    raise ValueError("it sends too many of them")
                uids.add(str(head.SOPInstanceUID))
                file = folder / f"{len(uids):06}.dcm"
                head.save_as(file, enforce_file_format=True)
                if read_file(file).problem is not None:
                    raise ValueError("pixels are missing")  # the last part may be cut off
                step(len(uids), max(promised, len(uids)))
        if len(uids) < promised or not uids:
            raise InputError(
                f"{self._url} sent {len(uids)} of the {counted(promised, 'file', 'files')} of the series, so none "
                "was kept. Try again, or ask the operator of the archive."
            )
        return len(uids)

    def _count(self, wanted: Series) -> int:
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
        return int(numbers[0]) if numbers[0].isdigit() else 0

    def store(self, files: Sequence[Path], study: str) -> None:
        """Store DICOM files in the study to which they belong.

        Raises:
            InputError: a file is not DICOM, or belongs to another study.
            OutputError: the archive does not accept all files.
        """
        heads = [_read(file, study) for file in files]
        with self._asking("results", OutputError):
            answer = self._client.store_instances(heads, study)
        failed = answer.get("FailedSOPSequence", ())
        if failed:
            reason = failed[0].get("FailureReason", "?")
            raise OutputError(
                f"{self._url} did not accept {len(failed)} of {counted(len(files), 'file', 'files')} (reason "
                f"{reason}). Ask the operator of the archive."
            )

    @contextlib.contextmanager
    def _asking(self, what: str, error: type[MedSegAIError] = InputError) -> Iterator[None]:
        """Turn errors of a request into one message, without the content of the request."""
        verb = "take" if error is OutputError else "give"
        start = f"{self._url} does not {verb} {what}"
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)
        try:
            yield
        except requests.HTTPError as caught:
            code = caught.response.status_code if caught.response is not None else 0
            reason = _REASONS.get(code, _OTHER)
            raise error(f"{start}: it responded with {code}, {reason}.") from None
        except requests.exceptions.SSLError:
            raise error(
                f"{start}, because this computer does not trust its certificate. Ask its "
                "operator, or name a file of trusted certificates in REQUESTS_CA_BUNDLE."
            ) from None
        except BROKEN as caught:
            raise error(
                f"{start}, because the connection broke ({type(caught).__name__}). Try again."
            ) from None
        except INVALID as caught:
            raise error(
                f"{start}, because its response is truncated or invalid "
                f"({type(caught).__name__}). Try again, or ask its operator."
            ) from None


_REASONS = {
    400: "which means that it does not understand the request",
    401: f"which asks for credentials. Set {USER} and {PASSWORD}, or {TOKEN}, or write them into ~/.netrc",
    403: "which means that you do not have permission. Ask its operator",
    404: "which means that it was not found. Check the address and the UIDs",
    409: "which means that it refused all files",
    413: "which means that the files are too large for it",
}
_OTHER = "which means that it has a problem. Ask its operator"


def check_uid(text: str) -> None:
    """Check a UID. Raises RequestError unless it is a DICOM UID."""
    if not UID.fullmatch(text) or len(text) > LONGEST_UID:
        raise RequestError(
            f"{text[:80]!r} is not a DICOM UID, which consists of at most 64 digits and dots."
        )


def _check_address(url: str, unencrypted: bool) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = None, ""
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise RequestError(
            "The text is not the address of an archive. Write https://HOST/dicom-web."
        )
    if parts.username is not None or parts.password is not None:
        raise RequestError(
            f"The address contains a name or password, which others could read. Remove it, and set {USER} and "
            f"{PASSWORD}."
        )
    if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1") and not unencrypted:
        raise RequestError(
            f"http://{host} is not encrypted, so others could read names of patients and "
            "passwords. Use https, or add --unencrypted if the network is trusted."
        )


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


def _in_words(item: Mapping[str, Any], keywords: Sequence[str]) -> Found:
    """Return DICOM JSON as text; several values are joined by a backslash, as in DICOM."""
    tags = {keyword: f"{tag_for_keyword(keyword):08X}" for keyword in keywords}
    values = {keyword: item.get(tag, {}).get("Value", ()) for keyword, tag in tags.items()}
    return {
        keyword: "\\".join(str(it) for it in found if it is not None)
        for keyword, found in values.items()
    }


def _read(file: Path, study: str) -> pydicom.Dataset:
    try:
        head = pydicom.dcmread(file)
        found = str(head.StudyInstanceUID)
    except (OSError, pydicom.errors.InvalidDicomError, AttributeError) as error:
        raise InputError(
            f"{file} was not sent, because it is not a DICOM file of a study."
        ) from error
    if found != study:
        raise InputError(f"{file} was not sent, because it belongs to another study.")
    return head
