"""What a checkpoint folder holds, file by file and tensor by tensor, before anything is loaded.

Reads headers only. Knows neither modules nor how a model is called: what is written later is written from here, so
that nothing depends on what a class keeps of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from apportion.core.artifact import Json, read_json
from apportion.core.errors import ApportionError, InputError
from apportion.core.output import OWN_FOLDERS
from apportion.formats.safetensors import INDEX, WEIGHTS, Entry, read_entries

OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ckpt")
OWN_FILES = ("manifest.json", "run.json", "result.json", "plan.json", "sensitivity.json", "frontier.json")
_SHARD = re.compile(r"^(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors$")


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of Hugging Face format.

    Attributes:
        config: its `config.json` as it stands there.
        tensors: what its weight files hold, by name. files: in which file each lies.
        companions: other files, relative to the folder, that belong to the checkpoint: tokenizer, processor, template,
            generation settings, licence, code.
        left: files that are not carried along, each with the reason.
        decode: how tensors are read where they are not to be had as they lie there.
    """

    folder: Path
    config: Json
    tensors: Mapping[str, Entry]
    files: Mapping[str, str]
    companions: tuple[str, ...]
    left: Mapping[str, str]
    decode: Callable[[str], Tensor] | None = None

    def tensor(self, name: str) -> Tensor:
        """One tensor, decoded where it is stored in another form than plain."""
        from safetensors import safe_open

        if self.decode is not None:
            return self.decode(name)
        with safe_open(self.folder / self.files[name], framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def part(self, name: str, index: int) -> Tensor:
        """One matrix of a tensor of three dimensions, without reading the rest."""
        from safetensors import safe_open

        with safe_open(self.folder / self.files[name], framework="pt") as file:
            found: Tensor = file.get_slice(name)[index]
        return found

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors, file by file: one at a time in memory."""
        for held in dict.fromkeys(self.files.values()):
            for name in (name for name, own in self.files.items() if own == held):
                yield name, self.tensor(name)


def open_source(folder: Path) -> Source:
    """Look through a checkpoint folder.

    Raises:
        InputError: no configuration, no safetensors weights, or a weight file that is missing, cut, left over or
            holds other tensors than the index says: all of them named.

    Cost: headers only, milliseconds.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"MODEL {folder}: the folder has no config.json", "give a Hugging Face checkpoint folder")
    listed = weight_map(folder)
    names = sorted(set(listed.values())) if listed else [WEIGHTS]
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    files: dict[str, str] = {}
    for name in names:
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
            continue
        try:
            own = read_entries(folder / name)
        except ApportionError as error:
            problems.append(error.problem.removeprefix(f"{folder}/"))
            continue
        entries |= own
        files |= dict.fromkeys(own, name)
    problems += left_over(folder, names) + strangers(listed, files, problems)
    if problems:
        raise InputError(
            f"MODEL {folder}: its weight files are not whole: " + "; ".join(problems[:8]),
            "download or save the checkpoint again",
        )
    companions, left = companions_of(folder, names)
    return Source(folder, read_json(folder / "config.json"), entries, files, companions, left)


def weight_map(folder: Path) -> dict[str, str]:
    """In which file each tensor lies, by the index; empty for a folder of one weight file.

    Raises:
        InputError: there are neither an index nor a single safetensors file, or both, of different weights.
    """
    if (folder / INDEX).is_file():
        found = read_json(folder / INDEX).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise InputError(f"MODEL {folder}: {INDEX} has no weight_map", "download or save the checkpoint again")
        listed = {str(name): Path(str(file)).name for name, file in found.items()}
        if (folder / WEIGHTS).is_file() and set(listed.values()) != {WEIGHTS}:
            raise InputError(
                f"MODEL {folder}: holds {WEIGHTS} and {INDEX}, which names other files: two checkpoints, and programs "
                "differ in which they read",
                f"remove {WEIGHTS}, or {INDEX} and its files",
            )
        return listed
    if (folder / WEIGHTS).is_file():
        return {}
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
    shards = [name for name in others if _SHARD.match(name)]
    if shards:
        raise InputError(f"MODEL {folder}: {', '.join(shards[:4])} lie there without {INDEX}", "download that file too")
    raise InputError(
        f"MODEL {folder}: has no {WEIGHTS}" + (f", only {', '.join(others[:4])}" if others else ""),
        "weights are read as safetensors only: save it again with save_pretrained(..., safe_serialization=True)",
    )


def left_over(folder: Path, names: list[str]) -> list[str]:
    """Shards of the same set that the index does not know: a folder mixed from two downloads."""
    stems = {match["stem"] for name in names if (match := _SHARD.match(name))}
    found = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in names)
    return [f"{name} is not in the index" for name in found if (m := _SHARD.match(name)) and m["stem"] in stems]


def strangers(listed: Mapping[str, str], files: Mapping[str, str], earlier: list[str]) -> list[str]:
    """Tensors that the index puts where they are not; said only where every file could be read."""
    if earlier or not listed:
        return []
    wrong = [name for name, file in listed.items() if files.get(name) != file]
    return [f"{name} is not in {listed[name]}" for name in wrong]


def companions_of(folder: Path, weights: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Files that belong to a checkpoint besides its weights and configuration; and those that do not, with reasons."""
    kept: list[str] = []
    left: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name in (*weights, INDEX, "config.json"):
            continue
        if any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts):
            left[name] = "hidden"
        elif path.suffix in OTHER_WEIGHTS or path.name.endswith(".index.json"):
            left[name] = "weights in another form"
        elif name in OWN_FILES or path.relative_to(folder).parts[0] in OWN_FOLDERS:
            left[name] = "a name that a run of ours writes itself"
        else:
            kept.append(name)
    return tuple(kept), left
