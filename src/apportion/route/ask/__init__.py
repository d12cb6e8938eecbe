"""What is asked of a model, and how its answers are read: prompts, the four pipelines, extraction, features.

Offered: what others need to ask and to read; the other modules are this package's own, but for `features`, `probes`
and `evidence`, whose names routers and profiles share.
"""

from apportion.route.ask.answered import Answered, complete
from apportion.route.ask.extraction import Extracted, extract
from apportion.route.ask.kinds import kind_of
from apportion.route.ask.pipelines import asked_as, build_request, uses_passages
from apportion.route.ask.prompts import Example, Prompt, Prompts, load_prompts
from apportion.route.ask.setup import Setup, require_trained_on
from apportion.route.ask.source import ProfileSource
from apportion.route.ask.strategy import STRATEGIES

__all__ = [
    "STRATEGIES",
    "Answered",
    "Example",
    "Extracted",
    "ProfileSource",
    "Prompt",
    "Prompts",
    "Setup",
    "asked_as",
    "build_request",
    "complete",
    "extract",
    "kind_of",
    "load_prompts",
    "require_trained_on",
    "uses_passages",
]
