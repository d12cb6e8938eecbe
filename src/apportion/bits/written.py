"""What was written is what was meant: compared with its source, and loaded once, before it is called complete."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from apportion.bits.checkpoint import unquantized
from apportion.bits.vocabulary import UNTOUCHED, Vocabulary
from apportion.core.artifact import Json, plain
from apportion.core.errors import ApportionError, ArtifactCorruptError, first_line
from apportion.formats import COMPRESSED_TENSORS, Format, GridWeight, Packed
from apportion.models.experts import LinearExperts
from apportion.models.load import load
from apportion.models.parameters import round_computed
from apportion.models.pretrained import attention_for, model_class, quiet
from apportion.models.source import open_source
from apportion.models.staged import StagedModel

TOKENS = 16  # of the made-up text on which written and measured weights are compared
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


@dataclass(frozen=True, slots=True)
class Account:
    """What became of everything that the source holds.

    Attributes:
        quantized: number of tensors that were. copied: number, `copied_bytes`: bytes, and `copied_digest`: SHA-256 over
            names, dtypes, shapes and bytes of those that were not: the same as the source's.
        unknown: tensors that the loaded class has no place for, copied too.
        untaught: experts' linears that no calibration text reached: rounded as without one.
        kept: linears inside the blocks that were left as they are, with reasons.
        files: copied byte for byte. left: files of the source that were not, with reasons.
    """

    quantized: int
    copied: int
    copied_bytes: int
    copied_digest: str
    unknown: tuple[str, ...]
    untaught: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    left: Mapping[str, str]


def account_of(folder: Path, staged: StagedModel, vocabulary: Vocabulary = UNTOUCHED) -> Account:
    """Compare a written folder with its source, tensor by tensor and byte by byte.

    Args:
        vocabulary: embedding and head that were quantized.

    Raises:
        ArtifactCorruptError: naming what differs.

    Cost: one read of what was not quantized, from both.
    """
    expected, written = unquantized(staged, vocabulary), open_source(folder)
    missing = [name for name, entry in expected.items() if written.tensors.get(name) != entry]
    digest, differing, size = hashlib.sha256(), [], 0
    for name, entry in sorted(expected.items()) if not missing else ():
        found, own = raw(written.tensor(name)), raw(staged.origin.read(name))
        if not torch.equal(found, own):
            differing.append(name)
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        digest.update(found.numpy().data)
        size += entry.nbytes
    if missing or differing:
        raise ArtifactCorruptError(
            f"{folder}: differs from its source in {', '.join([*missing, *differing][:8])}",
            "the disk, or another program, changed what was written: write it again into another --out",
        )
    origin = staged.origin
    return Account(
        quantized=len(staged.originals) + len(vocabulary),
        copied=len(expected),
        copied_bytes=size,
        copied_digest=digest.hexdigest(),
        unknown=origin.unknown,
        untaught=tuple(sorted(staged.untaught)),
        kept=staged.layout.kept,
        files=origin.companions,
        left=origin.left,
    )


def raw(tensor: Tensor) -> Tensor:
    """A tensor's bytes: equal ones are equal also where they are no numbers."""
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a written folder does when it is loaded.

    Attributes:
        difference: largest difference of a log-probability from the weights that were measured, on a made-up text, in
            nats: 0 where they are the same to the bit.
        loads_in: by program, empty where it loads, else why it does not.
    """

    difference: float
    loads_in: Mapping[str, str]


@torch.inference_mode()
def reloaded(
    folder: Path, staged: StagedModel, packed: Mapping[str, Packed], form: Format, *, trust_remote_code: bool = False
) -> Reloaded:
    """Load a written folder as a user would, and compare what it predicts with the weights that were measured.

    Raises:
        ArtifactCorruptError: it does not load, or predicts something else.

    Cost: the model once more in the memory of the CPU, first as it was measured (no copy where it is there already),
        then as it was written; two forward passes on a few tokens.
    """
    ids = torch.arange(TOKENS)[None] % staged.model.get_input_embeddings().weight.shape[0]
    expected = measured(staged, packed, ids)
    dtype = str(staged.compute_dtype).removeprefix("torch.")
    found, loads = None, {"transformers": f"has no {form.name} in several widths: load it with apportion.load"}
    if form is COMPRESSED_TENSORS:
        found, loads["transformers"] = in_transformers(
            folder, ids, staged.compute_dtype, staged.model, trust_remote_code
        )
        if found is not None and not agree(found, expected, staged.compute_dtype):
            why = "it does not fill in experts from packed weights" if has_experts(staged) else "please report this"
            loads["transformers"] = f"predicts otherwise, by {apart(found, expected):.3g} nats: {why}"
            found = None
        elif found is None and has_packed_embedding(staged, packed):
            loads["transformers"] = f"does not load a packed embedding ({loads['transformers']})"
    if found is None:
        try:
            found = predictions(load(folder, dtype=dtype, dense=True, trust_remote_code=trust_remote_code), ids)
        except ApportionError as error:
            raise ArtifactCorruptError(f"{folder}: was written and does not load: {error.problem}") from error
    if not agree(found, expected, staged.compute_dtype):
        raise ArtifactCorruptError(
            f"{folder}: predicts otherwise than the weights that were measured, by {apart(found, expected):.3g} nats",
            "please report this with the model's name: the folder must not be used",
        )
    return Reloaded(apart(found, expected), loads)


@torch.inference_mode()
def measured(
    staged: StagedModel, packed: Mapping[str, Packed], ids: Int[Tensor, "one tokens"]
) -> Float[Tensor, "one tokens vocabulary"]:
    """`predictions` of the weights that were measured, made on the CPU, where the folder's are made.

    Two devices add in different orders, and in bfloat16 that is no small thing on a made-up text: full precision's own
    predictions of SmolLM2's first tokens, special ones, move by up to 20 nats.
    """
    with staged.in_place(packed):
        named = chain(staged.model.named_parameters(), staged.model.named_buffers())
        tensors = {name: item.detach().cpu() for name, item in named}
    out = functional_call(staged.model, tensors, kwargs={"input_ids": ids, "use_cache": False})
    return log_probabilities(out.logits)


def has_experts(staged: StagedModel) -> bool:
    """Whether experts were taken apart: the class has them in one tensor, the file one by one."""
    return any(isinstance(module, LinearExperts) for module in staged.model.modules())


def has_packed_embedding(staged: StagedModel, packed: Mapping[str, Packed]) -> bool:
    """Whether the embedding was written packed."""
    table = staged.model.get_input_embeddings()
    places = [path for path, item in packed.items() if isinstance(item, GridWeight)]
    return any(staged.model.get_submodule(path) is table for path in places)


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference, in nats."""
    return float((one - other.to(one)).abs().max())


