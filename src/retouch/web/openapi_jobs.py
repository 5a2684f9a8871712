"""OpenAPI of jobs, and of parameters."""

from typing import Any

_STATUSES = (400, 401, 403, 404, 405, 500, 503)
_STATUSES_OF_PUT = (409, 413, 415, 429, 499, 504)
_ID = "^[0-9A-Za-z][0-9A-Za-z_-]{0,127}$"
_JOB = {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}

ACCEPTED_EDIT = {
    "description": "With Prefer: respond-async: the edit is a job, whose state is at Location.",
    "headers": {"Location": {"schema": {"type": "string"}}},
    # No content of its own, as for streams: clients would get a union for an answer.
    "x-body": {"$ref": "#/components/schemas/Job"},
}
_ACCEPTED = {"description": "The job has not ended.", "content": _JOB}


def parameter(
    name: str, place: str, description: str, *, required: bool, **limits: Any
) -> dict[str, Any]:
    """Return a text of an operation within `limits`; `place` is where it stands: path, query or header."""
    return {
        "name": name,
        "in": place,
        "required": required,
        "description": description,
        "schema": {"type": "string", **limits},
    }


EDIT_HEADERS = [
    parameter("Prefer", "header", "respond-async: answer 202 with a job at once.", required=False),
    parameter(
        "Idempotency-Key",
        "header",
        "Makes the edit a job that goes on without its caller; the same request with the same key gets "
        "its answer, and runs again only after a failure that may be retried.",
        required=False,
        maxLength=255,
    ),
]


def jobs_paths(request_body: dict[str, Any]) -> dict[str, Any]:
    """Return the path of a job; `request_body` is that of `POST /edit`."""
    ended = {"description": "The job.", "content": _JOB}
    followed = ended | {"x-event-stream": {"$ref": "#/components/schemas/EditEvent"}}
    spelled = "1 to 128 of a-z, 0-9, - and _; A-Z are as a-z."
    job_id = parameter("id", "path", spelled, required=True, pattern=_ID)
    return {
        "/jobs/{id}": {
            "parameters": [job_id],
            "put": _describe(
                "Begin a job under an id of your own",
                "The same request again returns the job; another one is a conflict. With Accept: "
                "text/event-stream the answer is a stream as that of GET.",
                *_STATUSES_OF_PUT,
                operationId="put_job",
                requestBody=request_body,
                ok={"200": followed, "202": _ACCEPTED},
            ),
            "get": _describe(
                "A job: state, progress, answer",
                "With Accept: text/event-stream the answer is a stream as that of POST /edit.",
                operationId="get_job",
                ok={"200": followed},
            ),
            "delete": _describe(
                "Cancel a job",
                "It ends within a denoising step, or where another replica runs it within 15 s.",
                operationId="cancel_job",
                ok={"200": ended, "202": _ACCEPTED},
            ),
        }
    }


def _describe(summary: str, more: str, *statuses: int, **fields: Any) -> dict[str, Any]:
    """Return an operation with its errors; the field `ok` holds its other responses."""
    answers = {
        str(status): {"$ref": f"#/components/responses/Error{status}"}
        for status in (*_STATUSES, *statuses)
    }
    about = {"summary": summary, "description": more, "responses": fields.pop("ok") | answers}
    return about | fields
