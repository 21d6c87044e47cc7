"""`python -m medsegai.worker` serves, as `medsegai worker` does."""

from __future__ import annotations

from medsegai.worker.server import main

main()
