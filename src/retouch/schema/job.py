"""A job as callers see it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from retouch.schema.response import EditResult, ErrorBody, Progress


class Job(BaseModel):
    """An edit that outlives its connection."""

    id: str = Field(description="Id of the job.", examples=["8f14e45fceea467f9575a4c1f5ab0f11"])
    state: Literal["queued", "running", "completed", "failed", "cancelled"] = Field(
        description="queued and running are not the end; the others are.", examples=["running"]
    )
    request_id: str = Field(
        description="Id of the request that began the job; in every log line of the edit.",
        examples=["8f14e45fceea467f9575a4c1f5ab0f11"],
    )
    created_at: str = Field(
        description="When the job was accepted, RFC 3339 in UTC.",
        examples=["2026-11-24T18:00:00Z"],
        json_schema_extra={"format": "date-time"},
    )
    ended_at: str | None = Field(
        default=None,
        description="When it ended; null before, and where its process died.",
        examples=["2026-11-24T18:00:20Z"],
    )
    progress: Progress | None = Field(
        default=None,
        description="Newest progress while it runs, up to 15 s old on another replica.",
        examples=[{"stage": "denoise", "step": 12, "steps": 30}],
    )
    answer: EditResult | ErrorBody | None = Field(
        default=None,
        description="What POST /edit answers: the result by a new link, or the error. Null before "
        "the end.",
        examples=[None],
    )

    @staticmethod
    def parse_answer(answer: Mapping[str, Any]) -> EditResult | ErrorBody:
        """Return a stored answer as its model."""
        kind = EditResult if answer.get("status") == "success" else ErrorBody
        return kind.model_validate(answer)
