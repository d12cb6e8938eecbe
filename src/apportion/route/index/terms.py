"""Text -> terms, the same for passages and for questions, in every place that searches by words.

Words of scripts that put blanks between them are lower-cased and stemmed as English (tantivy's `en_stem`; words of
more than 40 bytes are left out). Runs of scripts without blanks (Chinese, Japanese, Korean, Thai, Lao, Khmer,
Burmese) become overlapping pairs of characters, since their words cannot be told apart without a dictionary.
"""

import re
from typing import Any

MAX_WORD_BYTES = 40
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u1100-\u11ff\uac00-\ud7af"  # Korean
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # ideographs
    "]+"
)


class Analyzer:
    """Terms of texts; made once, used by many threads.

    Source: stemming after Porter (English), as tantivy has it; pairs of characters for Chinese and Japanese are
    Lucene's CJKBigramFilter; that Thai, Lao, Khmer and Burmese are treated alike is ours.
    """

    def __init__(self) -> None:
        import tantivy

        words = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        filters = tantivy.Filter
        for step in (filters.remove_long(MAX_WORD_BYTES), filters.lowercase(), filters.stemmer("english")):
            words = words.filter(step)
        self._words: Any = words.build()

    def terms(self, text: str) -> list[str]:
        """Terms in the order of the text, repeated as they occur.

        >>> Analyzer().terms("The capitals of 瑞士: 伯尔尼")
        ['the', 'capit', 'of', '瑞士', '伯尔', '尔尼']
        """
        text = _SURROGATES.sub("\ufffd", text)
        if text.isascii():
            return list(self._words.analyze(text))
        found: list[str] = []
        end = 0
        for run in _UNSPACED.finditer(text):
            found += self._words.analyze(text[end : run.start()])
            found += pairs(run[0])
            end = run.end()
        return found + list(self._words.analyze(text[end:]))


def pairs(run: str) -> list[str]:
    """Overlapping pairs of characters; a single character is a term of its own.

    >>> pairs("東京都"), pairs("東")
    (['東京', '京都'], ['東'])
    """
    return [run] if len(run) == 1 else [run[at : at + 2] for at in range(len(run) - 1)]
