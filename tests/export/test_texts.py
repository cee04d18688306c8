"""The part of a corpus that a check uses, and texts at the edges of the window."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pyrite.export.texts import MIN_TEXTS, Corpus, limit, parity_texts

ids = st.integers(0, 40).map(str)


@given(
    st.dictionaries(ids, st.sets(ids, max_size=6).map(lambda each: dict.fromkeys(each, 1)), min_size=1),
    st.lists(ids, unique=True),
    st.integers(1, 10),
    st.integers(1, 20),
)
def test_each_chosen_query_has_its_passages(
    relevant: dict[str, dict[str, int]], first: list[str], max_queries: int, max_passages: int
) -> None:
    passages = {str(number): f"text {number}" for number in range(41)}
    corpus = Corpus({query: f"query {query}" for query in relevant}, passages, relevant, first)
    part = limit(corpus, max_queries, max_passages)
    assert len(part.queries) <= max_queries
    assert len(part.passages) == max_passages
    assert all(part.relevant[query].keys() <= part.passages.keys() for query in part.queries)
    assert part == limit(corpus, max_queries, max_passages)
    needed = {each for query in part.queries for each in part.relevant[query]}
    hard = [each for each in first if each not in needed]
    room = max_passages - len(needed)
    assert set(hard[:room]) <= part.passages.keys()


@settings(max_examples=20)
@given(st.integers(8, 300), st.sampled_from(["", "a prompt of five tokens "]))
def test_texts_have_the_window_and_one_token_around_it(window: int, prompt: str) -> None:
    """As the tokenizer, one that counts words and two special tokens."""

    def count(text: str, kind: str) -> int:
        return 2 + len((prompt * (kind == "query") + text).split())

    passages = {str(number): "several words of a passage " * number for number in range(1, 9)}
    texts = parity_texts(Corpus({"q": "a query"}, passages), count, window)
    assert len(texts) >= MIN_TEXTS
    for kind in ("query", "document"):
        lengths = {count(each.text, kind) for each in texts if each.group == "window" and each.kind == kind}
        assert lengths == {window - 1, window, window + 1}
    assert {each.text for each in texts} >= {"", " ", "a query", *passages.values()}
