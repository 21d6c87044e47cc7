"""`python -m medsegai.training CONFIG` is `medsegai train quicknat CONFIG`, also under torchrun."""

from __future__ import annotations

import sys

from medsegai.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "quicknat", *sys.argv[1:]]))
