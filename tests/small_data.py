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
