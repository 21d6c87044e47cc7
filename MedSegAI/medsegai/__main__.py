# PYTHON_ARGCOMPLETE_OK
"""`python -m medsegai` is the `medsegai` command."""

from __future__ import annotations

import sys

from medsegai.cli import main

sys.exit(main())
