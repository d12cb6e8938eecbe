"""A router on disk: `router.safetensors` with every array, and a manifest that says what it was made from."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from apportion.core.artifact import (
    Json,
    claim_folder,
    read_manifest,
    versions,
    write_bytes,
    write_manifest,
)
from apportion.core.errors import ArtifactCorruptError, ArtifactMismatchError
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.router.decider import Constant, Decider
from apportion.route.router.forest import Forest
from apportion.route.router.gate import Gate
from apportion.route.router.linear import Linear
from apportion.route.router.policy import Layers, Policy
from apportion.route.router.price import Price
from apportion.route.router.reader import Reader
from apportion.route.router.router import BY_ROW, Guard, Router, Tier
from apportion.route.router.second import Second
from apportion.route.router.stump import Stump
from apportion.route.router.utility import Scale

KIND = "apportion.router"
ARRAYS = "router.safetensors"
Arrays = dict[str, np.ndarray]
GUARDS = ("any", "undrafted")
BUILT: dict[str, type[Linear] | type[Stump] | type[Forest]] = {"linear": Linear, "stump": Stump, "forest": Forest}
OWN = {
    "linear": ("means", "slopes"),
    "stump": ("feature", "threshold", "below", "above"),
    "forest": ("feature", "threshold", "leaves"),
    "constant": ("column",),
}


def save_router(folder: Path, router: Router, record: Mapping[str, Any]) -> None:
    """Write a router into an empty folder; the manifest last.

    Args:
        record: how it was trained, kept in the manifest beside what the router needs.

    Raises:
        ArtifactExistsError: the folder holds something.
    """
    from safetensors.numpy import save

    claim_folder(folder, resume=False)
    arrays: Arrays = {"means": router.means, "trained_on": router.trained_on}
    for tier in router.tiers:
        arrays |= {f"{tier.name}.{name}": value for name, value in _arrays(tier).items()}
    for name, gate in _guards(router):
        arrays |= {f"guard.{name}.gain": gate.gain, f"guard.{name}.error": gate.error}
    if router.second:
        second = router.second
        arrays |= {"second.mean": second.reader.mean, "second.spread": second.reader.spread}
        arrays |= {"second.means": second.means, "second.slopes": second.slopes}
    write_bytes(folder / ARRAYS, save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
    content = {
        "kind": KIND,
        "source": dict(router.source),
        "strategies": [STRATEGIES[column] for column in router.columns],
        "scale": asdict(router.scale),
        "has_latency": router.has_latency,
        "trained_on_version": router.keyed_by,
        "tiers": [_described(tier) for tier in router.tiers],
        "guard": {name: _gate_described(gate) for name, gate in _guards(router)} or None,
        "second": {"features": router.second.reader.names} if router.second else None,
        "training": dict(record),
        "versions": versions("torch", "numpy"),
    }
    write_manifest(folder, content, [ARRAYS])


def _guards(router: Router) -> list[tuple[str, Gate]]:
    return [(name, getattr(router.guard, name)) for name in GUARDS] if router.guard else []


def load_router(folder: Path, expected: Mapping[str, str | int] | None = None) -> Router:
    """Read a router; needs numpy, not torch.

    Args:
        folder: written by `apportion train-router` or `save_router`.
        expected: any of model, corpus, prompts, k that the caller is going to route for.

    Returns:
        The router, deciding as the one that was saved; earlier versions' files are read too.

    Raises:
        ArtifactError: incomplete. ArtifactCorruptError: changed since. ArtifactMismatchError: no router, or
            trained on another model, corpus, prompts or k (every one that differs is named).

    Cost: reads and checks about a megabyte.

    >>> import tempfile
    >>> from apportion.demo.recorded import recorded
    >>> from apportion.route.router import TrainingPlan, train_router
    >>> brief = TrainingPlan(folds=2, seeds=1, steps=20, check_every=10)
    >>> folder = Path(tempfile.mkdtemp()) / "router"
    >>> save_router(folder, train_router(recorded("train").select(np.arange(60)), brief).router, {})
    >>> load_router(folder).decide({"question_words": 9.0}, token_weight=0.3).weights
    Weights(token=0.3, latency=0.0)
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise ArtifactMismatchError(
            f"{folder}: is a folder of {manifest.get('kind')!r}, expected {KIND}",
            "name a folder that `apportion train-router` wrote",
        )
    refuse_other(folder, manifest["source"], expected or {})
    try:
        arrays: Arrays = load((folder / ARRAYS).read_bytes())
        return _assemble(manifest, arrays)
    except (SafetensorError, KeyError) as error:
        raise ArtifactCorruptError(f"{folder}: {ARRAYS} lacks {error}", "train the router again") from error


