"""An OpenAI-compatible endpoint that spends only what a query needs, in front of any server or model."""

from apportion.serve.app import create_app
from apportion.serve.routing import Routing
from apportion.serve.settings import Settings, Timeouts
from apportion.serve.upstream import Address, Upstream

__all__ = ["Address", "Routing", "Settings", "Timeouts", "Upstream", "create_app"]
