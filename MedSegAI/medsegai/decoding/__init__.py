"""Native readers of images, which run in a separate process, because they may crash; `io.decoder` starts it.

Libraries in C and C++ crash their process on some damaged files, or never return. Each module here has functions
that are called by name; they return JSON values and optionally an array. They do not import slow modules, because
the process starts with each command that reads an image.
"""

import struct
import zlib

PARSER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""The exceptions of parsers for unexpected bytes (found by damaging files)."""
