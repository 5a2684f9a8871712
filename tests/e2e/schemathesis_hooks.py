"""What schemathesis must know beside the schema."""

from schemathesis import Case, HookContext, hook

MAX_PROMPT_CHARACTERS = 800
MAX_PROMPT_TOKENS = 512


@hook
def filter_case(context: HookContext, case: Case) -> bool:
    """Drop prompts of too many tokens: no schema can say how many characters are a token."""
    if not isinstance(case.body, dict):
        return True
    prompts = [str(case.body.get(name)) for name in ("prompt", "negative_prompt")]
    return not any(
        len(prompt) <= MAX_PROMPT_CHARACTERS
        and len(prompt.encode(errors="replace")) > MAX_PROMPT_TOKENS
        for prompt in prompts
    )
