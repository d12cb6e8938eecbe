"""BM25 over passages in memory, on tantivy: what the demonstration model is trained and measured with.

The same words, stemmer and scores as the saved index of `apportion.route` (title and text in one field,
English stems, a question as a set of words), without its files.
"""

from collections.abc import Iterable

from apportion.demo.documents import Passage
from apportion.route.index.terms import Analyzer


class Search:
    """Passages that can be searched by the words of a question."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        import tantivy

        self._tantivy = tantivy
        self._passages = tuple(passages)
        schema = tantivy.SchemaBuilder()
        schema.add_unsigned_field("place", stored=True)
        schema.add_text_field("body", stored=False, tokenizer_name="whitespace", index_option="freq")
        self._schema = schema.build()
        index = tantivy.Index(self._schema)
        writer = index.writer(heap_size=32 << 20, num_threads=1)
        self._analyzer = Analyzer()
        for place, passage in enumerate(self._passages):
            body = " ".join(self._analyzer.terms(f"{passage.title}\n{passage.text}"))
            writer.add_document(tantivy.Document(place=place, body=body))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._searcher = index.searcher()

    def find(self, question: str, k: int) -> list[tuple[float, Passage]]:
        """The best k passages with their scores, best first."""
        query = self._tantivy.Query
        should = self._tantivy.Occur.Should
        terms = dict.fromkeys(self._analyzer.terms(question))
        words = [(should, query.term_query(self._schema, "body", term)) for term in terms]
        found = self._searcher.search(query.boolean_query(words), k, count=False).hits
        hits = ((score, self._searcher.doc(address).get_first("place")) for score, address in found)
        return [(score, self._passages[place]) for score, place in hits]
