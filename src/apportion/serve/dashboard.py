"""The page at `/` and the data it shows. The page is one file without outside assets; it holds no data itself."""

import asyncio
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from apportion.serve.controls import Controls
from apportion.serve.refusal import json_response
from apportion.serve.serving import Serving

FIRST_PAGE = 300
JUDGED = 300  # recent questions that the frontier is drawn for
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def page(request: Request, serving: Serving) -> Response:
    """The dashboard."""
    text = files("apportion.serve").joinpath("dashboard.html").read_bytes()
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


async def data(request: Request, serving: Serving) -> Response:
    """Totals, and the decisions after the one named (all recent ones without a name)."""
    after, found = request.query_params.get("after", ""), []
    for record in serving.log.recent(FIRST_PAGE):
        if record["id"] == after:
            break
        found.append({**record, "features": {}})
    name = serving.routing.reference.strategy
    return json_response({"decisions": found, "totals": serving.metrics.totals(), "always": name})


async def frontier(request: Request, serving: Serving) -> Response:
    """What pipelines and router are worth over a range of token weights, and the routes of recent questions there."""
    recent = serving.log.recent(JUDGED)
    features = [record["features"] for record in recent if record["features"]]
    default: Controls = serving.settings.default
    found = await asyncio.to_thread(
        serving.routing.frontier, features, default.token_weight, default.latency_weight if serving.routing.timed else 0
    )
    return json_response(found)
