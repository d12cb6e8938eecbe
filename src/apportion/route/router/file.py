"""A router on disk: `router.safetensors` with every array, and a manifest that says what it was made from."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from apportion.core.artifact import (
    claim_folder,
    read_manifest,
    versions,
    write_bytes,
    write_manifest,
)
from apportion.core.errors import ArtifactCorruptError, ArtifactMismatchError
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.router.gate import Gate
from apportion.route.router.policy import Layers, Policy
from apportion.route.router.router import Router, Tier
from apportion.route.router.utility import Scale

KIND = "apportion.router"
ARRAYS = "router.safetensors"
Arrays = dict[str, np.ndarray]


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
    write_bytes(folder / ARRAYS, save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
    content = {
        "kind": KIND,
        "source": dict(router.source),
        "strategies": [STRATEGIES[column] for column in router.columns],
        "scale": asdict(router.scale),
        "has_latency": router.has_latency,
        "tiers": [_described(tier) for tier in router.tiers],
        "training": dict(record),
        "versions": versions("torch", "numpy"),
    }
    write_manifest(folder, content, [ARRAYS])


def load_router(folder: Path, expected: Mapping[str, str | int] | None = None) -> Router:
    """Read a router.

    Args:
        expected: any of model, corpus, prompts, k that the caller is going to route for.

    Raises:
        ArtifactError: incomplete. ArtifactCorruptError: changed since. ArtifactMismatchError: no router, or
            trained on another model, corpus, prompts or k (every one that differs is named).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise ArtifactMismatchError(
            f"{folder}: is a folder of {manifest.get('kind')!r}, expected {KIND}",
            "name a folder that `apportion train-router` wrote",
        )
    _refuse_other(folder, manifest["source"], expected or {})
    try:
        arrays: Arrays = load((folder / ARRAYS).read_bytes())
        return _assemble(manifest, arrays)
    except (SafetensorError, KeyError) as error:
        raise ArtifactCorruptError(f"{folder}: {ARRAYS} lacks {error}", "train the router again") from error


def _refuse_other(folder: Path, trained: Mapping[str, str | int], expected: Mapping[str, str | int]) -> None:
    wrong = [key for key, value in expected.items() if trained.get(key) != value]
    if wrong:
        details = "; ".join(f"{key}: trained on {trained.get(key)!r}, now {expected[key]!r}" for key in wrong)
        raise ArtifactMismatchError(
            f"{folder}: this router was trained on another {', '.join(wrong)} ({details})",
            "profile what is to be routed and train a router on that, or route for what this one knows",
        )


def _arrays(tier: Tier) -> Arrays:
    layers = {f.name: getattr(tier.policy.layers, f.name) for f in fields(Layers)}
    policy = {name: getattr(tier.policy, name) for name in ("mean", "spread", "means")}
    return {**layers, **policy, "gain": tier.gate.gain, "error": tier.gate.error}


def _described(tier: Tier) -> dict[str, Any]:
    return {
        "name": tier.name,
        "features": tier.policy.names,
        "temperatures": tier.temperatures,
        "gate": {
            "rule": "the policy decides where its held-out gain over the best static strategy exceeds "
            "caution standard errors; elsewhere the best static strategy answers",
            "caution": tier.gate.caution,
            "token_weights": tier.gate.token_nodes,
            "latency_weights": tier.gate.latency_nodes,
            "open_share": float((tier.gate.gain > tier.gate.caution * tier.gate.error).mean()),
        },
    }


def _assemble(manifest: dict[str, Any], arrays: Arrays) -> Router:
    columns = tuple(STRATEGIES.index(name) for name in manifest["strategies"])
    return Router(
        tiers=tuple(_tier(described, columns, arrays) for described in manifest["tiers"]),
        columns=columns,
        means=arrays["means"],
        scale=Scale(**manifest["scale"]),
        has_latency=manifest["has_latency"],
        source=manifest["source"],
        trained_on=arrays["trained_on"],
    )


def _tier(described: dict[str, Any], columns: tuple[int, ...], arrays: Arrays) -> Tier:
    name, gate = described["name"], described["gate"]
    return Tier(
        name=name,
        policy=Policy(
            names=tuple(described["features"]),
            mean=arrays[f"{name}.mean"],
            spread=arrays[f"{name}.spread"],
            columns=columns,
            means=arrays[f"{name}.means"],
            layers=Layers(*(arrays[f"{name}.{f.name}"] for f in fields(Layers))),
        ),
        gate=Gate(
            token_nodes=tuple(gate["token_weights"]),
            latency_nodes=tuple(gate["latency_weights"]),
            gain=arrays[f"{name}.gain"],
            error=arrays[f"{name}.error"],
            caution=gate["caution"],
        ),
        temperatures=(described["temperatures"][0], described["temperatures"][1]),
    )
