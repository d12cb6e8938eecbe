"""Plans as saved results have them, read into names of widths."""

from apportion.bits.game import decode
from apportion.core.artifact import Json


def names_of(plan: str, settings: Json) -> list[str]:
    """The name of every player's width.

    Args:
        plan: a digit for every player: an index into the settings' widths or, in results of before widths had names,
            the bits themselves.
        settings: what the plan's values depend on, as saved beside it.

    >>> names_of("011", {"widths": ["w2g64", "w4g64"]})
    ['w2g64', 'w4g64', 'w4g64']
    >>> names_of("244", {"widths": [2, 4], "group_size": 64})
    ['w2g64', 'w4g64', 'w4g64']
    """
    if all(isinstance(width, int) for width in settings["widths"]):
        return [f"w{bits}g{settings['group_size']}" for bits in plan]
    return [settings["widths"][index] for index in decode(plan)]
