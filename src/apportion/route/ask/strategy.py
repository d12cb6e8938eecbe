"""The four strategies as two independent decisions: retrieve or not, reason or not.

index = need_rag + 2 * need_cot       0 direct   1 rag   2 cot   3 rag+cot
"""

STRATEGIES = ("direct", "rag", "cot", "rag+cot")
DIRECT, RAG, COT, RAG_COT = range(4)
USES_RAG = (False, True, False, True)
USES_COT = (False, False, True, True)


def strategy_of(need_rag: bool, need_cot: bool) -> str:
    """The strategy's name for two decisions.

    >>> strategy_of(True, False)
    'rag'
    """
    return STRATEGIES[int(need_rag) + 2 * int(need_cot)]