def refuse_other(folder: Path, trained: Mapping[str, str | int], expected: Mapping[str, str | int]) -> None:
    """Refuse a router of `folder` that was trained for another model, corpus, prompts or k than is expected.

    Raises:
        ArtifactMismatchError: naming every one that differs.
    """
    wrong = [key for key, value in expected.items() if trained.get(key) != value]
    if wrong:
        details = "; ".join(f"{key}: trained on {trained.get(key)!r}, now {expected[key]!r}" for key in wrong)
        raise ArtifactMismatchError(
            f"{folder}: this router was trained on another {', '.join(wrong)} ({details})",
            "profile what is to be routed and train a router on that, or route for what this one knows",
        )


def _arrays(tier: Tier) -> Arrays:
    """Those of a tier; a decider that an earlier tier has already is not written twice."""
    decider = tier.decider
    found: Arrays = {"gain": tier.gate.gain, "error": tier.gate.error}
    if tier.gate.worth is not None:
        found["worth"] = tier.gate.worth
    if tier.name != owner(tier.name):
        return found
    found |= {"mean": decider.reader.mean, "spread": decider.reader.spread}
    if isinstance(decider, Policy):
        layers = {f.name: getattr(decider.layers, f.name) for f in fields(Layers)}
        return {**found, **layers, "means": decider.means}
    return found | {name: np.asarray(getattr(decider, name)) for name in OWN[decider.kind]}


def _described(tier: Tier) -> Json:
    return {
        "name": tier.name,
        "kind": tier.decider.kind,
        "looks": tier.looks,
        "features": tier.names,
        "temperatures": tier.temperatures,
        "gate": {
            "rule": "held-out gain over the best static strategy, here and averaged with the neighbouring weights', "
            "exceeding caution standard errors; the guard holds the same of choosing among the tiers, and where it is "
            "closed the best static strategy answers",
            **_gate_described(tier.gate),
        },
    }


def _gate_described(gate: Gate) -> Json:
    return {
        "caution": gate.caution,
        "token_weights": gate.token_nodes,
        "latency_weights": gate.latency_nodes,
        "open_share": gate.open_share,
    }


def _assemble(manifest: Json, arrays: Arrays) -> Router:
    columns = tuple(STRATEGIES.index(name) for name in manifest["strategies"])
    deciders: dict[str, Decider] = {}
    for described in manifest["tiers"]:
        if owner(described["name"]) == described["name"]:
            deciders[described["name"]] = _decider(described, columns, arrays)
    scale = dict(manifest["scale"])
    price = scale.pop("price", None)
    return Router(
        tiers=tuple(_tier(one, deciders[owner(one["name"])], arrays) for one in manifest["tiers"]),
        columns=columns,
        means=arrays["means"],
        scale=Scale(**scale, price=Price(**price) if price else None),
        has_latency=manifest["has_latency"],
        source=manifest["source"],
        trained_on=arrays["trained_on"],
        guard=_guard(manifest.get("guard"), arrays),
        second=_second(manifest.get("second"), arrays),
        keyed_by=manifest.get("trained_on_version", BY_ROW),
    )


def _tier(described: Json, decider: Decider, arrays: Arrays) -> Tier:
    temperatures = (described["temperatures"][0], described["temperatures"][1])
    gate = _gate(described["gate"], described["name"], arrays)
    return Tier(described["name"], decider, gate, temperatures, described.get("looks", False))


def _gate(described: Json, name: str, arrays: Arrays) -> Gate:
    return Gate(
        token_nodes=tuple(described["token_weights"]),
        latency_nodes=tuple(described["latency_weights"]),
        gain=arrays[f"{name}.gain"],
        error=arrays[f"{name}.error"],
        caution=described["caution"],
        worth=arrays.get(f"{name}.worth"),
    )


def _guard(described: Json | None, arrays: Arrays) -> Guard | None:
    if described is None:
        return None
    return Guard(*(_gate(described[name], f"guard.{name}", arrays) for name in GUARDS))


def _second(described: Json | None, arrays: Arrays) -> Second | None:
    if described is None:
        return None
    reader = _reader("second", described["features"], arrays)
    return Second(reader, arrays["second.means"], arrays["second.slopes"])


def _reader(name: str, features: list[str], arrays: Arrays) -> Reader:
    return Reader(tuple(features), arrays[f"{name}.mean"], arrays[f"{name}.spread"])


def _decider(described: Json, columns: tuple[int, ...], arrays: Arrays) -> Decider:
    name, kind = described["name"], described.get("kind", "network")
    reader = _reader(name, described["features"], arrays)
    if kind == "network":
        layers = Layers(*(arrays[f"{name}.{f.name}"] for f in fields(Layers)))
        return Policy(reader, columns, arrays[f"{name}.means"], layers)
    if kind == "constant":
        return Constant(arrays[f"{name}.column"].item(), columns)
    return BUILT[kind](reader, columns, *(arrays[f"{name}.{part}"] for part in OWN[kind]))


def owner(name: str) -> str:
    """The tier that a decider is written with: a tier that looks has that of the tier it is named after.

    >>> owner("lean+look"), owner("always_rag+look")
    ('lean', 'always_rag+look')
    """
    base = name.removesuffix("+look")
    return name if base == "always_rag" else base
