"""Outcomes -> a router -> decisions. What this package offers; its other modules are its own.

The names are loaded when they are first used: deciding needs numpy, training torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apportion.route.router.file import load_router as load_router
    from apportion.route.router.file import save_router as save_router
    from apportion.route.router.plan import TrainingPlan as TrainingPlan
    from apportion.route.router.price import Price as Price
    from apportion.route.router.price import parse_price as parse_price
    from apportion.route.router.report import training_record as training_record
    from apportion.route.router.report import training_text as training_text
    from apportion.route.router.router import Decision as Decision
    from apportion.route.router.router import Router as Router
    from apportion.route.router.train import Trained as Trained
    from apportion.route.router.train import train_router as train_router
    from apportion.route.router.utility import Scale as Scale
    from apportion.route.router.utility import Weights as Weights

_HOMES = {
    "Decision": "router",
    "Price": "price",
    "Router": "router",
    "Scale": "utility",
    "Trained": "train",
    "TrainingPlan": "plan",
    "Weights": "utility",
    "load_router": "file",
    "parse_price": "price",
    "save_router": "file",
    "train_router": "train",
    "training_record": "report",
    "training_text": "report",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} offers {', '.join(__all__)}, not {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
