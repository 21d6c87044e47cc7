"""`python -m medsegai.worker` is `medsegai worker`."""

from __future__ import annotations

from medsegai.worker.server import main

main()
