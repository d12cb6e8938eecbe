"""What becomes of each architecture: tiny checkpoints built by configuration, quantized, written, read back.

    python benchmarks/architectures.py --work WORK --out docs/results --page docs/models.md

Every accepted folder is loaded again in a fresh process, and its loss there compared with the announced one.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from command_line import own_command
from tiny_architectures import ARCHITECTURES, make
from vllm_rules import unread

MARKS = ("<!-- generated: architectures -->", "<!-- end -->")


@dataclass
class Outcome:
    """What became of one architecture.

    Attributes:
        refused: the reason; empty where it was accepted.
        share: of all its weights, those in quantized linears. quantized, copied, unknown: tensors.
        loads_in: by program, empty where it loads.
        announced: loss of the plan, nats per token; fresh: the same, by a fresh process that loads the folder.
        vllm: linears whose width vLLM's rules do not find in our configuration; None where there are none to find.
    """

    refused: str = ""
    share: float = 0.0
    quantized: int = 0
    copied: int = 0
    unknown: int = 0
    kept: int = 0
    loads_in: Mapping[str, str] | None = None
    announced: float = 0.0
    fresh: float | None = None
    vllm: list[str] | None = None


def run(name: str, work: Path, text: Path) -> Outcome:
    """Build, quantize and write one architecture."""
    from apportion.bits.quantize import QuantizeRequest, quantize
    from apportion.bits.recipe import Recipe
    from apportion.core.errors import ApportionError
    from apportion.formats.safetensors import read_entries

    source, out = work / "source" / name.replace(" ", "-"), work / "out" / name.replace(" ", "-")
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    make(name, source)
    ask = QuantizeRequest(avg_bits=3.0, method="shapley", device="cpu")
    recipe = Recipe(calibration=text, windows=3, window_tokens=24, permutations=1, widths=(2, 4), group_size=32)
    try:
        made = quantize(str(source), out, ask, recipe)
    except ApportionError as error:
        return Outcome(refused=" ".join(error.problem.split()).replace(str(source), name))
    account = made["account"]
    before, kept = read_entries(source / "model.safetensors"), read_entries(out / "model.safetensors")
    gone = [entry for key, entry in before.items() if key not in kept]
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    return Outcome(
        share=sum(entry.nbytes for entry in gone) / sum(entry.nbytes for entry in before.values()),
        quantized=account["quantized"],
        copied=account["copied"],
        unknown=len(account["unknown"]),
        kept=len(account["kept"]),
        loads_in=made["loads_in"],
        announced=made["nll_plan"],
        vllm=unread(config),
    )


FRESH = """
import json, sys
from pathlib import Path
import torch
import apportion
from apportion.models.pretrained import quiet
from apportion.models.text import load_calibration
found = {}
with torch.inference_mode(), quiet():
    for folder in map(Path, sys.argv[1:]):
        model = apportion.load(folder)
        windows = load_calibration(folder / "samples" / "windows.safetensors").windows
        logits = model(input_ids=windows, use_cache=False).logits[:, :-1].float()
        found[folder.name] = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))
print(json.dumps(found))
"""


def fresh_losses(folders: list[Path]) -> dict[str, float]:
    """Loss of each folder on its own calibration windows, by a process that has seen nothing else."""
    command = [sys.executable, "-c", FRESH, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(outcomes: Mapping[str, Outcome], command: str) -> list[str]:
    """The page's table: accepted ones first."""
    lines = [
        "| architecture | quantized | share of bytes | copied to the byte | reload in a fresh process "
        "| stock transformers | vLLM's rules |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in outcomes.items():
        if found.refused:
            continue
        same = "" if found.fresh is None else f"{abs(found.fresh - found.announced):.0e} nats"
        stock = (found.loads_in or {}).get("transformers", "")
        rules = "finds every width" if not found.vllm else f"misses {len(found.vllm)}, e.g. {found.vllm[0]}"
        lines.append(
            f"| {name} | {found.quantized} linears | {100 * found.share:.0f} % | {found.copied} tensors "
            f"| {same} apart | {'loads' if not stock else 'no: ' + stock} | {rules} |"
        )
    lines += ["", "Refused, before any work, in these words:", "", "| architecture | reason |", "|---|---|"]
    lines += [f"| {name} | {found.refused} |" for name, found in outcomes.items() if found.refused]
    accepted = sum(not found.refused for found in outcomes.values())
    made = f"{accepted} of {len(outcomes)} accepted. Made by `{own_command()}`."
    return [*lines, "", made]


def put(page: Path, lines: list[str]) -> None:
    """Replace what lies between the marks of a page."""
    content = page.read_text()
    begin, end = content.index(MARKS[0]) + len(MARKS[0]), content.index(MARKS[1])
    page.write_text(content[:begin] + "\n" + "\n".join(lines) + "\n" + content[end:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    from tests.tiny_models import make_text

    asked.work.mkdir(parents=True, exist_ok=True)
    text = asked.work / "text.txt"
    text.write_text(make_text(600))
    outcomes: dict[str, Outcome] = {}
    for name in asked.only or ARCHITECTURES:
        began = time.monotonic()
        outcomes[name] = run(name, asked.work, text)
        print(f"{name}: {outcomes[name].refused or 'accepted'} ({time.monotonic() - began:.1f} s)", flush=True)
    accepted = {
        name: asked.work / "out" / name.replace(" ", "-") for name, found in outcomes.items() if not found.refused
    }
    losses = fresh_losses(list(accepted.values()))
    for name, folder in accepted.items():
        outcomes[name].fresh = losses[folder.name]
    asked.out.mkdir(parents=True, exist_ok=True)
    saved = {"command": own_command(), "outcomes": {name: asdict(found) for name, found in outcomes.items()}}
    (asked.out / "architectures.json").write_text(json.dumps(saved, indent=1) + "\n")
    if asked.page:
        put(asked.page, table(outcomes, own_command()))


if __name__ == "__main__":
    main()
