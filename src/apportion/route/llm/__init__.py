"""Language models behind one protocol: any OpenAI-compatible server, or a model in this process.

Offered: `connect` and what it needs and gives; the modules behind it are this package's own.
"""

from apportion.route.llm.connect import LLMSettings, connect
from apportion.route.llm.protocol import LLM, Completion, Echo, Finish, Request

__all__ = ["LLM", "Completion", "Echo", "Finish", "LLMSettings", "Request", "connect"]
