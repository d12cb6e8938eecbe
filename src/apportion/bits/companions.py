"""The files of a checkpoint besides weights and configuration: copied as they are, or made from what is in memory."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apportion.core.artifact import disk_error, unreadable, write_bytes


def copy_companions(source: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Copy files byte for byte.

    Raises:
        ArtifactError: one cannot be read or written.
    """
    for name in names:
        try:
            data = (source / name).read_bytes()
        except OSError as error:
            raise unreadable(source / name, error) from error
        write_bytes(folder / name, data)
    return list(names)


def save_tokenizer(folder: Path, model: Any, tokenizer: Any) -> list[str]:
    """Tokenizer and generation settings of a model that came from no folder.

    Raises:
        ArtifactError: the disk is full or refuses.
    """
    try:
        written = tokenizer.save_pretrained(str(folder))
    except OSError as error:
        raise disk_error(folder, error) from error
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises bare exceptions for what the system refuses
            raise
        raise disk_error(folder, OSError(str(error))) from error
    saved = [Path(name).name for name in written if Path(name).is_file()]
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        write_bytes(folder / "generation_config.json", generation.to_json_string().encode())
        saved.append("generation_config.json")
    return saved


def save_code(folder: Path, model: Any) -> list[str]:
    """Code that came with the checkpoint, without which its config names what the new folder lacks.

    Raises:
        ArtifactError: the disk is full or refuses.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    own = [kind for kind in (type(model), type(model.config)) if kind.__module__.startswith("transformers_modules.")]
    homes = [inspect.getfile(kind) for kind in own]
    files = {Path(file) for home in homes for file in (home, *get_relative_import_files(home))}
    for file in sorted(files):
        write_bytes(folder / file.name, file.read_bytes())
    return sorted(file.name for file in files)
