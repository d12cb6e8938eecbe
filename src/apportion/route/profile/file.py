"""Profiles as Parquet: one row per (question, strategy), one nullable float column per feature.

Key `apportion` of the Parquet metadata: JSON {model, corpus, prompts, features, k, created}. Files recorded
elsewhere (no such key, no features, null latency) are read too; what they lack is named in `dropped`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from apportion.core.artifact import unreadable, write_bytes
from apportion.core.errors import ArtifactCorruptError, ArtifactError, InputError
from apportion.route.ask.source import ProfileSource
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.profile.profile import Floats, Outcome, Profile

KEY = b"apportion"
FIXED = tuple(f.name for f in fields(Outcome) if f.name != "features")
OPTIONAL = (
    "cached_tokens",
    "error",
    "retrieval_ms",
    "em",
    "answers",
    "answer",
    "latency_ms",
    "draft_nll",
    "completion_measured",
    "latency_measured",
    "loaded_ms",
    "completion",
    "again",
    "finish",
    "rule",
    "kind",
    "asked_as",
    "cut_tokens",
    "passages",
)
OUTCOMES = ("f1", "em", "tokens", "latency_ms", "completion_tokens", "cached_tokens")
FLOATS = ("f1", "em", "latency_ms", "loaded_ms", "draft_nll", "retrieval_ms")
NUMBERS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cut_tokens", *FLOATS)
COSTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "latency_ms", "retrieval_ms")
TEXTS = ("question", "answer")
KEYS = ("dataset", "question_id", "strategy")  # of a row: one value each
Columns = dict[str, list[Any]]


def write_profile(path: Path, outcomes: Sequence[Outcome], source: ProfileSource) -> None:
    """Write outcomes as one Parquet file, complete or absent.

    Args:
        outcomes: four rows a question as a rule; features of their own become columns of their own.
        source: what they were made from; saved in the file's metadata.

    Raises:
        InputError: no outcome. ArtifactError: the disk is full.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not outcomes:
        raise InputError("profile: no outcome to write", "give at least one question")
    names = tuple(dict.fromkeys(name for outcome in outcomes for name in outcome.features))
    taken = sorted(set(names) & set(FIXED))
    if taken:
        raise InputError(f"profile: feature names {taken} are columns of the file", "rename the features")
    columns: Columns = {key: [getattr(outcome, key) for outcome in outcomes] for key in FIXED}
    columns |= {key: [list(value) for value in columns[key]] for key in ("answers", "passages")}
    for name in names:
        columns[name] = [outcome.features.get(name) for outcome in outcomes]
    types = dict.fromkeys(("answers", "passages"), pa.list_(pa.string()))
    types |= dict.fromkeys(("completion_measured", "latency_measured"), pa.bool_())
    types |= dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens", "cut_tokens"), pa.int64())
    types |= dict.fromkeys((*FLOATS, *names), pa.float64())
    schema = pa.schema([(key, types.get(key, pa.string())) for key in columns])
    meta = {**asdict(source), "features": list(names)}
    table = pa.table(columns, schema=schema).replace_schema_metadata({KEY: json.dumps(meta).encode()})
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer)
    write_bytes(path, buffer.getvalue().to_pybytes())


def read_profile(path: Path, *, quality: str = "f1") -> Profile:
    """Read a profile, written here or recorded elsewhere.

    Args:
        path: a Parquet file with a row for each question and strategy.
        quality: the column that is the quality Q, "f1" or "em".

    Returns:
        Its outcomes as arrays; what it lacks or what could not be used is named in `dropped`.

    Raises:
        ArtifactError: no such file. ArtifactCorruptError: not Parquet.
        InputError: missing columns, unknown strategies, a row twice, values out of range or of another type; all in
            one error.
    Cost: the file is held in memory once.

    >>> import tempfile
    >>> rows = [Outcome("d", "1", "Who?", ("x",), name, "x", 1.0, 1.0, 9, 2, 5.0) for name in STRATEGIES]
    >>> path = Path(tempfile.mkdtemp()) / "p.parquet"
    >>> write_profile(path, rows, ProfileSource(model="tiny"))
    >>> read_profile(path).tokens.tolist()
    [[11.0, 11.0, 11.0, 11.0]]
    """
    columns, saved = _read_table(path)
    meta, untold = _meta_of(saved)
    _refuse_other_types(path, columns, untold)
    _refuse_bad_rows(path, columns)
    if quality not in ("f1", "em"):
        raise InputError(f"quality {quality!r}: expected f1 or em")
    names = tuple(
        name for name in columns if name not in FIXED and not name.startswith("__") and _is_numeric(columns[name])
    )
    profile = _assemble(columns, names, quality, ProfileSource(**meta))
    return _drop_missing(profile)


