"""The attempts of an Idempotency-Key: numbered from 0 without gaps, each after the one before failed."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

from retouch.errors import JobNotFound
from retouch.schema import ErrorBody, Job


async def accept_attempt(
    accept: Callable[[int], Awaitable[Job]], has_begun: Callable[[int], Awaitable[bool]]
) -> Job:
    """Accept the first attempt that has not failed in a way that passes, and has not expired.

    Raises:
        EditError: as `accept`, without JobNotFound.
    """
    attempt = 0
    while True:
        with suppress(JobNotFound):
            job = await accept(attempt)
            if not (isinstance(job.answer, ErrorBody) and job.answer.error.details.retryable):
                return job
        attempt = max(attempt + 1, await find_last(has_begun, attempt))


async def find_last(has_begun: Callable[[int], Awaitable[bool]], first: int) -> int:
    """Return the last attempt that has begun; `first` has. Asks 2 log n times for n attempts after it.

    A client that repeats its request for an hour while an origin is down makes hundreds.
    """
    low, step = first, 1
    while await has_begun(low + step):
        low, step = low + step, 2 * step
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await has_begun(middle) else (low, middle)
    return low
