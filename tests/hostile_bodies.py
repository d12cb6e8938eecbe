"""Bodies that no client should send, from a seed: mutated requests, wrong types, broken bytes."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, -(2**63), 1e308, "", " ", "x" * 3000, "\ud800", "\x00", "🙂", "NaN", [],
    [[]],     {}, {"": ""}, [None], ["text"], {"type": "text"}, [{"type": "text"}], [{"type": "text", "text": None}],
    [{"type": "text", "text": "Who?"}], [{"type": "image_url"}], {"role": "user"}, "auto", "rag-cot",
    "../../etc/passwd", "${jndi:ldap://x}",
    "'; DROP TABLE decisions; --", [1] * 50, {"a": {"b": {"c": [1, {"d": None}]}}},
]  # fmt: skip
KEYS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n",
    "tools", "response_format", "logprobs", "stop", "seed", "apportion", "user", "chat_template_kwargs", "logit_bias",
    "top_k", "min_p", "functions", "content", "role", "tool_calls", "tool_call_id", "reasoning_content",
)  # fmt: skip
CONTROLS = ("route", "token_weight", "latency_weight", "price")
VALID: dict[str, Any] = {
    "model": "auto",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who founded Bern?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "1191", "tool_call_id": "a"},
        {"role": "assistant", "content": "Berthold."},
        {"role": "user", "content": [{"type": "text", "text": "And when?"}]},
    ],
    "temperature": 0.5,
    "max_tokens": 8,
    "apportion": {"token_weight": 0.2},
}


def hostile(count: int, seed: int) -> Iterator[bytes]:
    """So many bodies, the same for the same seed."""
    drawn = random.Random(seed)
    for _ in range(count):
        yield drawn.choice((_changed, _changed, _changed, _broken, _nested))(drawn)


def _changed(drawn: random.Random) -> bytes:
    """A valid request with one to three places replaced, added or left out."""
    body = json.loads(json.dumps(VALID))
    for _ in range(drawn.randint(1, 3)):
        place = _place(body, drawn)
        key = drawn.choice(list(place) or ["x"]) if isinstance(place, dict) else drawn.randrange(len(place) or 1)
        action = drawn.random()
        if action < 0.15 and place:
            del place[key]
        elif isinstance(place, dict):
            place[drawn.choice((key, drawn.choice(KEYS), drawn.choice(CONTROLS)))] = deepcopy(drawn.choice(STRANGE))
        elif place:
            place[key] = deepcopy(drawn.choice(STRANGE))
        else:
            place.append(deepcopy(drawn.choice(STRANGE)))
    return json.dumps(body, ensure_ascii=drawn.random() < 0.5).encode("utf-8", "surrogatepass")


def _place(body: Any, drawn: random.Random) -> Any:
    """A list or object somewhere within."""
    while True:
        inner = [one for one in (body.values() if isinstance(body, dict) else body) if isinstance(one, dict | list)]
        if not inner or drawn.random() < 0.4:
            return body
        body = drawn.choice(inner)


def _broken(drawn: random.Random) -> bytes:
    """A valid request with its bytes flipped, cut or doubled."""
    raw = bytearray(json.dumps(VALID).encode())
    for _ in range(drawn.randint(1, 5)):
        raw[drawn.randrange(len(raw))] = drawn.randrange(256)
    cut = drawn.randrange(len(raw)) if drawn.random() < 0.5 else len(raw)
    return bytes(raw[:cut]) * drawn.choice((1, 1, 2))


def _nested(drawn: random.Random) -> bytes:
    """Very deep, or very many."""
    deep = drawn.choice((10, 500, 5000))
    opened, closed = drawn.choice((("[", "]"), ('{"a":', "}")))
    inner = opened * deep + "1" + closed * deep
    return drawn.choice(
        (inner, f'{{"model":"auto","messages":{inner}}}', f'{{"messages":[{",".join(["1"] * deep)}]}}')
    ).encode()