def agree(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether predictions differ by no more than the order of additions in a dtype."""
    return apart(one, other) <= TOLERANCE.get(dtype, 0.5)


def predictions(model: Any, ids: Int[Tensor, "one tokens"]) -> Float[Tensor, "one tokens vocabulary"]:
    """Log-probabilities of every next token."""
    return log_probabilities(model(input_ids=ids, use_cache=False).logits)


def log_probabilities(logits: Tensor) -> Float[Tensor, "one tokens vocabulary"]:
    """Of every next token, on the CPU."""
    return logits.float().log_softmax(-1).cpu()


def in_transformers(
    folder: Path, ids: Int[Tensor, "one tokens"], dtype: torch.dtype, like: Any, trust_remote_code: bool
) -> tuple[Tensor | None, str]:
    """What stock transformers predicts with a folder; or why it cannot load it.

    Args:
        like: the model that was measured. Buffers that no file holds, since the class computes them, it reports as
            missing where a module is quantized; they are compared as this one has them, in the checkpoint's dtype.
    """
    from transformers import AutoConfig

    computed = {name for name, _ in like.named_buffers()} - set(like.state_dict())
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
            kind = model_class(str(folder), config, list(config.architectures or []))
            extra: dict[str, Any] = {"trust_remote_code": trust_remote_code} if kind.__name__.startswith("Auto") else {}
            extra |= attention_for(config)
            model, info = kind.from_pretrained(str(folder), dtype=dtype, output_loading_info=True, **extra)
            missing = set(info["missing_keys"]) - computed
            if missing:
                return None, f"fills in {len(missing)} tensors at random, {min(missing)} first"
            round_computed(model, like)
            return predictions(model.eval(), ids), ""
    except Exception as error:  # whatever the library or the model's own code raises is the answer
        return None, f"{type(error).__name__}: {first_line(error)}"


def proven(
    folder: Path,
    staged: StagedModel,
    packed: Mapping[str, Packed],
    form: Format,
    vocabulary: Vocabulary = UNTOUCHED,
    *,
    trust_remote_code: bool = False,
) -> Json:
    """`account_of` and `reloaded`, for the result and the manifest.

    Raises:
        ArtifactCorruptError: as they do.
    """
    account = account_of(folder, staged, vocabulary)
    found = reloaded(folder, staged, packed, form, trust_remote_code=trust_remote_code)
    return {"account": plain(account), "reload_difference": found.difference, "loads_in": dict(found.loads_in)}
