"""Stock clients against a running server, each in an environment of its own where its pins clash with ours.

    python benchmarks/serve_clients.py --url http://127.0.0.1:8080/v1 --client openai
    .../other-env/bin/python benchmarks/serve_clients.py --url ... --client langchain | llamaindex

Prints one JSON line: versions, and for plain and streamed requests what the client shows of the answer and of the
decision. Fails where an answer is empty or a decision is not to be seen. Imports nothing of ours.
"""

import argparse
import json
from importlib import metadata
from typing import Any

QUESTION = "What is 12 plus 30?"


def main() -> None:
    """Ask by one client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--client", choices=["openai", "langchain", "llamaindex"], required=True)
    parser.add_argument("--model", default="auto")
    given = parser.parse_args()
    ask = {"openai": by_openai, "langchain": by_langchain, "llamaindex": by_llamaindex}[given.client]
    found = ask(given.url, given.model)
    packages = {"openai": ("openai",), "langchain": ("langchain-openai", "openai")}.get(given.client)
    found["versions"] = {
        name: metadata.version(name) for name in packages or ("llama-index-llms-openai-like", "openai")
    }
    print(json.dumps(found))
    assert found["plain"], "an empty answer"
    assert found["streamed"], "an empty stream"
    assert found["route"], "the decision is not to be seen"


def by_openai(url: str, model: str) -> dict[str, Any]:
    """OpenAI's own client."""
    import openai

    messages: Any = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=url, api_key="none") as client:
        raw = client.chat.completions.with_raw_response.create(model=model, messages=messages)
        plain = raw.parse().model_dump()
        options: Any = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(model=model, messages=messages, stream=True, stream_options=options)
        )
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        models = [one.id for one in client.models.list()]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0
    assert model in models
    assert plain["apportion"]["route"] == raw.headers["x-apportion-route"]
    first: Any = chunks[0].model_dump()
    assert first["apportion"]["route"]
    return {
        "plain": plain["choices"][0]["message"]["content"],
        "streamed": text,
        "route": plain["apportion"]["route"],
        "usage": plain["usage"]["total_tokens"],
    }


def by_langchain(url: str, model: str) -> dict[str, Any]:
    """langchain-openai shows headers only."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=url, api_key="none", model=model, include_response_headers=True)  # type: ignore[arg-type]
    plain = chat.invoke(QUESTION)
    chunks = list(ChatOpenAI(base_url=url, api_key="none", model=model, stream_usage=True).stream(QUESTION))  # type: ignore[arg-type]
    usage: Any = next((one.usage_metadata for one in reversed(chunks) if one.usage_metadata), None)
    assert usage is not None
    assert usage["total_tokens"] > 0
    headers = plain.response_metadata["headers"]
    text = "".join(str(one.content) for one in chunks)
    return {"plain": plain.content, "streamed": text, "route": headers["x-apportion-route"]}


def by_llamaindex(url: str, model: str) -> dict[str, Any]:
    """LlamaIndex's OpenAILike shows bodies only."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    chat = OpenAILike(model=model, api_base=url, api_key="none", is_chat_model=True)
    plain = chat.chat([ChatMessage(role="user", content=QUESTION)])
    parts = list(chat.stream_chat([ChatMessage(role="user", content=QUESTION)]))
    raw = plain.raw if isinstance(plain.raw, dict) else plain.raw.model_dump()  # type: ignore[union-attr]
    return {
        "plain": plain.message.content,
        "streamed": "".join(part.delta or "" for part in parts),
        "route": raw["apportion"]["route"],
    }


if __name__ == "__main__":
    main()
