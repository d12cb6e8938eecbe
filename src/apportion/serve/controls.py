"""What a client may choose: a model alias, then headers, then a field of the body; the later ones win."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from apportion.serve.refusal import Refusal

AUTO, OFF = "auto", "off"
ROUTES = (AUTO, OFF, "direct", "rag", "cot", "rag+cot")
HEADER = "x-apportion-"
_NUMBERS = ("token_weight", "price_weight", "latency_weight")


@dataclass(frozen=True, slots=True)
class Controls:
    """How one request is to be routed.

    Attributes:
        route: "auto", a pipeline to force, or "off": passed on as it is.
        token_weight, latency_weight: what always-on tokens and latency are worth, in points of quality.
        priced: the token weight was given as one of prices, which only a router that learned from prices can read.
    """

    route: str = AUTO
    token_weight: float = 0.1
    latency_weight: float = 0.0
    priced: bool = False


@lru_cache(maxsize=8)  # every request asks for them
def aliases(default: Controls, *, timed: bool) -> Mapping[str, Controls]:
    """Model names that any client can choose by, the weakest control.

    Args:
        default: of `auto`. timed: whether the router knows latencies, so that a weight on them means something.

    >>> sorted(aliases(Controls(), timed=False))
    ['auto', 'auto-cheap', 'auto-quality', 'cot', 'direct', 'rag', 'rag-cot']
    """
    named = {
        "auto": default,
        "auto-cheap": replace(default, token_weight=0.5, latency_weight=0.5 if timed else 0.0),
        "auto-quality": replace(default, token_weight=0.01, latency_weight=0.0),
    }
    forced = {route.replace("+", "-"): replace(default, route=route) for route in ROUTES[2:]}
    return MappingProxyType(named | forced)


def read_controls(base: Controls, headers: Mapping[str, str], field: Mapping[str, Any]) -> Controls:
    """The alias's controls, changed by headers, then by the body's `apportion` field.

    Args:
        headers: lower-case names; `x-apportion-route`, `-token-weight`, `-price-weight`, `-latency-weight`.
        field: `route`, `token_weight`, `price_weight`, `latency_weight`.

    Raises:
        Refusal: an unknown key or route, or a weight that is no finite number from 0.

    >>> read_controls(Controls(), {"x-apportion-route": "cot"}, {"token_weight": 1})
    Controls(route='cot', token_weight=1.0, latency_weight=0.0, priced=False)
    """
    unknown = sorted(set(field) - {"route", *_NUMBERS})
    if unknown:
        raise Refusal(
            400, f"apportion.{unknown[0]}: is no control; expected route, {', '.join(_NUMBERS)}", param="apportion"
        )
    changed: dict[str, Any] = {}
    for name in ("route", *_NUMBERS):
        header = HEADER + name.replace("_", "-")
        for where, value in ((header, headers.get(header)), (f"apportion.{name}", field.get(name))):
            if value is not None:
                changed[name] = _route(where, value) if name == "route" else _weight(where, value)
    if "price_weight" in changed:  # such a router's token weight is one of prices
        changed |= {"token_weight": changed.pop("price_weight"), "priced": True}
    return replace(base, **changed) if changed else base


def _route(where: str, value: object) -> str:
    route = str(value).strip().lower().replace("rag-cot", "rag+cot")
    if route not in ROUTES:
        raise Refusal(400, f"{where}: is {str(value)[:40]!r}, expected one of {', '.join(ROUTES)}", param=where)
    return route


def _weight(where: str, value: object) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise Refusal(400, f"{where}: is {repr(value)[:40]}, expected a finite number from 0", param=where)
    return weight
