"""Training examples from the titles of passages."""

from hypothesis import given
from hypothesis import strategies as st

from pyrite.identity import query_id
from pyrite.training.title_pairs import TitledPassage, title_pairs


def passage(number: int, title: str, has_context: bool = True, is_ambiguous: bool = False) -> TitledPassage:
    return TitledPassage(f"p{number}", title, f"text {number}", has_context, is_ambiguous)


@given(
    titles=st.lists(st.sampled_from(["Gout", "gout ", "Asthma", "Lupus", "Acne"]), max_size=20),
    limit=st.integers(1, 30),
    negatives=st.integers(1, 4),
    seed=st.text(max_size=3),
)
def test_negatives_of_a_title_have_other_titles(titles: list[str], limit: int, negatives: int, seed: str) -> None:
    passages = [passage(number, title) for number, title in enumerate(titles)]
    title_of = {each.passage_id: each.title.strip().lower() for each in passages}
    rows, dropped = title_pairs(passages, limit, negatives, [], {}, seed)
    distinct = len(set(title_of.values()))
    assert len(rows) == (min(limit, len(passages)) if distinct > negatives else 0)
    assert dropped == 0
    assert len({row["positive_id"] for row in rows}) == len(rows)
    for row in rows:
        title = row["anchor"].lower()
        assert title_of[row["positive_id"]] == title
        assert row["relevant_ids"] == sorted(key for key, own in title_of.items() if own == title)
        assert len({title, *(title_of[key] for key in row["negative_ids"])}) == negatives + 1
        assert len(row["label"]) == negatives + 1
    assert (rows, dropped) == title_pairs(passages[::-1], limit, negatives, [], {}, seed)


def test_held_out_questions_are_no_titles() -> None:
    passages = [passage(1, "What is gout?"), passage(2, "WHAT IS  GOUT"), passage(3, "Asthma"), passage(4, "Lupus")]
    rows, dropped = title_pairs(passages, 9, 1, ["What is Gout?", "Is asthma curable?"], {}, "0")
    assert {row["anchor"] for row in rows} == {"Asthma", "Lupus"}
    assert dropped == 2


def test_passages_that_start_with_their_title_only_protect() -> None:
    passages = [
        passage(1, "Gout"),
        passage(2, "Gout", has_context=False),
        passage(3, "Gout", is_ambiguous=True),
        passage(4, "Lupus"),
    ]
    rows, _ = title_pairs(passages, 9, 1, [], {query_id("gout"): {"answer"}}, "0")
    assert {row["positive_id"]: row["relevant_ids"] for row in rows} == {
        "p1": ["answer", "p1", "p2", "p3"],
        "p4": ["p4"],
    }
