"""One file per command of the command line; `medsegai.cli` joins them.

A command has `add_parser(subparsers)`, which sets `run` to a function that takes the parsed arguments and returns
the exit code. These modules import torch and the engine only inside `run`.
"""
