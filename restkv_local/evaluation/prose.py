"""Seeded English prose of any length: a harbour chronicle that holds no number."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

_PEOPLE: Final = (
    "the harbour master", "old Marit", "the ferryman Tobias", "the schoolteacher",
    "a clerk from the customs house", "the widow Okafor", "the lighthouse keeper", "young Ilse",
    "the blacksmith's apprentice", "Captain Renaud", "the notary", "a travelling botanist",
    "the baker Anselm", "the twins from the mill", "the doctor", "the cartographer Wen",
    "the priest", "two sailors from the south", "the rope maker", "the innkeeper Dora",
)  # fmt: skip
_PLACES: Final = (
    "the north quay", "the salt market", "the old customs house", "the chapel on the hill",
    "the timber yard", "the lower lock", "the inn by the bridge", "the fish auction",
    "the observatory", "the mill pond", "the narrow lane behind the bakery", "the signal tower",
    "the botanical garden", "the eastern dunes", "the ferry landing", "the library",
)  # fmt: skip
_THINGS: Final = (
    "a crate of oranges", "three bolts of blue cloth", "a broken sextant",
    "letters tied with string", "a barrel of tar", "a basket of eels",
    "an atlas with missing pages", "a brass bell", "a sack of rye", "a box of glass lenses",
    "a coil of new rope", "a painted chair", "seeds wrapped in paper", "a clock without hands",
    "a lantern", "a ledger bound in green leather",
)  # fmt: skip
_WEATHER: Final = (
    "a thin rain came in from the sea", "the fog stayed until noon", "the wind turned to the west",
    "frost lay on the planks", "the heat kept everybody indoors", "clouds gathered over the dunes",
    "the tide ran unusually high", "the evening was clear and still",
    "thunder rolled far out over the water", "the first snow fell",
)  # fmt: skip
_MOODS: Final = (
    "nobody was surprised", "few people noticed", "the talk went on for days",
    "everyone agreed it could have been worse", "the children thought it a great adventure",
    "the older people shook their heads", "no one could say why", "it was soon forgotten",
    "the matter was settled over a glass of cider",
)  # fmt: skip
_SENTENCES: Final = (
    "In the morning {a} walked to {p} with {t}, and {w}.",
    "{A} had promised to bring {t} to {p}, but {b} arrived first and {m}.",
    "When {w}, {a} and {b} took shelter near {p} and spoke about the price of grain.",
    "It was said at {p} that {a} once lost {t} and found it again in spring.",
    "{A} repaired the gate at {p} while {b} looked for {t}.",
    "Later that week {w}, so the boats stayed in and {a} read aloud from an old journal.",
    "At {p} there stood a bench where {a} liked to rest, and {m}.",
    "{A} asked {b} to keep {t} until the next market day.",
    "Because {w}, the meeting at {p} was moved, and {m}.",
    "Nobody at {p} knew who had left {t} there, although {a} had an idea.",
    "{A} measured the water level beside {p} and wrote it down with care.",
    "From the window {a} could see {p}, where {b} was unloading {t}.",
    "There was a quarrel between {a} and {b} about {t}, and {m}.",
    "{A} painted the sign at {p} green, which {b} did not like at all.",
    "After supper {w}, and {a} told the story of {t} once more.",
    "The road from {p} was closed for repairs, so {a} went round by the shore.",
)


def write_paragraphs(seed: int) -> Iterator[str]:
    """Yield paragraphs of four to seven sentences, without end."""
    rng = random.Random(seed)
    while True:
        lines = []
        for _ in range(rng.randint(4, 7)):
            a, b = rng.sample(_PEOPLE, 2)
            words = {"a": a, "A": a[0].upper() + a[1:], "b": b, "p": rng.choice(_PLACES)}
            words |= {"t": rng.choice(_THINGS), "w": rng.choice(_WEATHER), "m": rng.choice(_MOODS)}
            lines.append(rng.choice(_SENTENCES).format(**words))
        yield " ".join(lines)