def _read_table(path: Path) -> tuple[Columns, bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise ArtifactError(f"{path}: no such file", "make it with `apportion profile`")
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ArtifactCorruptError(f"{path}: is not a Parquet file: {error}", "make it again") from error
    except OSError as error:
        raise unreadable(path, error) from error
    columns: Columns = {name: table[name].to_pylist() for name in table.column_names}
    missing = sorted(set(FIXED) - set(OPTIONAL) - set(columns))
    if missing:
        raise InputError(
            f"{path}: columns {', '.join(missing)} are missing",
            "make it with `apportion profile`, or record these columns too",
        )
    if not table.num_rows:
        raise InputError(f"{path}: holds no row", "profile at least one question")
    for name in OPTIONAL:
        columns.setdefault(name, [None] * table.num_rows)
    return columns, (table.schema.metadata or {}).get(KEY, b"{}")


def _meta_of(saved: bytes) -> tuple[dict[str, Any], list[str]]:
    """The fields of `ProfileSource` in the metadata, and what is wrong with them."""
    try:
        found = json.loads(saved)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return {}, [f"metadata {KEY.decode()}: holds {saved[:40]!r}, expected a JSON object"]
    meta = {f.name: found[f.name] for f in fields(ProfileSource) if f.name in found}
    types = {key: int if key == "k" else str for key in meta}
    said = {int: "a whole number", str: "a text"}
    return meta, [
        f"metadata {KEY.decode()}, {key}: holds {value!r}, expected {said[types[key]]}"
        for key, value in meta.items()
        if not isinstance(value, types[key]) or isinstance(value, bool)
    ]


def _refuse_other_types(path: Path, columns: Columns, bad: list[str]) -> None:
    """Name every column that holds what it cannot, in one error with what else is wrong with the file."""
    tests = ((NUMBERS, _is_number, "numbers"), (TEXTS, _is_text, "texts"), (KEYS, _is_single, "a text or number each"))
    for names, fits, expected in tests:
        for name in names:
            if wrong := [value for value in columns[name] if not fits(value)][:1]:
                bad.append(f"column {name}: holds {str(wrong)[1:-1][:60]}, expected {expected}")
    if bad:
        raise InputError(f"{path}: " + "; ".join(bad), "write these as what is expected")


def _refuse_bad_rows(path: Path, columns: Columns) -> None:
    """Name every offending row (at most ten) in one error."""
    bad: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    keys = zip(columns["dataset"], columns["question_id"], columns["strategy"], strict=True)
    for row, key in enumerate(keys):
        if key[2] not in STRATEGIES:
            bad.append(f"row {row}: strategy {key[2]!r}, expected one of {', '.join(STRATEGIES)}")
        if key in seen:
            bad.append(f"row {row}: {'/'.join(map(str, key))} is there twice")
        seen.add(key)
        for name in ("f1", "em"):
            value = columns[name][row]
            if value is not None and not 0 <= value <= 1:
                bad.append(f"row {row}: {name} {value}, expected 0 to 1")
        for name in COSTS:
            value = columns[name][row]
            if value is not None and not 0 <= value < float("inf"):
                bad.append(f"row {row}: {name} {value}, expected a number from 0")
        cached, prompt = columns["cached_tokens"][row], columns["prompt_tokens"][row]
        if cached is not None and prompt is not None and cached > prompt:
            bad.append(f"row {row}: cached_tokens {cached}, expected at most the prompt's {prompt}")
    if bad:
        more = f"; and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise InputError(f"{path}: " + "; ".join(bad[:10]) + more, "correct or remove these rows")


def _is_numeric(values: list[Any]) -> bool:
    return all(map(_is_number, values))


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_single(value: object) -> bool:
    return not isinstance(value, list | dict)


def _assemble(columns: Columns, names: tuple[str, ...], quality: str, source: ProfileSource) -> Profile:
    """Rows to arrays; a failed row stays NaN in all of them."""
    keys = list(zip(columns["dataset"], columns["question_id"], strict=True))
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    n = len(order)
    grid = {name: np.full((n, 4), np.nan) for name in OUTCOMES}
    answers = [["" for _ in STRATEGIES] for _ in range(n)]
    retrieval_ms = np.full(n, np.nan)
    names = names if "draft_nll_mean" in names else (*names, "draft_nll_mean")
    features = np.full((n, len(names)), np.nan)
    question = [""] * n
    for row, key in enumerate(keys):
        i, s = order[key], STRATEGIES.index(columns["strategy"][row])
        question[i] = columns["question"][row] or ""
        values = [columns[name][row] if name in columns else None for name in names]
        _fill_if_measured(features, i, dict(enumerate(values)))
        _fill_if_measured(features, i, {names.index("draft_nll_mean"): columns["draft_nll"][row]})
        if columns["retrieval_ms"][row] is not None:
            retrieval_ms[i] = columns["retrieval_ms"][row]
        answers[i][s] = columns["answer"][row] or ""
        if columns["error"][row] is None:
            _fill_outcome(grid, (i, s), {name: values[row] for name, values in columns.items()})
    return Profile(
        dataset=tuple(str(key[0]) for key in order),
        ids=tuple(str(key[1]) for key in order),
        question=tuple(question),
        quality=grid[quality],
        em=grid["em"],
        tokens=grid["tokens"],
        latency_ms=grid["latency_ms"],
        retrieval_ms=retrieval_ms,
        features=features,
        feature_names=names,
        source=source,
        completion_tokens=grid["completion_tokens"],
        cached_tokens=grid["cached_tokens"],
        answers=tuple(map(tuple, answers)) if any(columns["answer"]) else (),
    )


def _fill_if_measured(features: Floats, i: int, values: dict[int, float | None]) -> None:
    for column, value in values.items():
        if value is not None and math.isfinite(value):
            features[i, column] = value


def _fill_outcome(grid: dict[str, Floats], cell: tuple[int, int], row: dict[str, Any]) -> None:
    for name in ("f1", "em", "latency_ms"):
        if row[name] is not None:
            grid[name][cell] = row[name]
    if row["prompt_tokens"] is not None and row["completion_tokens"] is not None:
        grid["tokens"][cell] = row["prompt_tokens"] + row["completion_tokens"]
        grid["completion_tokens"][cell], grid["cached_tokens"][cell] = (
            row["completion_tokens"],
            row["cached_tokens"] or 0,
        )


def _drop_missing(profile: Profile) -> Profile:
    """Leave out strategies, features and latencies that are not there, saying so."""
    share = np.isfinite(profile.quality + profile.tokens).mean(axis=0)
    present = tuple(name for name, part in zip(STRATEGIES, share, strict=True) if part >= 0.5)
    if not present:
        raise InputError("profile: every strategy failed for most questions", "profile again")
    dropped = [
        f"strategy {name}: recorded for {part:.0%} of the questions"
        for name, part in zip(STRATEGIES, share, strict=True)
        if name not in present
    ]
    measured = np.asarray(np.isfinite(profile.features).any(axis=0))
    dropped += [
        f"feature {name}: not measured" for name, some in zip(profile.feature_names, measured, strict=True) if not some
    ]
    kept = tuple(name for name, some in zip(profile.feature_names, measured, strict=True) if some)
    profile = replace(profile.keep_features(kept), strategies=present)
    if not profile.has_latency:
        dropped.append("latency: not recorded for every answer; latency weights cannot be used")
    return replace(profile, dropped=tuple(dropped))
