"""A model folder, a Hub name or a URL -> an LLM."""

from dataclasses import dataclass

from apportion.route.llm.protocol import LLM


@dataclass(frozen=True, slots=True)
class LLMSettings:
    """How to reach or run a model; each half is ignored by the other kind.

    Attributes:
        spec: a URL (http://host:port/v1), a model folder, or a name on the Hub.
        model: the server's name for the model. concurrency, timeout_s, retries: of calls to a server.
        batch_size, device, dtype: of a model in this process.
    """

    spec: str
    model: str | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 3
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"


def connect(settings: LLMSettings) -> LLM:
    """Open the model, or connect to the server and probe it."""
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

    return LocalLLM.open(settings.spec, batch_size=settings.batch_size, device=settings.device, dtype=settings.dtype)
