"""Jobs that are stopped at any place where they can be, and how much they compute between two such places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules import module

from medsegai.progress import Progress

NEVER = 10**9


class StopAt(Progress):
    """A progress that stops its job at the so many-th check, from 0.

    Attributes:
        checks: the checks so far.
        networks: the calls of networks since the last check.
        longest: the largest number of such calls between two checks.
    """

    def __init__(self, at: int = NEVER) -> None:
        super().__init__()
        self._at = at
        self.checks = self.networks = self.longest = 0

    def check(self) -> None:
        if self.checks == self._at:
            self.cancel.set()
        self.checks += 1
        self.longest, self.networks = max(self.longest, self.networks), 0
        super().check()

    @contextmanager
    def counted_networks(self) -> Iterator[None]:
        """Count the calls of whole networks within the block."""
        depth = 0

        def begin(_module: torch.nn.Module, _arguments: object) -> None:
            nonlocal depth
            depth += 1

        def end(called: torch.nn.Module, _arguments: object, _answer: object) -> None:
            nonlocal depth
            depth -= 1
            inner = any(True for _ in called.children())
            self.networks += depth == 0 and inner

        hooks = [
            module.register_module_forward_pre_hook(begin),
            module.register_module_forward_hook(end),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def checks_of(run: Callable[[Progress], object]) -> int:
    """Return in how many places a job can be stopped, from a whole run, which computes little between two."""
    whole = StopAt()
    with whole.counted_networks():
        run(whole)
    assert whole.longest <= MOST_NETWORKS, "a user who stops the job would wait"
    return whole.checks


MOST_NETWORKS = 14
"""The largest number of calls of networks, of their parts and of losses between two checks: those of one step."""
