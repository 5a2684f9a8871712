"""Hooks for what the schema cannot tell schemathesis."""

from schemathesis import Case, HookContext, hook

MAX_PROMPT_CHARACTERS = 800
MAX_PROMPT_TOKENS = 512


@hook
def filter_case(context: HookContext, case: Case) -> bool:
    """Drop prompts of too many tokens: a schema cannot limit tokens."""
    if not isinstance(case.body, dict):
        return True
    prompts = [str(case.body.get(name)) for name in ("prompt", "negative_prompt")]
    return not any(
        len(prompt) <= MAX_PROMPT_CHARACTERS
        and len(prompt.encode(errors="replace")) > MAX_PROMPT_TOKENS
        for prompt in prompts
    )
