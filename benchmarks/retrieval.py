"""How long indexing and searching take: python benchmarks/retrieval.py [--passages 100000] [--out FILE]

Passages are synthetic: 60 words each, drawn by the law of Zipf (exponent 1.07) from 200,000 made-up words, as
frequent as in English text; questions are 4 to 14 words of a passage. Needs no data. With --corpus, a corpus
is repeated instead, the words of each copy in another order.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from command_line import own_command

from apportion.core.artifact import versions, write_json
from apportion.core.seeds import stream
from apportion.route.index.bm25 import Bm25Index
from apportion.route.index.build import add_passages, build_index, delete_passages, index_size_bytes
from apportion.route.index.corpus import Passage, read_corpus

WORDS, VOCABULARY, ZIPF = 60, 200_000, 1.07
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def vocabulary() -> list[str]:
    base = len(SYLLABLES)
    return [
        "".join(SYLLABLES[(n // base**place) % base] for place in range(2 + (n >= base**2))) for n in range(VOCABULARY)
    ]


def synthetic(count: int) -> Iterator[Passage]:
    words, draw = np.array(vocabulary()), stream(0, "passages")
    shares = np.arange(1, VOCABULARY + 1) ** -ZIPF
    edges = np.cumsum(shares / shares.sum())
    for n in range(count):
        picked = words[np.searchsorted(edges, draw.random(WORDS)).clip(max=VOCABULARY - 1)]
        yield Passage(str(n), " ".join(picked[:2]), " ".join(picked[2:]))


def repeated(corpus: Path, count: int) -> Iterator[Passage]:
    draw, known = stream(0, "copies"), list(read_corpus(corpus))
    for n in range(count):
        one = known[n % len(known)]
        words = one.text.split()
        text = one.text if n < len(known) else " ".join(words[i] for i in draw.permutation(len(words)))
        yield Passage(str(n), one.title, text)


def questions(passages: list[Passage], count: int) -> list[str]:
    draw = stream(0, "questions")
    found = []
    for number in draw.integers(len(passages), size=count):
        words = passages[number].text.split()
        size = min(len(words), int(draw.integers(4, 15)))
        found.append(" ".join(words[i] for i in draw.choice(len(words), size, replace=False)))
    return found


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(seconds, [50, 95, 99]) * 1000
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), (round(float(value), 3) for value in values), strict=True))


def timed(call, *arguments):
    start = time.perf_counter()
    value = call(*arguments)
    return value, round(time.perf_counter() - start, 3)


def measure(passages: list[Passage], asked: list[str], folder: Path) -> dict[str, object]:
    _, index_s = timed(build_index, passages, folder)
    index, open_s = timed(Bm25Index.open, folder)
    for question in asked[:20]:
        index.search(question, 5)
    seconds = [timed_search(index, question) for question in asked]
    _, add_s = timed(add_passages, folder, [Passage("new", "new", "a new passage")])
    _, delete_s = timed(delete_passages, folder, ["new"])
    return {
        "passages": len(passages),
        "words": index.collection.tokens,
        "index_s": index_s,
        "open_s": open_s,
        "search": {"questions": len(asked), "k": 5, "scores": 100, **percentiles_ms(seconds)},
        "add_one_s": add_s,
        "delete_one_s": delete_s,
        "bytes": index_size_bytes(folder),
    }


def timed_search(index: Bm25Index, question: str) -> float:
    start = time.perf_counter()
    index.search(question, 5)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    source = synthetic(given.passages) if given.corpus is None else repeated(given.corpus, given.passages)
    passages = list(source)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(passages, questions(passages, given.questions), Path(folder) / "index")
    record = {
        "command": own_command(),
        "corpus": "synthetic" if given.corpus is None else given.corpus.name,
        **result,
        "target": {"index_s": 15, "search_p50_ms": 3},
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()},
        "load_average_at_end": round(os.getloadavg()[0], 2),
        "versions": versions("tantivy", "numpy"),
    }
    print(record)
    if given.out:
        write_json(given.out, record)


if __name__ == "__main__":
    main()
