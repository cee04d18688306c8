"""The topics and question types of the small data set for tests."""

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
