"""Tokens of 1,000 lines: llama.cpp reading our GGUF file against transformers reading the folder it was made from."""

import argparse
import json
from pathlib import Path

from apportion.models.pretrained import load_tokenizer
from tests.llama_cpp import LlamaCpp


def lines_of(path: Path, count: int) -> list[str]:
    """The first lines that hold text, of a .txt or .jsonl file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    if path.suffix == ".jsonl":
        lines = [part for line in lines if line.strip() for part in json.loads(line)["text"].split("\n")]
    return [line for line in lines if line.strip()][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--lines", type=int, default=500, help="of each text")
    asked = parser.parse_args()
    tokenizer, runner = load_tokenizer(str(asked.folder)), LlamaCpp(asked.gguf, 64)
    lines = [line for path in asked.text for line in lines_of(path, asked.lines)]
    differing = [line for line in lines if runner.tokenize(line) != tokenizer(line, add_special_tokens=False).input_ids]
    print(f"{asked.gguf.name}: {len(lines) - len(differing)} of {len(lines)} lines alike")
    for line in differing[:5]:
        own = tokenizer.convert_ids_to_tokens(tokenizer(line, add_special_tokens=False).input_ids)
        theirs = tokenizer.convert_ids_to_tokens(runner.tokenize(line))
        at = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs)))
        print(f"  {line[:60]!r}: transformers {own[at : at + 4]}, llama.cpp {theirs[at : at + 4]}")


if __name__ == "__main__":
    main()
