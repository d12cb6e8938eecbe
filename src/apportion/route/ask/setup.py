"""What answers questions: a model, a retriever, prompts and k. The same setup gives comparable outcomes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from apportion.core.errors import ArtifactMismatchError
from apportion.route.ask.prompts import Prompts
from apportion.route.ask.source import ProfileSource
from apportion.route.index.bm25 import Retriever
from apportion.route.llm.protocol import LLM

DEFAULT_K = 5


@dataclass(frozen=True, slots=True)
class Setup:
    """A model, where it looks things up, how it is asked, and how many passages a prompt shows.

    Attributes:
        llm: from `connect`. retriever: from `Bm25Index.open` or `build_index`. prompts: from `load_prompts`.
        k: passages in a prompt.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from apportion.route.ask import load_prompts
    >>> from apportion.route.index import Passage, build_index
    >>> from apportion.route.llm import Echo
    >>> index = build_index([Passage("1", "Bern", "the capital")], Path(tempfile.mkdtemp()) / "index")
    >>> Setup(Echo("Bern"), index, load_prompts()).source().k
    5
    """

    llm: LLM
    retriever: Retriever
    prompts: Prompts
    k: int = DEFAULT_K

    def source(self) -> ProfileSource:
        """What a profile made now was made from."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        corpus, prompts = self.retriever.corpus_digest, self.prompts.digest
        return ProfileSource(self.llm.model, corpus, prompts, self.k, created)


def require_trained_on(trained: Mapping[str, str | int], setup: Setup) -> tuple[str, ...]:
    """Refuse a setup that differs from the one a router was trained on.

    Args:
        trained: model, corpus, prompts and k of the router; what its profile did not record is empty or 0.

    Returns:
        What could not be compared, since the router's profile did not record it.

    Raises:
        ArtifactMismatchError: naming all that differs.
    """
    pairs = setup.source().identity
    unknown = [key for key in pairs if not trained.get(key)]
    differing = [key for key, value in pairs.items() if key not in unknown and trained[key] != value]
    if differing:
        details = "; ".join(f"{key}: trained on {trained[key]!r}, now {pairs[key]!r}" for key in differing)
        raise ArtifactMismatchError(
            f"router: was trained on another {', '.join(differing)} ({details})",
            "use what it was trained on, or profile and train again for this setup",
        )
    return tuple(unknown)
