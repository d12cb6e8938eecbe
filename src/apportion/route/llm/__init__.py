"""Language models behind one protocol: any OpenAI-compatible server, or a model in this process."""

from apportion.route.llm.protocol import LLM, Completion, Request

__all__ = ["LLM", "Completion", "Request"]
