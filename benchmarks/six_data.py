"""Seven question sets and the corpus of all their passages, as `six_sets.py` asks them.

    python benchmarks/six_data.py --qa DIR --corpora DIR --recorded FILE.parquet --out DIR [--each 600]

DIR/questions.jsonl, DIR/corpus.jsonl, DIR/corpus_gap.jsonl (without the gold passages of a random third of the
questions) and DIR/data.json (counts, digests, and which half each question belongs to). A set that is missing is
said and left out. 200 questions a set, drawn with a fixed seed from those that are no part of the recorded profile;
with a larger --each those 200 come with their halves, and more beside them. The corpus is the same.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apportion.core.artifact import sha256_file, write_json
from apportion.route.profile.scoring import normalise

SETS = {  # name: file; StrategyQA's passages are its rationale, so nothing is claimed of retrieval there
    "nq": "searchr1_nq_base_v1.jsonl",
    "triviaqa": "searchr1_triviaqa_base_v1.jsonl",
    "hotpotqa": "hotpotqa_dev200.jsonl",
    "musique": "musique_dev200.jsonl",
    "squad": "squad_xquad_en.jsonl",
    "gsm8k": "gsm8k_test.jsonl",
    "strategyqa": "strategyqa_dev.jsonl",
}
EACH = 200
SEED = 11
MISSING_SHARE = 1 / 3
Row = dict[str, Any]


def rows_of(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def clean(passage: Row) -> tuple[str, str]:
    """Title and text: no quotes or underscores in titles, and no title repeated at the text's beginning."""
    title = passage["title"].strip().strip('"').replace("_", " ").strip()
    text = " ".join(passage["text"].split())
    while (
        title
        and text.lower().startswith(title.lower() + " ")
        and not re.match(r"\s*(is|was|are|were|\()\b", text[len(title) :])
    ):
        text = text[len(title) :].strip()
    return title, text


def is_gold(row: Row, passage: Row) -> bool:
    """Marked so, or, where a set marks none, holding an answer."""
    if "gold" in passage:
        return bool(passage["gold"])
    text = f" {normalise(passage['text'])} "
    return any(f" {normalise(answer)} " in text for answer in row["answers"] if normalise(answer))


class Pool:
    """Distinct passages; a text that occurs under several questions is one passage."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.lines: list[Row] = []

    def add(self, passage: Row) -> str:
        title, text = clean(passage)
        key = normalise(text)
        if key not in self.ids:
            self.ids[key] = f"p{len(self.lines)}"
            self.lines.append({"id": self.ids[key], "title": title, "text": text})
        return self.ids[key]


def draw(rows: list[Row], leave_out: set[str], rng: random.Random, each: int, name: str) -> list[Row]:
    """At most so many questions, each text once, shuffled; the first 200 are the same for every `each` from 200."""
    fresh = {row["question"]: row for row in rows if row["id"] not in leave_out}
    first = rng.sample(list(fresh.values()), min(EACH, len(fresh)))
    taken = {row["question"] for row in first}
    others = [row for text, row in fresh.items() if text not in taken]
    more = random.Random(f"{SEED}/{name}").sample(others, min(max(0, each - EACH), len(others)))
    return [*first[:each], *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qa", type=Path, required=True)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--recorded", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=EACH, help="questions of a set at most")
    given = parser.parse_args()
    from pyarrow import parquet

    recorded = set(parquet.read_table(given.recorded, columns=["question_id"])["question_id"].to_pylist())
    pool, rng = Pool(), random.Random(SEED)
    asked: list[Row] = []
    gold: dict[str, list[str]] = {}
    more: dict[str, list[str]] = {}  # of the questions beyond the first 200
    halves: dict[str, str] = {}
    missing = [name for name, file in SETS.items() if not (given.qa / file).is_file()]
    for name, file in SETS.items():
        if name in missing:
            print(f"{name}: {given.qa / file} is missing, left out")
            continue
        rows = list(rows_of(given.qa / file))
        ids = {row["id"]: [(pool.add(one), is_gold(row, one)) for one in row.get("passages") or ()] for row in rows}
        for number, row in enumerate(draw(rows, recorded, rng, given.each, name)):
            key = f"{name}/{row['id']}"
            asked.append({"id": row["id"], "dataset": name, "question": row["question"], "answers": row["answers"]})
            if number < EACH:
                gold[key] = [passage for passage, good in ids[row["id"]] if good]
            else:
                more[key] = [passage for passage, good in ids[row["id"]] if good]
            halves[key] = "learn" if number % 2 == 0 else "judge"
    for file in sorted(given.corpora.glob("*.jsonl")):
        for passage in rows_of(file):
            pool.add(passage)
    with_gold = [key for key in gold if gold[key]]
    without = set(rng.sample(with_gold, round(len(with_gold) * MISSING_SHARE)))
    others = [key for key in more if more[key]]
    without |= set(random.Random(f"{SEED}/gap").sample(others, round(len(others) * MISSING_SHARE)))
    gone = {passage for key in without for passage in (gold | more)[key]}
    given.out.mkdir(parents=True, exist_ok=True)
    rng.shuffle(asked)  # a run that is cut has a part of every set
    write_lines(given.out / "questions.jsonl", asked)
    write_lines(given.out / "corpus.jsonl", pool.lines)
    write_lines(given.out / "corpus_gap.jsonl", [line for line in pool.lines if line["id"] not in gone])
    counts = Counter(key.split("/")[0] for key in halves)
    found = {
        "questions": dict(counts),
        "missing_sets": missing,
        "passages": len(pool.lines),
        "passages_gap": len(pool.lines) - len(gone),
        "questions_without_gold": len(without),
        "sha256": {name: sha256_file(given.qa / file) for name, file in SETS.items() if name not in missing},
        "seed": SEED,
        "halves": halves,
        "without_gold": sorted(without),
    }
    write_json(given.out / "data.json", found)
    print({key: value for key, value in found.items() if key not in ("halves", "without_gold", "sha256")})


def write_lines(path: Path, lines: list[Row]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
