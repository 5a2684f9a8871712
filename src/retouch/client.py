"""A client of the Runpod endpoint: submit, wait, report progress, cancel.

Runpod's own SDK returns None for a failed job; here its error is raised as a class of `retouch.errors`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import httpx
from pydantic import ValidationError

from retouch.errors import (
    Cancelled,
    DeadlineExceeded,
    EditError,
    InternalError,
    Overloaded,
    RouteNotFound,
    Unauthorized,
)
from retouch.schema import EditRequest, EditResult, ErrorBody, restore_error

RUNPOD_URL = "https://api.runpod.ai/v2"

Progress = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Status:
    """A job's status: `state` is Runpod's word, `progress` the newest message."""

    state: str
    progress: Progress | None = None
    result: EditResult | None = None
    error: EditError | None = None


class Client:
    """One endpoint. Thread-safe; close it, or use it in a `with` block."""

    def __init__(
        self,
        endpoint_id: str,
        api_key: str,
        *,
        base_url: str = RUNPOD_URL,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds each request, not the edit."""
        self._http = httpx.Client(
            base_url=f"{base_url.rstrip('/')}/{endpoint_id}/",
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=timeout_s,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Jobs keep running."""
        self._http.close()

    def submit(self, request: EditRequest | Mapping[str, Any]) -> str:
        """Queue an edit and return its job id.

        Raises:
            Unauthorized: the API key is wrong.
            RouteNotFound: there is no such endpoint.
            Overloaded: too many requests at once.
            InternalError: Runpod returned no job id.
            httpx.HTTPError: Runpod could not be reached or failed.
        """
        if isinstance(request, EditRequest):
            request = request.model_dump(exclude_unset=True)
        body = self._call("POST", "run", {"input": dict(request)})
        if "id" not in body:
            raise InternalError(f"Runpod returned no job id: {body.get('error', body)}"[:500])
        return str(body["id"])

    def status(self, job_id: str) -> Status:
        """Return the status of a job. Runpod forgets a job 30 minutes after its end.

        Raises:
            Unauthorized, RouteNotFound, Overloaded, httpx.HTTPError: as `submit`.
        """
        return read_status(self._call("GET", f"status/{job_id}"))

    def cancel(self, job_id: str) -> None:
        """Cancel a job; a running one ends within a step.

        Raises:
            Unauthorized, RouteNotFound, Overloaded, httpx.HTTPError: as `submit`.
        """
        self._call("POST", f"cancel/{job_id}")

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float = 900.0,
        every_s: float = 1.0,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> EditResult:
        """Wait until a job ends and return its result; `progress` is called with each new message.

        If the status cannot be read, it is requested again until `timeout_s` has passed.

        Raises:
            EditError: the job failed; of the class it failed with, if that is known.
            TimeoutError: the job is still running.
        """
        give_up_at_s = time.monotonic() + timeout_s
        reported: Progress | None = None
        while True:
            status = self._try_status(job_id)
            if status.error is not None:
                raise status.error
            if status.result is not None:
                return status.result
            if status.progress not in (None, reported):
                reported = status.progress
                progress(reported or {})
            if time.monotonic() + every_s > give_up_at_s:
                raise TimeoutError(f"the job is still running after {timeout_s:g} s")
            time.sleep(every_s)

    def edit(
        self,
        request: EditRequest | Mapping[str, Any],
        *,
        timeout_s: float = 900.0,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> EditResult:
        """Submit an edit and wait for its result. The job is cancelled if the wait ends early.

        Raises:
            EditError, TimeoutError, httpx.HTTPError: as `submit` and `wait`.
        """
        job_id = self.submit(request)
        try:
            return self.wait(job_id, timeout_s=timeout_s, progress=progress)
        except EditError:
            raise
        except BaseException:
            with suppress(EditError, httpx.HTTPError):  # the first error says more
                self.cancel(job_id)
            raise

    def _try_status(self, job_id: str) -> Status:
        try:
            return self.status(job_id)
        except (httpx.TransportError, httpx.DecodingError, Overloaded):
            return Status("UNKNOWN")
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status == httpx.codes.REQUEST_TIMEOUT or httpx.codes.is_server_error(status):
                return Status("UNKNOWN")
            raise

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        response = self._http.request(method, path, json=body)
        if response.status_code in (401, 403):
            raise Unauthorized("Runpod rejects the API key")
        if response.status_code == httpx.codes.NOT_FOUND:
            raise RouteNotFound("Runpod has no such endpoint or job")
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise Overloaded("too many requests to Runpod")
        response.raise_for_status()
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            text = "Runpod's response is not a JSON object"
            raise httpx.DecodingError(text, request=response.request)
        return answer


def read_status(job: Mapping[str, Any]) -> Status:
    """Parse Runpod's status of a job.

    >>> read_status({"status": "IN_PROGRESS", "output": {"stage": "denoise", "percent": 50}}).progress
    {'stage': 'denoise', 'percent': 50}
    """
    state, output = str(job.get("status")), job.get("output")
    if state == "COMPLETED":
        try:
            return Status(state, result=EditResult.model_validate(output))
        except ValidationError:
            return Status(state, error=InternalError("the job completed without a result"))
    if state == "FAILED":
        return Status(state, error=read_error(job.get("error")))
    if state == "CANCELLED":
        return Status(state, error=Cancelled("the job was cancelled"))
    if state == "TIMED_OUT":
        return Status(state, error=DeadlineExceeded("Runpod ended the job: it took too long"))
    return Status(state, progress=output if isinstance(output, Mapping) else None)


def read_error(text: object) -> EditError:
    """Parse the `error` of a failed job into the class it was raised as.

    A code unknown to this version gives an `EditError` with the code in `details`; a text that is not an
    error body comes from the platform and gives an `InternalError`.
    """
    try:
        body = ErrorBody.model_validate_json(text if isinstance(text, str) else "")
    except ValidationError:
        return InternalError(f"the job failed: {text}"[:500])
    return restore_error(body)
