"""Hooks for what the schema cannot tell schemathesis."""

from io import BytesIO

from hypothesis import strategies
from PIL import Image
from schemathesis import Case, HookContext, hook, openapi

# A white picture of ASCII bytes alone: schemathesis cannot judge bytes by a schema that has conditions.
_picture = BytesIO()
Image.new("L", (64, 64), 255).save(_picture, "TIFF", tiffinfo={262: 0})  # white is zero
openapi.format("binary", strategies.just(_picture.getvalue().decode("ascii")))

MAX_PROMPT_CHARACTERS = 800
MAX_PROMPT_TOKENS = 512


@hook
def filter_case(context: HookContext, case: Case) -> bool:
    """Drop prompts of too many tokens, those of a form that are no text, and jobs that ask for base64."""
    if not isinstance(case.body, dict):
        return True
    is_job = {name.lower() for name in case.headers or ()} & {"idempotency-key", "prefer"}
    if is_job and case.body.get("response_format") == "b64_json":
        return False
    given = [case.body.get(name) for name in ("prompt", "negative_prompt")]
    # A form has no types: it sends true as the text "true".
    if case.media_type == "multipart/form-data" and any(
        isinstance(one, int | float) for one in given
    ):
        return False
    prompts = list(map(str, given))
    return not any(
        len(prompt) <= MAX_PROMPT_CHARACTERS
        and len(prompt.encode(errors="replace")) > MAX_PROMPT_TOKENS
        for prompt in prompts
    )
