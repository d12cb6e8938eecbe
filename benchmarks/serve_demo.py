"""The demonstration model behind the server: 200 test questions through the openai client, against their recording.

Quality, tokens and latency of the answers, beside what `evaluate-router`'s rule gives for the same questions on the
recorded profile. Latency is of this machine now and of the recording's machine then, so it is shown and not compared.

    apportion serve --demo --port 8080
    python benchmarks/serve_demo.py --url http://127.0.0.1:8080/v1 --router out/serve-demo/router --out FILE
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
from command_line import own_command

from apportion.core.bootstrap import Bootstrap
from apportion.demo.recorded import recorded
from apportion.route.ask.strategy import STRATEGIES
from apportion.route.evaluation.contest import Routed, play
from apportion.route.profile.scoring import score
from apportion.route.router.file import load_router
from apportion.route.router.utility import Weights

WEIGHTS = ((0.05, 0.0), (0.1, 0.1), (0.5, 0.5))


def main() -> None:
    """Ask, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    profile = recorded("test")
    rows = np.linspace(0, len(profile.ids) - 1, given.questions).astype(int)
    found: list[dict[str, Any]] = []
    for token, latency in WEIGHTS:
        weights = Weights(token, latency)
        asked = served(given.url, [profile.ids[row] for row in rows], weights)
        expected = replayed(given.router, profile, rows, weights)
        routes = [asked["routes"][n] == expected["routes"][n] for n in range(len(rows))]
        quality = np.array(asked["quality"]) - np.array(expected["quality"])
        tokens = np.array(asked["tokens"]) - np.array(expected["tokens"])
        bootstrap = Bootstrap(len(rows), 0)
        found.append(
            {
                "token_weight": token,
                "latency_weight": latency,
                "questions": len(rows),
                "same_route": float(np.mean(routes)),
                **{f"{name}_served": float(np.mean(asked[name])) for name in ("quality", "tokens", "latency_ms")},
                **{f"{name}_recorded": float(np.mean(expected[name])) for name in ("quality", "tokens", "latency_ms")},
                "quality_difference": shown(bootstrap.interval(quality)),
                "tokens_difference": shown(bootstrap.interval(tokens)),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    if given.out:
        title = (
            "The demonstration model behind the server: 200 test questions through the openai client, and the recording"
        )
        saved = {"title": title, "command": own_command(), "rows": found}
        given.out.write_text(json.dumps(saved, indent=1) + "\n")


def shown(interval: Any) -> str:
    """A paired difference: mean and 95 %."""
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def served(url: str, ids: list[str], weights: Weights) -> dict[str, list[Any]]:
    """What the server answers."""
    from apportion.demo import DEFAULT_SEED, world

    questions = {one.id: one for one in world(DEFAULT_SEED).questions("test")}
    found: dict[str, list[Any]] = {"quality": [], "tokens": [], "latency_ms": [], "routes": []}
    extra = {"apportion": {"token_weight": weights.token, "latency_weight": weights.latency}}
    with openai.OpenAI(base_url=url, api_key="none") as client:
        for name in ids:
            question = questions[name.removeprefix("test/")] if name not in questions else questions[name]
            start = time.perf_counter()
            answer = client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": question.question}], extra_body=extra
            ).model_dump()
            found["latency_ms"].append((time.perf_counter() - start) * 1000)
            found["quality"].append(score(answer["apportion"]["answer"], question.answers).f1)
            found["tokens"].append(answer["usage"]["total_tokens"])
            found["routes"].append(answer["apportion"]["route"])
    return found


def replayed(folder: Path, profile: Any, rows: Any, weights: Weights) -> dict[str, list[Any]]:
    """What the router's decisions give on the recording, probes counted as `evaluate-router` counts them."""
    router = load_router(folder)
    part = profile.select(np.isin(np.arange(len(profile.ids)), rows))
    choice = Routed(router).choose(part, weights)
    played = play(part, choice)
    return {
        "quality": played.quality.tolist(),
        "tokens": played.tokens.tolist(),
        "latency_ms": played.latency_ms.tolist(),
        "routes": [STRATEGIES[column] for column in choice.columns],
    }


if __name__ == "__main__":
    main()
