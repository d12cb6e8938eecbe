"""The words the world is made of: fixed lists, and names built from syllables without end.

Knows nothing of people or documents. Lists are data: changing one changes every world.
"""

from functools import cache
from random import Random
from typing import Final


def row(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


FIRST_NAMES: Final = row(
    """
    Ada Alma Anton Arlo Asta Basil Bela Bruno Carla Clara Conrad Cora Dario Dora Edgar Elena Elias Emil
    Enzo Erika Ewald Fanny Felix Flora Franz Freda Georg Greta Gustav Hanna Harald Hedda Helga Henrik
    Hugo Ida Ines Irma Ivan Jakob Jana Joel Jonas Judit Julia Karl Katja Klara Lars Laura Leon Lidia
    Linus Lotte Lucas Lydia Magda Marek Marta Mats Milan Mira Moritz Nadia Nils Nora Olga Oren Oskar
    Otto Paula Peer Petra Quinn Rafael Ralf Rita Robin Rosa Ruben Sara Selma Sigrid Silas Simon Sofia
    Stefan Svea Tamar Tessa Theo Tilda Tobias Ulla Urs Valeria Vera Viktor Vilma Walter Wanda Yara
    Yvonne Zelda
    """
)
COUNTRIES: Final = row(
    """
    Moland Ruvia Tessar Kordan Belune Ostria Vanteg Sulmar Pelonia Dravia Halvor Ismere
    """
)
PROFESSIONS: Final = row(
    """
    baker banker barber brewer butcher carpenter chemist clockmaker cook dentist doctor driver farmer
    fisher gardener glazier jeweller judge lawyer librarian mason mechanic miner musician nurse painter
    pharmacist pilot plumber poet potter printer sailor sculptor shepherd singer smith surgeon tailor
    weaver
    """
)
PRODUCTS: Final = row(
    """
    bells bicycles boats boots bricks brushes candles carpets cement chairs chocolate clocks combs
    copper cotton cutlery engines fans flutes furniture glass gloves glue hats keys lamps lenses locks
    maps mirrors needles organs paint paper pianos pipes pumps radios ropes rugs sails saws scales silk
    soap stoves tents tiles toys violins wool
    """
)
COMPANY_KINDS: Final = ("Mills", "Press", "Lines", "Labs", "Foundry", "Yard")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = row(
    """
    January February March April May June July August September October November December
    """
)
COLORS: Final = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
THINGS: Final = row(
    """
    apples pears plums lemons eggs loaves cakes nuts beans onions stones shells coins stamps books cards
    pens cups plates spoons baskets boxes bottles ribbons marbles buttons
    """
)
# Words and their opposites, in turn.
OPPOSITES: Final = row(
    """
    hot cold big small old young fast slow high low wet dry hard soft light dark early late open closed
    full empty near far rich poor strong weak long short wide narrow loud quiet clean dirty thick thin
    happy sad deep shallow solid liquid sharp blunt sweet bitter correct wrong up down first last true
    false begin end
    """
)
KINDS: Final = {
    "animal": row("dog cat horse cow sheep goat fox wolf bear eagle trout frog"),
    "tool": row("hammer saw drill axe spade rake chisel wrench file knife"),
    "fruit": row("apple pear plum cherry peach grape melon fig lemon banana"),
    "garment": row("coat hat scarf shirt glove sock boot belt jacket skirt"),
    "vehicle": row("cart bus tram ship train truck ferry wagon sledge canoe"),
}
ONSETS: Final = row("b d f g h j k l m n p r s t v z br dr fr gr kr pl st tr")
VOWELS: Final = row("a e i o u")
CODAS: Final = ("", "", "", "n", "r", "l", "s", "m", "k")
TOWN_COUNT: Final = 72


def spelled_name(rng: Random, syllables: int) -> str:
    """A name of so many syllables: `Velkaro`, `Dromis`."""
    parts = []
    for position in range(syllables):
        coda = rng.choice(CODAS) if position < syllables - 1 else rng.choice(CODAS[2:])
        parts.append(rng.choice(ONSETS) + rng.choice(VOWELS) + coda)
    return "".join(parts).capitalize()


def person_name(rng: Random) -> tuple[str, bool]:
    """A full name and whether the pronoun is `she`; first names are shared, family names hardly ever."""
    first = rng.choice(FIRST_NAMES)
    return f"{first} {spelled_name(rng, rng.choice((2, 2, 3)))}", first[-1] in "aeu"


def company_name(rng: Random) -> str:
    """A company's name of two words: `Torvel Mills`."""
    return f"{spelled_name(rng, 2)} {rng.choice(COMPANY_KINDS)}"


@cache
def towns() -> dict[str, str]:
    """Every town of every world and its country; towns are few and well known."""
    rng, found = Random(20260411), dict[str, str]()
    while len(found) < TOWN_COUNT:
        found.setdefault(spelled_name(rng, 2), COUNTRIES[len(found) % len(COUNTRIES)])
    return found


def listed(names: list[str] | tuple[str, ...]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def slug(name: str) -> str:
    """A name as an identifier: `Mira Velkan` gives `mira-velkan`."""
    return name.lower().replace(" ", "-")
