"""Server-sent events."""

from pydantic import BaseModel


def format_event(name: str, body: BaseModel) -> str:
    """Format one server-sent event."""
    return f"event: {name}\ndata: {body.model_dump_json()}\n\n"
