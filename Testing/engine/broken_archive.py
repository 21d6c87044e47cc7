"""An archive on loopback whose answers a test decides."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dicom_files
from medsegai.volume import Geometry, Volume


class Broken:
    """A server whose answers a test decides, by the end of the path.

    Attributes:
        answers: what answers a request, by the end of its path.
        asked: the method and address of each request, and its headers.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((f"{self.command} {self.path}", dict(self.headers)))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
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


def answering(
    content: bytes, kind: str, code: int = 200, more: int = 0, **headers: str
) -> Callable[[Any], None]:
    """Sends this; `more` bytes are promised and never come."""

    def answer(handler: Any) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if kind:
            handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content) + more))
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = True

    return answer


JSON = "application/dicom+json"


def listed(*uids: str, instances: object = 3) -> bytes:
    """Series as an archive lists them."""
    series = [
        {
            "0020000E": {"vr": "UI", "Value": [uid]},
            "00080060": {"vr": "CS", "Value": ["MR"]},
            "00201209": {"vr": "IS", "Value": [instances]},
        }
        for uid in uids
    ]
    return json.dumps(series).encode()


STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2.1001"
"""The UIDs that `dicom_files` writes."""

MULTIPART = 'multipart/related; type="application/dicom"; boundary=cut'


def images(folder: Path, count: int, change: dicom_files.Change | None = None) -> list[bytes]:
    """A series as files."""
    shape = (count, 6, 5)
    voxels = np.arange(count * 30, dtype=np.int16).reshape(shape)
    scan = Volume(voxels, Geometry.from_spacing(shape, (1, 1, 1)))
    dicom_files.write_series(folder / "made", scan, change)
    files = [path.read_bytes() for path in sorted((folder / "made").iterdir())]
    shutil.rmtree(folder / "made")
    return files


def multipart(files: list[bytes]) -> bytes:
    """Files as WADO-RS sends them."""
    head = b"--cut\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + file + b"\r\n" for file in files) + b"--cut--\r\n"
