"""The topics and kinds of question of the small data set that tests run on."""

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

#: A passage of the data set. A text is nearest to itself, whatever a model has learned and a processor rounds.
PASSAGE = KINDS["treatment"][1].format("gout", "gout1", "outtre")


def found_first(said: str) -> bool:
    """Whether what `pyrite search` said of PASSAGE, on a terminal of 1,000 columns, has it first with both models."""
    first_row = said.partition("\u251c")[0]
    return first_row.count(PASSAGE) == 2
