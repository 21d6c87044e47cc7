"""One file per command of the command line; `medsegai.cli` joins them.

A command has `add_parser(subparsers)`, which sets `run` to a function from the parsed arguments to the
exit code. These modules import torch and the engine only inside `run`.
"""
