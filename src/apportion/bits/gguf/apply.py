"""A plan of our own grid as a GGUF file: the same codes and scales in ggml's types, nothing rounded again.

Codes of up to 4 bits go to Q4_0 and codes of 8 bits to Q8_0, whose blocks hold them exactly (`formats.ggml_grid`), so
the file decodes to the very weights that the plan's checkpoint has. Everything else keeps the checkpoint's precision.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from apportion.bits.apply import bos_of, recipe_of, require_made_for, texts_of
from apportion.bits.game import widths_by_path
from apportion.bits.gguf.evidence import file_record, intact
from apportion.bits.gguf.quantize import require_out
from apportion.bits.gguf.workshop import DIGEST, FILE_TYPES, QUANTIZATION_VERSION
from apportion.bits.plan import Plan
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe, applied_named
from apportion.core.artifact import (
    RUN,
    Json,
    digest_of,
    finished,
    read_json,
    start,
    versions,
    write_json,
    write_manifest,
)
from apportion.core.device import place
from apportion.core.errors import InputError, require_all
from apportion.core.output import output_folder
from apportion.formats import COMPRESSED_TENSORS, GridWeight, Packed, Width
from apportion.formats.ggml import PLAIN, GgmlWeight
from apportion.formats.ggml_grid import BLOCK, as_ggml
from apportion.formats.gguf_file import Field, TensorEntry
from apportion.models.gguf.source import FolderSource, folder_source
from apportion.models.gguf.tensors import to_gguf
from apportion.models.gguf.written import write_readable
from apportion.models.load import load_full

KIND = "apply gguf"
NAMES = {dtype: name for name, dtype in PLAIN.items()}


def apply_gguf(
    model: str,
    plan: Plan,
    out: Path,
    *,
    rounding: str | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    resume: bool = False,
) -> Json:
    """Round a checkpoint as a plan says and write it as a GGUF file that holds the same codes.

    Args:
        model: the checkpoint that the plan was made for, a local folder or hub name. plan: of `allocate`.
        out: the file; its evidence goes to the folder `out` + `.apportion`.
        rounding, recipe: as `apply` has them; the rounding must write our integer grid (nearest, gptq).
        resume: continue an interrupted run; a finished one is done again where its file is gone or another one.

    Returns:
        What is written as `result.json`: bytes, player_bytes and over_budget (by how much those exceed what the plan
        could spend, since codes of 2 and 3 bits take the room of 4), types, apply_rounding, bos (as `apply`), plan,
        out.

    Raises:
        InputError: an architecture without a map, a plan of embedding or head, a rounding of another grid, groups that
            blocks of 32 do not divide (all of them named), before anything is rounded; scales that float16 does not
            hold (all of them) after rounding.

    Cost: rounding once (seconds to minutes), and tuning where it is asked for.

    >>> from apportion import allocate, budget_from_bits, estimate, open_model, take_samples
    >>> recipe = Recipe(calibration=TEXT, windows=2, window_tokens=24, group_size=32, permutations=2)
    >>> sensitivity = estimate(take_samples(open_model(MODEL, recipe), OUT / "samples"))
    >>> plan = allocate(sensitivity, budget_from_bits(sensitivity.costs, 3))
    >>> apply_gguf(MODEL, plan, OUT / "model.gguf")["types"]["Q4_0"] > 0
    True
    """
    folder = require_out(model, out)
    with output_folder(folder, KIND, resume=resume, reads=[model]):
        staged, tokenizer = load_full(model, place(device), trust_remote_code=trust_remote_code)
        require_made_for(plan, staged)
        require_blocks_alone(plan)
        backend = applied_named(rounding or plan.settings["apply_rounding"])
        source = folder_source(staged, tokenizer, model)
        widths = widths_by_path(staged, plan.costs, plan.assignment)
        require_grid(backend.name, backend.format is COMPRESSED_TENSORS, widths)
        recipe = recipe_of(plan, recipe or Recipe(), backend.name)
        asked: Json = {"kind": KIND, "plan": digest_of(plan), "model": staged.digest, "apply_rounding": backend.name}
        quantizer = Quantizer(staged, tokenizer, recipe)
        asked |= {"tune": [recipe.tune or 0, recipe.codes], **texts_of(quantizer)}
        if finished(folder, asked, resume=resume) and intact(folder, out):
            return {**read_json(folder / "result.json"), "out": str(out)}
        start(folder, asked)
        weights = in_blocks(source, quantizer.write(widths).packed)
        size = write_grid(source, weights, plan, out)
        spent = sum(weight.stored.nbytes for weight in weights.values())
        result = {
            "bytes": size,
            "player_bytes": spent,
            "over_budget": max(spent - plan.budget_bytes, 0),
            "types": dict(Counter(weight.width.name for weight in weights.values())),
            "apply_rounding": backend.name,
            "bos": bos_of(quantizer),
            "plan": plan.by_name(),
        }
        write_json(folder / "result.json", result)
        write_json(folder / "plan.json", replace(plan, player_bytes=spent, total_bytes=size))
        about = {
            "kind": "gguf file",
            "model": staged.digest,
            "versions": versions("torch", "transformers", "gguf"),
            "file": file_record(out),
        }
        write_manifest(folder, about, [RUN, "plan.json", "result.json"])
    return {**result, "out": str(out)}


def require_blocks_alone(plan: Plan) -> None:
    """Refuse a plan of embedding and head, which are copied here in the checkpoint's precision.

    Raises:
        InputError: naming them.
    """
    if plan.vocabulary:
        raise InputError(
            f"plan: gives {' and '.join(plan.vocabulary)} a width, and --format gguf writes plans of the blocks alone",
            "write it as a folder, make the plan with --keep embedding,head, or use quantize --format gguf",
        )


def require_grid(rounding: str, ours: bool, widths: Mapping[str, Width]) -> None:
    """Refuse what ggml's blocks cannot hold as it is, before anything is rounded.

    Raises:
        InputError: naming the rounding, or every linear whose groups do not fit.
    """
    if not ours:
        raise InputError(
            f"--format gguf: {rounding} does not write our integer grid",
            "use --apply-rounding nearest or gptq, or let quantize --format gguf choose ggml's own types",
        )
    odd = [f"{path} ({width.name})" for path, width in widths.items() if width.group_size % BLOCK]
    if odd:
        raise InputError(
            f"--format gguf: groups that blocks of {BLOCK} columns do not divide: {', '.join(odd)}",
            "make the plan with --group-size 32 or a multiple, or use quantize --format gguf",
        )


def in_blocks(source: FolderSource, packed: Mapping[str, Packed]) -> dict[str, GgmlWeight]:
    """Every linear as the file holds it, by GGUF name.

    Raises:
        InputError: scales that float16 does not hold, of all linears.
    """
    found: dict[str, GgmlWeight] = {}

    def put(name: str, path: str) -> None:
        weight = packed[path]
        assert isinstance(weight, GridWeight), "a rounding of our grid packs something else"

        def rows(tensor: Tensor) -> Tensor:
            return to_gguf(tensor.cpu(), name, source.architecture, source.staged.model.config)

        found[name] = as_ggml(GridWeight.of(rows(weight.codes), rows(weight.scale), weight.width), path)

    own = {name: path for name, path in source.modules.items() if path in packed}
    require_all(*(lambda name=name, path=path: put(name, path) for name, path in own.items()))
    return found


def write_grid(source: FolderSource, weights: Mapping[str, GgmlWeight], plan: Plan, out: Path) -> int:
    """Write the file, read again before it gets its name; returns its bytes."""
    entries = {}
    for name, shape in source.shapes.items():
        if name in weights:
            kind = weights[name].width.name
        else:
            kind = "F32" if len(shape) < 2 else NAMES.get(source.weight(name).dtype, "F32")
        entries[name] = TensorEntry(kind, shape)
    most = Counter(weight.width.name for weight in weights.values()).most_common(1)[0][0]
    fields = {
        **source.fields,
        "general.quantization_version": Field("UINT32", QUANTIZATION_VERSION),
        "general.file_type": Field("UINT32", FILE_TYPES[most]),
        "apportion.version": Field("STRING", versions()["apportion"]),
        "apportion.model_digest": Field("STRING", source.staged.digest),
        DIGEST: Field("STRING", digest_of(plan)),
    }

    def data(name: str) -> bytes:
        if name in weights:
            return weights[name].stored.numpy().tobytes()
        tensor = source.weight(name).to(PLAIN[entries[name].type]).contiguous()
        return tensor.flatten().view(torch.uint8).numpy().tobytes()

    return write_readable(out, fields, entries, data)
