"""The texts whose embeddings are compared: a corpus with queries, and texts at which runtimes differ."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, cycle, islice
from typing import Literal, NamedTuple, Protocol

from pyrite.sources import open_source
from pyrite.sources.base import Document, Question
from pyrite.spec import SampleSource

Kind = Literal["query", "document"]
KINDS: tuple[Kind, Kind] = ("query", "document")

#: The name of each kind in messages.
LABELS: dict[Kind, str] = {"query": "queries", "document": "passages"}

#: Minimum number of texts of a check. A small corpus is filled up with texts of the built-in sample.
MIN_TEXTS = 1000

#: Maximum number of passages and queries of a run that a check embeds, to limit its time.
MAX_PASSAGES, MAX_QUERIES = 1000, 500

#: Words of a long text for a model without a maximum length, which then reads all of them.
_UNLIMITED_WORDS = 2000

#: Texts on each side of the window, each with another content.
_AT_WINDOW = 3

#: Scripts, normalisation forms, emoji, directions, and characters that tokenizers drop or split.
_UNICODE = (
    "cafe\u0301 re\u0301sume\u0301 nai\u0308ve",
    "caf\u00e9 r\u00e9sum\u00e9 na\u00efve",
    "\u0130stanbul'da \u0131\u015f\u0131k",
    "\u1e9eTRASSE stra\u00dfe",
    "ﬁne oﬃce ligatures, full width ＡＢＣ１２３",
    "a\u0300\u0316\u0317b\u0334c\u20dd",
    "\U0001f600 happy \U0001f469\u200d\U0001f4bb coder \U0001f3f4\u200d\u2620\ufe0f \U0001f1e9\U0001f1ea",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663",
    "\u202eright to left\u202c and back",
    "\u4eca\u65e5\u306f\u4e16\u754c \u4f60\u597d\u4e16\u754c \uc548\ub155\ud558\uc138\uc694",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5",
    "zero\u200bwidth no\u00a0break soft\u00adhyphen \ufeffmark",
    "tab\tline\nline\r\nend   many   blanks ",
    "control \x01\x02 replacement \ufffd",
    "[CLS] [SEP] [MASK] <s> </s> <pad> special tokens",
    "2\u00b2 \u00bd \u2211 x\u2264y \u20ac100 5\u00b0C \u03bcg",
    "UPPER lower MiXeD snake_case camelCase e-mail@example.org https://example.org/a?b=c",
    "supercalifragilisticexpialidocious" * 4,
)

_EMPTY = ("", " ", "\n", "\u200b", ".")


class Counter(Protocol):
    """Counts the tokens of a text with the prompt of its kind, before truncation."""

    def __call__(self, text: str, kind: Kind) -> int: ...


class Text(NamedTuple):
    """A text to embed, its kind, and the group of texts it belongs to, as parity.json counts them."""

    text: str
    kind: Kind
    group: str


@dataclass(frozen=True)
class Corpus:
    """Queries and passages, in the order in which they are used.

    Attributes:
        queries, passages: texts by id.
        relevant: the ids of relevant passages and their grades by query id; a query may have none.
        first: the ids of passages that are hard to tell from relevant ones, most important first.
    """

    queries: Mapping[str, str]
    passages: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    first: Sequence[str] = ()


def limit(corpus: Corpus, max_queries: int = MAX_QUERIES, max_passages: int = MAX_PASSAGES) -> Corpus:
    """A part of ``corpus``: queries with all their relevant passages, then ``first``, then a sample of the others.

    Queries and passages are drawn in the order of a hash of their ids. A query whose relevant passages do not fit is
    left out.
    """
    queries: dict[str, str] = {}
    chosen: dict[str, None] = {}
    for query in _shuffled(corpus.queries):
        needed = {each for each in corpus.relevant.get(query, ()) if each in corpus.passages}
        if len(queries) < max_queries and len(needed | chosen.keys()) <= max_passages:
            queries[query] = corpus.queries[query]
            chosen |= dict.fromkeys(sorted(needed))
    for passage in chain(corpus.first, _shuffled(corpus.passages)):
        if len(chosen) == max_passages:
            break
        chosen[passage] = None
    relevant = {query: corpus.relevant[query] for query in queries if query in corpus.relevant}
    return Corpus(queries, {each: corpus.passages[each] for each in chosen}, relevant)


@cache
def sample_corpus() -> Corpus:
    """The questions and answers of the built-in sample, with titles as in training."""
    records = list(open_source(SampleSource()).records())
    documents = {each.id: f"{each.title}\n{each.text}" for each in records if isinstance(each, Document)}
    questions = [each for each in records if isinstance(each, Question)]
    return Corpus({each.id: each.text for each in questions}, documents, {each.id: each.relevant for each in questions})


def parity_texts(corpus: Corpus, count: Counter, window: int | None) -> list[Text]:
    """The texts of a check, MIN_TEXTS or more: first those at which runtimes differ, then the corpus.

    The first ones are in mixed order, so that batches have padding. Those of the corpus are sorted by length, which
    saves time. All queries of the corpus are in the order of ``corpus.queries``, and so are its passages.

    Args:
        window: the maximum number of tokens; None if the model has none.
    """
    texts = [Text(text, kind, "empty") for text in _EMPTY for kind in KINDS]
    texts += [Text(text, kind, "unicode") for text in _UNICODE for kind in KINDS]
    texts += _long_texts(list(corpus.passages.values()), count, window)
    texts = _shuffled_texts(texts)
    natural = [Text(each, "query", "query") for each in corpus.queries.values()]
    natural += [Text(each, "document", "passage") for each in corpus.passages.values()]
    missing = max(0, MIN_TEXTS - len(texts) - len(natural))
    return [*texts, *natural, *islice(_generated(), missing)]


def _long_texts(passages: list[str], count: Counter, window: int | None) -> list[Text]:
    """Texts of window - 1, window and window + 1 tokens, and texts that are much longer."""
    words = [text.split() for text in passages if text.split()]
    if not words:
        return []
    found = []
    for number in range(_AT_WINDOW):
        # The texts begin with different passages, and have different ones on both sides of the window.
        stream = chain.from_iterable(cycle(words[number:] + words[:number]))
        if window is None:
            text = " ".join(islice(stream, _UNLIMITED_WORDS))
            found += [Text(text, kind, "long") for kind in KINDS]
            continue
        source = list(islice(stream, 4 * window))
        for kind in KINDS:
            found.append(Text(" ".join(source), kind, "long"))
            found.append(Text(" ".join(source[: window // 2]), kind, "half window"))
            for tokens in (window - 1, window, window + 1):
                exact = _of_length(source, tokens, partial(count, kind=kind))
                found += [] if exact is None else [Text(exact, kind, "window")]
    return found


def _of_length(words: list[str], tokens: int, count: Callable[[str], int]) -> str | None:
    """A text of exactly ``tokens`` tokens: the first words, and then a few that have one token; None if there is none.

    The number of tokens grows with the number of words.
    """
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[:middle])) <= tokens:
            low = middle
        else:
            high = middle - 1
    text = " ".join(words[:low])
    for _ in range(tokens):
        if count(text) >= tokens:
            break
        text += " a"
    return text if count(text) == tokens else None


def _generated() -> Iterable[Text]:
    """Texts of the built-in sample, without end."""
    corpus = limit(sample_corpus())
    queries, passages = corpus.queries.values(), corpus.passages.values()
    texts = [Text(each, "query", "generated") for each in queries]
    texts += [Text(each, "document", "generated") for each in passages]
    return cycle(_shuffled_texts(texts))


def _shuffled(ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=lambda each: hashlib.sha256(each.encode()).digest())


def _shuffled_texts(texts: list[Text]) -> list[Text]:
    return sorted(texts, key=lambda each: hashlib.sha256(f"{each.kind} {each.text}".encode()).digest())
