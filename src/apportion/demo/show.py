"""The main job of both halves on the shipped model: a table of plans, a table of strategies, two plots.

Beside the second table stands that of a real model, read from the saved results.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from apportion.core.artifact import claim_folder, plain, write_json
from apportion.demo import show_bits, show_route
from apportion.demo.show_bits import BitsPlan, BitsShown
from apportion.demo.show_real import NotThere, RealShown, real_text, show_real
from apportion.demo.show_route import RoutePlan, RouteShown


@dataclass(frozen=True, slots=True)
class Show:
    """How much is shown of each half."""

    bits: BitsPlan = field(default_factory=BitsPlan)
    route: RoutePlan = field(default_factory=RoutePlan)


@dataclass(frozen=True, slots=True)
class Shown:
    """Everything that was shown; `real` was measured before, `seconds` is the whole run's wall time."""

    out: str
    bits: BitsShown
    route: RouteShown
    real: RealShown | NotThere
    seconds: float


def show(out: Path, plan: Show | None = None) -> Shown:
    """Run both halves into a new folder and save what was shown as `demo.json`.

    Raises:
        ArtifactExistsError: the folder holds something.
    """
    began, plan = time.monotonic(), plan or Show()
    claim_folder(out, resume=False)
    for half in ("bits", "route"):
        (out / half).mkdir()
    bits = show_bits.show_bits(out / "bits", plan.bits)
    route = show_route.show_route(out / "route", plan.route)
    shown = Shown(str(out), bits, route, show_real(), time.monotonic() - began)
    write_json(out / "demo.json", plain(shown))
    return shown


def text_of(shown: Shown) -> str:
    """What a person sees at the end: the tables and where everything lies."""
    bits, route = shown.bits, shown.route
    return "\n".join(
        [
            "Bits for layers: the shipped model, mean KL from full precision and perplexity on held-out text",
            show_bits.table_text(bits.rows),
            "",
            "Routing: the shipped model on its made-up world, recorded test questions, the router learned on the train "
            "split; probes counted",
            show_route.table_text(route.rows),
            route.first_line,
            "",
            show_route.live_text(route.live),
            "",
            real_text(shown.real),
            "",
            f"checkpoint       {bits.files['checkpoint']}",
            f"bits: report     {bits.files['report']}",
            f"bits: frontier   {bits.files['frontier']}",
            f"router           {route.files['router']}",
            f"route: report    {route.files['report']}",
            f"route: frontier  {route.files['frontier']}",
            f"all of it        {shown.out}/demo.json, {shown.seconds:.0f} s",
        ]
    )
