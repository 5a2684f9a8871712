"""The processes that edit together with this one, each on a GPU of its own, and the edit shared out over them."""

import os
import threading
import traceback
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait

import torch

from retouch.engine import recording, ulysses
from retouch.engine.branches import BranchInputs, LocalBranches, Velocities
from retouch.engine.memory.probe import VISIBLE
from retouch.engine.rank_process import (
    ENDED,
    Begin,
    Cast,
    Join,
    RankProcess,
    Step,
    start_process,
)
from retouch.engine.ulysses import WHOLE, Share
from retouch.errors import ModelError, ModelLost, OutOfMemory


class Team:
    """The processes besides this one. With `guidance` they have branches of their own.

    Once they `join` they share a branch's tokens. `close` ends them.
    """

    def __init__(self, others: Sequence[RankProcess], *, guidance: bool) -> None:
        self.guidance = guidance
        self._others = others
        self._shares: dict[int, Share] = {}
        self._busy: Sequence[RankProcess] = ()
        self._size = 1
        self._closing = threading.Event()
        self.close = weakref.finalize(self, _close, others, self._shares, self._closing)

    @property
    def processes(self) -> int:
        """How many there are, with this one."""
        return 1 + len(self._others)

    def choose_size(self, processes: int, heads: int) -> int:
        """Return how many of `processes` share the tokens of a branch: each needs as many heads."""
        sizes = (size for size in self._shares if size <= processes and heads % size == 0)
        return max(sizes, default=1)

    def share(self, size: int) -> Share:
        """Return this process's share of the tokens, of so many."""
        return self._shares.get(size, WHOLE)

    def start(self, inputs: Sequence[BranchInputs], size: int) -> None:
        """Begin an edit in as many of them as there are `inputs`; collect what comes of it.

        Raises:
            ModelLost: one has ended.
        """
        self._busy, self._size = self._others[: len(inputs)], size
        for other, its in zip(self._busy, inputs, strict=True):
            other.send(Begin(its.to("cpu"), size))

    def begin_step(self, latents: torch.Tensor, step: int) -> None:
        """Have a step computed by those of the edit.

        Raises:
            ModelLost: one has ended.
        """
        none = torch.empty(1, 0, latents.shape[2])
        for rank, other in enumerate(self._busy, 1):
            other.send(Step(none if rank % self._size else latents.cpu(), step))

    def collect(self) -> list[list[torch.Tensor]]:
        """Wait for those of the edit: the velocities of each, on the host; none as it begins.

        Raises:
            OutOfMemory: another GPU ran out of memory.
            ModelError: the model failed there.
            ModelLost: a process has ended.
        """
        answers = [other.receive() for other in self._busy]
        if any(answer.out_of_memory for answer in answers):
            raise OutOfMemory("another GPU ran out of memory; a smaller image may fit")
        if any(answer.lost for answer in answers):
            raise ModelLost(ENDED)
        for answer in answers:
            if answer.fault:
                raise ModelError("the model failed on this edit", reason=answer.fault)
        return [list(answer.velocities) for answer in answers]

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights there.

        Raises:
            ModelLost: one has ended.
        """
        for other in self._others:
            other.send(Cast(dtype))

    def end(self) -> None:
        """End the processes at once, and what this one waits for in an exchange with them."""
        _end(self._others, self._shares)

    def wait_until_loaded(self) -> None:
        """Wait for the model there.

        Raises:
            ModelError: it could not be loaded.
        """
        for other in self._others:
            answer = other.receive()
            if answer.lost:
                raise ModelError("the process of another GPU ended while it loaded")
            if answer.fault:
                raise ModelError(f"on another GPU: {answer.fault}")

    def join(self, device: torch.device, *, is_resident: bool) -> None:
        """Have all processes share the tokens of a branch from now on, and end together.

        `is_resident` where this one streams no weights.

        Raises:
            RuntimeError: they do not find each other.
            ModelError: one failed.
        """
        store, port = ulysses.open_store()
        for rank, other in enumerate(self._others, 1):
            other.send(Join(port, rank, self.processes))
        shares = ulysses.join(port, 0, self.processes, device, is_resident=is_resident)
        self._shares.update(shares)
        self._busy = self._others
        self.collect()
        self._store = store  # the shares use it
        ends = [os.pidfd_open(other.process.pid) for other in self._others if other.process]
        threading.Thread(
            target=_end_with, args=(ends, self._others, self._shares, self._closing), daemon=True
        ).start()


class SplitBranches:
    """Branches shared out over this process and a team.

    A branch a process makes the same bytes as one process, as each is computed alike; shares of a
    branch's tokens differ by rounding. Where a request brought an adapter, which is only here, the
    others rest.
    """

    def __init__(self, here: LocalBranches, team: Team) -> None:
        self._here = here
        self._team = team

    def start(self, inputs: BranchInputs) -> Velocities:
        """Begin on all sides.

        Raises:
            ModelLost: another process has ended.
        """
        branches = len(inputs.texts)
        parts = branches if self._team.guidance else 1
        size = self._team.choose_size(self._team.processes // parts, self._here.heads)
        if parts * size == 1 or not self._here.has(inputs.loras):
            return self._here.start(inputs)
        # As (part, share): processes that share a branch follow each other.
        each = [
            replace(inputs, texts=inputs.texts[part * branches // parts :][: branches // parts])
            for part in range(parts)
            for _ in range(size)
        ]
        self._team.start(each[1:], size)
        try:
            here = self._here.start(each[0], self._team.share(size))
        finally:  # or the first step would read what comes of the start
            self._team.collect()

        def compute(latents: torch.Tensor, step: int) -> list[torch.Tensor]:
            self._team.begin_step(latents, step)
            found = [self._compute(here, latents, step, size), *self._team.collect()]
            return [
                torch.cat([share[branch].to(self._here.device) for share in shares], dim=1)
                for shares in (found[at : at + size] for at in range(0, len(found), size))
                for branch in range(len(shares[0]))
            ]

        return compute

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights on all sides."""
        self._team.cast(dtype)
        self._here.cast(dtype)

    def _compute(
        self, here: Velocities, latents: torch.Tensor, step: int, size: int
    ) -> list[torch.Tensor]:
        try:
            return here(latents, step)
        except Exception as error:
            if size > 1:  # the others wait for this one in an exchange, or it failed with them
                traceback.clear_frames(error.__traceback__)  # they hold a recording of the exchange
                self._team.end()
            if size == 1 or not isinstance(error, torch.OutOfMemoryError):
                self._team.collect()  # which raises what is known of the others
            raise


