"""Training examples from the titles of passages."""

from hypothesis import given
from hypothesis import strategies as st

from pyrite.identity import query_id
from pyrite.training.title_pairs import MAX_PASSAGES, TitledPassage, title_pairs


def passage(number: int, title: str, names_subject: bool = True) -> TitledPassage:
    return TitledPassage(f"p{number}", title, names_subject)


def no_title(title: str) -> bool:
    del title
    return False


@given(
    titles=st.lists(st.sampled_from(["Gout", "gout ", "Asthma", "Lupus", "Acne"]), max_size=20),
    limit=st.integers(1, 30),
    negatives=st.integers(1, 4),
)
def test_negatives_of_a_title_have_other_titles(titles: list[str], limit: int, negatives: int) -> None:
    passages = [passage(number, title) for number, title in enumerate(titles)]
    title_of = {each.passage_id: each.title.strip().lower() for each in passages}
    pairs, dropped = title_pairs(passages, limit, negatives, no_title, {}, str.encode)
    distinct = len(set(title_of.values()))
    assert len(pairs) == (min(limit, len(passages)) if distinct > negatives else 0)
    assert dropped == 0
    assert len({pair.positive for pair in pairs}) == len(pairs)
    for pair in pairs:
        title = pair.title.lower()
        assert title_of[pair.positive] == title
        assert pair.relevant == {key for key, own in title_of.items() if own == title}
        assert len({title, *(title_of[key] for key in pair.negatives)}) == negatives + 1
    assert (pairs, dropped) == title_pairs(passages[::-1], limit, negatives, no_title, {}, str.encode)


def test_held_out_questions_are_no_titles() -> None:
    passages = [passage(1, "What is gout?"), passage(2, "WHAT IS GOUT?"), passage(3, "Asthma"), passage(4, "Lupus")]
    pairs, dropped = title_pairs(passages, 9, 1, lambda title: "gout" in title.lower(), {}, str.encode)
    assert {pair.title for pair in pairs} == {"Asthma", "Lupus"}
    assert dropped == 2


def test_passages_that_start_with_their_title_only_protect() -> None:
    passages = [passage(1, "Gout"), passage(2, "Gout", names_subject=False), passage(3, "Lupus")]
    pairs, _ = title_pairs(passages, 9, 1, no_title, {query_id("gout"): {"answer"}}, str.encode)
    assert {pair.positive: pair.relevant for pair in pairs} == {"p1": {"answer", "p1", "p2"}, "p3": {"p3"}}


def test_a_title_of_too_many_passages_gives_no_pair() -> None:
    passages = [passage(n, "Introduction") for n in range(MAX_PASSAGES + 1)] + [passage(-1, "Gout"), passage(-2, "Flu")]
    pairs, dropped = title_pairs(passages, 999, 1, no_title, {}, str.encode)
    assert ({pair.title for pair in pairs}, dropped) == ({"Gout", "Flu"}, 0)
