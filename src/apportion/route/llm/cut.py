"""A prompt made to fit a context: passages go first, worst first; then examples and the message's beginning."""

from collections.abc import Callable
from dataclasses import replace

from apportion.core.errors import PromptTooLongError
from apportion.route.llm.protocol import Request


def cut(request: Request, characters: int) -> Request:
    """The request with so many characters fewer: from the end of the expendable span, then from the start.

    Where the span is not enough, the examples go too.

    >>> request = Request("P1 P2 question", expendable=(0, 6))
    >>> cut(request, 3).user, cut(request, 8).user
    ('P1 question', 'estion')
    """
    start, end = request.expendable
    from_span = min(characters, end - start)
    user = request.user[: end - from_span] + request.user[end:]
    from_start = characters - from_span
    span = (start, end - from_span) if from_start == 0 else (0, 0)
    examples = request.examples if from_start == 0 else ()
    return replace(request, user=user[from_start:], expendable=span, examples=examples)


def fit(request: Request, length: Callable[[Request], int], limit: int) -> Request:
    """The longest cut of the request whose length is at most `limit`; itself when it fits.

    Args:
        length: tokens of the whole prompt; called about log2(characters) times when it does not fit.

    Raises:
        PromptTooLongError: nothing fits, since the template and the system message alone are longer.
    """
    if length(request) <= limit:
        return request
    if length(cut(request, len(request.user))) > limit:
        raise PromptTooLongError(
            f"the prompt without its text has more than {limit} tokens, all that the context leaves",
            "shorten the system message, lower max_tokens, or use a model with a longer context",
        )
    too_few, enough = 0, len(request.user)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if length(cut(request, middle)) <= limit:
            enough = middle
        else:
            too_few = middle
    return cut(request, enough)
