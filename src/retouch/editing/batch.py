"""The results of one request: made one after another, each encoded and stored beside the next."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from retouch.editing.job import Job
from retouch.editing.ports import EditParams, EngineOutput, PreparedEdit
from retouch.editing.result import Finished
from retouch.editing.steps import Steps
from retouch.errors import EditError
from retouch.schema import Result

_SEEDS = 1 << 32


def list_seeds(first: int, count: int) -> list[int]:
    """Return the seeds of `count` results.

    >>> list_seeds(2**32 - 1, 3)
    [4294967295, 0, 1]
    """
    return [(first + number) % _SEEDS for number in range(count)]


async def edit_each(
    steps: Steps, job: Job, prepared: PreparedEdit, seeds: Mapping[int, int]
) -> AsyncIterator[tuple[int, EditParams, EngineOutput]]:
    """Run the model for each seed; yield its number, the parameters and what the model made.

    The caller must have acquired the model. All results share one conditioning.

    Raises:
        EditError: as `Steps.edit`.
    """
    conditioning = None
    for turn, (number, seed) in enumerate(seeds.items()):
        params = replace(prepared.params, seed=seed)
        work = replace(prepared, params=params, conditioning=conditioning)
        output = await steps.edit(job, work, turn=turn, turns=len(seeds))
        conditioning = output.conditioning
        # Without the conditioning, or it would hold GPU memory until the result is stored.
        yield number, params, replace(output, conditioning=None)


@asynccontextmanager
async def finishing(
    found: Sequence[Finished | None], describe: Callable[[Finished], Result]
) -> AsyncIterator[dict[int, asyncio.Future[Finished]]]:
    """Give the block a table of results by number, for the tasks that finish them.

    It begins with those `found`. After the block all have ended. Where the block or a task fails, the
    details of the error list the finished results, as `describe` says them. A cancellation cancels
    the tasks.

    Raises:
        EditError: of a task, unless the block raises.
    """
    results: dict[int, asyncio.Future[Finished]] = {}
    for number, one in enumerate(found):
        if one is not None:
            results[number] = asyncio.get_running_loop().create_future()
            results[number].set_result(one)
    try:
        yield results
        await asyncio.gather(*results.values())
    except EditError as error:
        await asyncio.gather(*results.values(), return_exceptions=True)
        ended = [results[number] for number in sorted(results)]
        if done := [describe(one.result()) for one in ended if not one.exception()]:
            error.details["results"] = done
        raise
    finally:
        for task in results.values():
            task.cancel()
        await asyncio.gather(*results.values(), return_exceptions=True)