def _end_with(
    ends: Sequence[int],
    others: Sequence[RankProcess],
    shares: Mapping[int, Share],
    closing: threading.Event,
) -> None:
    """End all once one has ended: a GPU would wait for it in an exchange for ever.

    But not as they close: the interpreter may be on its way out, and would stop this thread within NCCL.
    """
    if ends:
        wait(ends)
        if not closing.is_set():
            _end(others, shares)
    for descriptor in ends:
        os.close(descriptor)


def _end(others: Sequence[RankProcess], shares: Mapping[int, Share]) -> None:
    for other in others:
        other.kill()
    _abort(shares)


def _close(
    others: Sequence[RankProcess], shares: Mapping[int, Share], closing: threading.Event
) -> None:
    closing.set()
    for other in others:
        other.close()
    _abort(shares)


def _abort(shares: Mapping[int, Share]) -> None:
    with recording.LOCK:
        for share in shares.values():
            with suppress(RuntimeError):  # it is aborted
                share.group.abort()


def start_team(settings: object, device: torch.device, *, processes: int, guidance: bool) -> Team:
    """Start all of `processes` but this one, each on a further GPU.

    The GPUs are those that this process sees; on a CPU all use it. The processes begin to load
    `settings`, `CheckpointSettings` that this module only passes on.

    Raises:
        ModelError: there are fewer GPUs.
    """
    gpus = [""] * processes
    if device.type == "cuda":
        gpus = choose_gpus(os.environ.get(VISIBLE, ""), torch.cuda.device_count(), processes)
    return Team([start_process(settings, gpu) for gpu in gpus[1:]], guidance=guidance)


def choose_gpus(visible: str, count: int, wanted: int) -> list[str]:
    """Return the first GPUs as CUDA_VISIBLE_DEVICES names them, of `count` that are visible.

    Raises:
        ModelError: there are fewer than `wanted`.

    >>> choose_gpus("", 2, 2), choose_gpus("4, GPU-7", 2, 2)
    (['0', '1'], ['4', 'GPU-7'])
    """
    if count < wanted:
        raise ModelError(f"PARALLEL needs {wanted} GPUs; found {count}")
    names = visible.split(",") if visible else map(str, range(count))
    return [name.strip() for name in names][:wanted]
