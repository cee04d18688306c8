"""The topics and question types of the small data set for tests, and the first steps of a run on it."""

from pyrite.plan import Step

TOPICS = [
    "asthma",
    "gout",
    "migraine",
    "eczema",
    "angina",
    "anemia",
    "malaria",
    "measles",
    "mumps",
    "cholera",
    "typhoid",
    "rabies",
    "tetanus",
    "scurvy",
    "rickets",
    "lupus",
    "vertigo",
    "tinnitus",
    "insomnia",
    "acne",
]
KINDS = {
    "symptoms": (
        "What are the symptoms of {}?",
        "People with {} notice signs such as {} ache, {} fever and tired days.",
    ),
    "treatment": (
        "How is {} treated?",
        "Doctors treat {} with {} tablets, rest, and a {} diet for some weeks.",
    ),
    "causes": (
        "What causes {}?",
        "{} begins when the {} system fails, often after a {} infection or by inheritance.",
    ),
}

#: A passage of the data set. As a query it ranks first with any model, because a text is nearest to itself.
PASSAGE = KINDS["treatment"][1].format("gout", "gout1", "outtre")


def found_first(output: str) -> bool:
    """Whether both models rank PASSAGE first in the output of `pyrite search` for it (COLUMNS=1000)."""
    first_row = output.partition("\u251c")[0]
    return first_row.count(PASSAGE) == 2


#: The steps of a run before its first training.
UP_TO_MINE = (
    Step("prepare"),
    Step("embed", 0, 0),
    Step("retrieve", 1),
    Step("judge", 1, 0),
    Step("judge", 1, 1),
    Step("mine", 1),
)
