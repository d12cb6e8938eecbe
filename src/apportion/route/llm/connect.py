"""A model folder, a Hub name or a URL -> an LLM."""

from dataclasses import dataclass

from apportion.route.llm.protocol import LLM


@dataclass(frozen=True, slots=True)
class LLMSettings:
    """How to reach or run a model; each half is ignored by the other kind.

    Attributes:
        spec: a URL (http://host:port/v1), a model folder, or a name on the Hub.
        model: the server's name for the model; None where it serves just one.
        concurrency: calls to a server at once. timeout_s: for one call in all. retries: after the first call.
        batch_size: sequences that a model in this process decodes together.
        device: auto, cpu, cuda or cuda:N. dtype: auto, float32, bfloat16 or float16.
        trust_remote_code: run code that comes with a checkpoint.
    """

    spec: str
    model: str | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 3
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False


def connect(settings: LLMSettings) -> LLM:
    """Open the model, or connect to the server and probe it.

    Args:
        settings: where, and how.

    Returns:
        An LLM; close it when done.

    Raises:
        InputError: no such model, a model that must be named, or settings out of range.
        ServiceError: the server is down, refuses the key or answers with no completion.
    Cost: a server is asked for its models where none is named, and for one completion of at most 8 tokens, again
        for each setting that it refuses; a model in this process is loaded.

    >>> connect(LLMSettings("http://localhost:1/v1", "tiny", retries=0))
    Traceback (most recent call last):
    ...
    apportion.core.errors.ServiceError: http://localhost:1/v1: cannot be reached: [Errno 111] Connection refused
      remedy: start the server, or correct the URL; finished work is kept and --resume continues it
    """
    if settings.spec.startswith(("http://", "https://")):
        from apportion.route.llm.openai import OpenAILLM

        return OpenAILLM(
            settings.spec,
            settings.model,
            concurrency=settings.concurrency,
            timeout_s=settings.timeout_s,
            retries=settings.retries,
        )
    from apportion.route.llm.local import LocalLLM

    return LocalLLM.open(
        settings.spec,
        batch_size=settings.batch_size,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
