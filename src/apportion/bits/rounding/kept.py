"""What a killed run leaves for the next one: finished pieces of work, a file each, written atomically.

A file says by a digest what it depends on (model, text, widths, settings) and what it holds. Anything else under its
name, and a file that is damaged, counts as not there: the piece is made again, which costs time and changes nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from apportion.core.artifact import Json, digest_of, sha256_bytes, write_bytes
from apportion.formats import Format, Packed, Width

SUFFIX = ".safetensors"


class Kept:
    """A folder of finished pieces.

    Args:
        folder: is made with the first piece.
        depends: everything that the pieces depend on, by name.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> Kept(folder, {"seed": 0}).save("block-0", {"codes": torch.arange(3)}, {"loss": 0.5})
        >>> tensors, told = Kept(folder, {"seed": 0}).load("block-0")
        >>> tensors["codes"].tolist(), told
        ([0, 1, 2], {'loss': 0.5})
        >>> Kept(folder, {"seed": 1}).load("block-0") is None
        True
    """

    def __init__(self, folder: Path, depends: Mapping[str, object]) -> None:
        self.folder, self.digest = folder, digest_of(depends)

    def load(self, name: str) -> tuple[dict[str, Tensor], Json] | None:
        """A piece's tensors and what was told beside them; None where there is none to go on from."""
        from safetensors.torch import load

        try:
            content = (self.folder / f"{name}{SUFFIX}").read_bytes()
            check, tensors = content[:64].decode(), content[64:]
            if check != sha256_bytes(tensors):
                return None
            length = int.from_bytes(tensors[:8], "little")
            told = json.loads(tensors[8 : 8 + length])["__metadata__"]
        except (OSError, ValueError, KeyError):
            return None
        return (load(tensors), json.loads(told["told"])) if told["depends"] == self.digest else None

    def save(self, name: str, tensors: Mapping[str, Tensor], told: Json | None = None) -> None:
        """Keep a piece; all of it is there afterwards, or nothing.

        Raises:
            ArtifactError: the disk is full or refuses.
        """
        from safetensors.torch import save

        here = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        content = save(here, metadata={"depends": self.digest, "told": json.dumps(told or {})})
        write_bytes(self.folder / f"{name}{SUFFIX}", sha256_bytes(content).encode() + content)


def packed_tensors(packed: Mapping[str, Packed]) -> dict[str, Tensor]:
    """The saved tensors of some linears in one mapping, `PATH|SUFFIX`."""
    return {f"{path}|{name}": tensor for path, item in packed.items() for name, tensor in item.tensors().items()}


def packed_from(
    tensors: Mapping[str, Tensor], form: Format, shapes: Mapping[str, tuple[int, int]], widths: Mapping[str, Width]
) -> dict[str, Packed]:
    """What `packed_tensors` took apart."""
    found = {}
    for path, width in widths.items():
        own = {name.split("|")[1]: tensor for name, tensor in tensors.items() if name.split("|")[0] == path}
        found[path] = form.unpack(own, shapes[path], width)
    return found
