"""Native readers of images, as they run in a process of their own, which may crash; `io.decoder` starts it.

Libraries in C and C++ end their process at some damaged files, or never come to an end. Each module here has
functions that the process is asked for by name; they return an answer that JSON can hold and, where there is one,
an array. They import nothing that takes long, because the process starts with each command that reads an image.
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
"""What parsers raise on bytes that their authors did not expect (found by damaging files)."""
