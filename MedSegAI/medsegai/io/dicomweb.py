"""An archive that speaks DICOMweb: what it holds (QIDO-RS), a series of it (WADO-RS), results beside it (STOW-RS).

Credentials come from the environment or from a netrc file, and never stand in an address, a message or a log.
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
"""Variables that hold the credentials; without them requests looks into ~/.netrc."""

ANSWER_SECONDS = 60.0

TRIES = 2
"""How often a request is made of a server that answers with 500 or the like."""

UID = re.compile(r"[0-9]+(\.[0-9]+)*")

MOST_FILES = 100_000
"""A series does not have more files; an archive that goes on is not believed."""

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

Found = dict[str, str]
"""What an archive says of a study or series: text by DICOM keyword, "" where it says nothing."""


@dataclass(frozen=True)
class Series:
    """Which series of which study, by their UIDs."""

    study: str
    series: str


class Archive:
    """An archive at an address.

    Args:
        url: of its DICOMweb service, such as https://host/dicom-web.
        unencrypted: whether http may be used beyond this computer.

    Raises:
        RequestError: the address cannot be used, or the credentials are half there.
    """

    def __init__(self, url: str, unencrypted: bool = False) -> None:
        _check_address(url, unencrypted)
        self._url = url.rstrip("/")
        session = requests.Session()
        session.auth = _credentials()
        self._client = DICOMwebClient(self._url, session=session, timeout=ANSWER_SECONDS)
        self._client.set_http_retry_params(max_attempts=TRIES, wait_exponential_multiplier=100)

    def studies(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        """At most so many studies that fit, by DICOM keywords such as PatientID. Raises InputError."""
        with self._asking("its studies"):
            found = self._client.search_for_studies(
                limit=limit, fields=list(STUDY_FIELDS), search_filters=dict(filters)
            )
            return [_in_words(item, STUDY_FIELDS) for item in found][:limit]

    def series(self, study: str, filters: Mapping[str, str]) -> list[Found]:
        """All series of a study that fit, however many. Raises InputError."""
        check_uid(study)
        found: dict[str, Found] = {}
        with self._asking("the series of that study"):
            while page := self._page(study, filters, len(found)):
                before = len(found)
                found |= {item["SeriesInstanceUID"]: item for item in page}
                if len(found) == before:
                    break  # an archive that begins anew each time
        return list(found.values())

    def _page(self, study: str, filters: Mapping[str, str], offset: int) -> list[Found]:
        """As many series as the archive gives at once."""
        page = self._client.search_for_series(
            study,
            offset=offset or None,
            fields=list(SERIES_FIELDS),
            search_filters=dict(filters),
        )
        return [_in_words(item, SERIES_FIELDS) for item in page]

    def fetch(self, wanted: Series, folder: Path, step: Callable[[int, int], None]) -> int:
        """Write the files of a series into a folder that is made for it, whole or not at all.

        Args:
            wanted: which.
            folder: must not exist, or be empty.
            step: receives the number of received files and the number of all files. It may raise, to stop.

        Returns:
            How many files it has.

        Raises:
            InputError: the archive does not give the series, or not all of it.
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
        with self._asking("the images of that series"):
            for head in self._client.iter_series(wanted.study, wanted.series):
                received += 1
                if received > MOST_FILES:
                    raise ValueError("there is no end of them")
                uids.add(str(head.SOPInstanceUID))
                file = folder / f"{len(uids):06}.dcm"
                head.save_as(file, enforce_file_format=True)
                if read_file(file).problem is not None:
                    raise ValueError("pixels are missing")  # the last part of an answer may be cut
                step(len(uids), max(promised, len(uids)))
        if len(uids) < promised or not uids:
            raise InputError(
                f"{self._url} gave {len(uids)} of the {counted(promised, 'file', 'files')} of that series. "
                "Nothing was kept; try again, or ask who runs the archive."
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
                f"{self._url} has no such series in that study. `medsegai dicomweb find --study UID` lists them."
            )
        return int(numbers[0]) if numbers[0].isdigit() else 0

    def store(self, files: Sequence[Path], study: str) -> None:
        """Send DICOM files to the study that they belong to.

        Raises:
            InputError: a file is not DICOM, or of another study.
            OutputError: the archive does not take all of them.
        """
        heads = [_read(file, study) for file in files]
        with self._asking("results", OutputError):
            answer = self._client.store_instances(heads, study)
        failed = answer.get("FailedSOPSequence", ())
        if failed:
            reason = failed[0].get("FailureReason", "?")
            raise OutputError(
                f"{self._url} did not take {len(failed)} of {counted(len(files), 'file', 'files')} (reason "
                f"{reason}). Ask who runs the archive."
            )

    @contextlib.contextmanager
    def _asking(self, what: str, error: type[MedSegAIError] = InputError) -> Iterator[None]:
        """Turn what can go wrong on the way into one message, without what was sent."""
        verb = "take" if error is OutputError else "give"
        start = f"{self._url} does not {verb} {what}"
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)
        try:
            yield
        except requests.HTTPError as caught:
            code = caught.response.status_code if caught.response is not None else 0
            raise error(f"{start}: it answers {code}, {_REASONS.get(code, _OTHER)}.") from None
        except requests.exceptions.SSLError:
            raise error(
                f"{start}: this computer does not trust its certificate. Ask who runs it; REQUESTS_CA_BUNDLE "
                "names a file of certificates to trust."
            ) from None
        except (
            requests.ConnectionError,
            requests.Timeout,
            ConnectionError,
            TimeoutError,
        ) as caught:
            raise error(
                f"{start}: the connection broke ({type(caught).__name__}). Try again."
            ) from None
        except (
            requests.RequestException,
            ValueError,
            KeyError,
            LookupError,
            TypeError,
            AttributeError,
            EOFError,
            pydicom.errors.InvalidDicomError,
        ) as caught:
            raise error(
                f"{start}: its answer is cut off or not valid ({type(caught).__name__}). Try again, or ask "
                "who runs it."
            ) from None


_REASONS = {
    400: "it does not understand the request",
    401: f"which asks for credentials. Set {USER} and {PASSWORD}, or {TOKEN}, or write them into ~/.netrc",
    403: "which means that you do not have permission. Ask who runs it",
    404: "which means that it was not found. Check the address and the UIDs",
    409: "which means that it refused all files",
    413: "which means that the files are too large for it",
}
_OTHER = "which means that something is wrong there. Ask who runs it"


def check_uid(text: str) -> None:
    """Raises RequestError unless this is a DICOM UID."""
    if not UID.fullmatch(text) or len(text) > LONGEST_UID:
        raise RequestError(
            f"{text[:80]!r} is not a DICOM UID: digits and dots, at most 64 of them."
        )


def _check_address(url: str, unencrypted: bool) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = None, ""
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise RequestError("This is not the address of an archive. Write https://HOST/dicom-web.")
    if parts.username is not None or parts.password is not None:
        raise RequestError(
            f"The address contains a name or password, which others could read. Remove it, and set {USER} and "
            f"{PASSWORD}."
        )
    if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1") and not unencrypted:
        raise RequestError(
            f"http://{host} is not encrypted, so that others could read names of patients and passwords. Use "
            "https, or add --unencrypted where the network is trusted."
        )


class _Bearer(AuthBase):
    """A token; as an object of its own, because requests prefers a netrc to a header."""

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
    """DICOM JSON as text; several values are joined by a backslash, as DICOM writes them."""
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
        raise InputError(f"{file} is not a DICOM file of a study, and was not sent.") from error
    if found != study:
        raise InputError(f"{file} belongs to another study, and was not sent.")
    return head
