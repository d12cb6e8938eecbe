"""A routing and its folders: router, passages, prompts."""

from pathlib import Path

from apportion.route.ask.prompts import load_prompts
from apportion.route.ask.setup import DEFAULT_K
from apportion.route.index.build import build_index
from apportion.route.index.corpus import read_corpus
from apportion.route.index.open import open_retriever
from apportion.route.profile.profile import Profile
from apportion.route.router.file import load_router, refuse_other, save_router
from apportion.route.router.report import training_record
from apportion.route.router.router import Router
from apportion.route.router.train import train_router
from apportion.serve.routing import Routing


def open_routing(
    router: Path, index: Path, prompts: Path | None, dense: str | None, model: str | None, *, compared: bool = True
) -> Routing:
    """A routing from its folders.

    Args:
        prompts: the shipped ones without it. dense: the embedding model of a dense index.
        model: the identity of the model that answers; None where it is not known, so that it is not compared.
        compared: whether a router of another setup is refused; only measurements have a reason not to.

    Raises:
        ArtifactError: a folder is not what it should be. ArtifactMismatchError: the router was trained on another
            model, corpus or prompts.
    """
    words, retriever, loaded = load_prompts(prompts), open_retriever(index, dense), load_router(router)
    now = {"corpus": retriever.corpus_digest, "prompts": words.digest, **({"model": model} if model else {})}
    if compared:
        refuse_other(router, loaded.source, {key: value for key, value in now.items() if loaded.source.get(key)})
    return Routing(loaded, retriever, words, int(loaded.source.get("k") or DEFAULT_K))


def read_router(folder: Path) -> Router:
    """A router by its folder."""
    return load_router(folder)


def write_index(corpus: Path, folder: Path) -> None:
    """A BM25 index of a file of passages."""
    build_index(read_corpus(corpus), folder)


def learn(profile: Profile, folder: Path) -> None:
    """A router learned from a profile, saved."""
    trained = train_router(profile)
    save_router(folder, trained.router, training_record(trained))
