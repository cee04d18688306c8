"""Stack Exchange dumps: the titles of questions as queries, and their accepted or well-scored answers as documents.

Two passes over Posts.xml. The first collects numbers, less than 100 bytes a post. The second yields the texts. So
memory does not grow with the texts.
"""

import re
from array import array
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree as SafeXml
import numpy as np
from defusedxml.common import DefusedXmlException

from pyrite.errors import UserError
from pyrite.ragged import Mask, Numbers
from pyrite.sources import files, html_text, sevenzip
from pyrite.sources.base import NO_ANSWER, NO_QUESTION, Document, Dropped, Question, Record
from pyrite.spec import StackexchangeSource

LOW_SCORE = "answer that is not accepted and below source.min_score"
NO_PARENT = "answer without its question in the dump"

_POSTS = "posts.xml"
_7Z = ".7z"
_QUESTION, _ANSWER = "1", "2"

#: The tags of a question that are its title: Stack Exchange allows five.
_MAX_TAGS = 5

#: Limit on a row in bytes. Stack Exchange's posts have at most 30,000 characters.
_MAX_ROW = 4 << 20
_BLOCK = 1 << 16


class Stackexchange:
    """The source ``stackexchange``."""

    def __init__(self, spec: StackexchangeSource) -> None:
        self._spec = spec

    def records(self) -> Iterator[Record]:
        """Yield a Question for each question with an answer, and a Document for each of these answers.

        An answer's title is its question's tags. It is not the question's title, because that is the query: every
        query would find its answers by their titles.

        Raises:
            UserError: the file, archive or folder has no Posts.xml, or it cannot be read. Names the file and line.
        """
        file = find_posts(files.existing(self._spec.path))
        index = _index(file, self._spec.min_score)
        where = str(file.absolute())
        for row in read_rows(file):
            post_type = row.get("PostTypeId")
            if post_type == _QUESTION:
                yield self._question(row, index, where)
            elif post_type == _ANSWER:
                yield self._answer(row, index, where)

    def digest(self) -> str:
        """Hex sha256 of the file and of the source's settings."""
        file = find_posts(files.existing(self._spec.path))
        return files.digest(file, [file], self._spec.model_dump_json(exclude={"path"}))

    def _question(self, row: Mapping[str, str], index: "_Index", where: str) -> Record:
        number = _number(row, "Id", where)
        location = f"{where}, post {number}"
        title = " ".join(row.get("Title", "").split())
        if not title:
            return Dropped(location, NO_QUESTION)
        answers = index.answers_of(number)
        if not answers:
            return Dropped(location, NO_ANSWER)
        topic = index.topic(number) if self._spec.topic == "tag" else ""
        return Question(str(number), title, topic=topic, relevant=dict.fromkeys(map(str, answers), 1))

    def _answer(self, row: Mapping[str, str], index: "_Index", where: str) -> Record:
        number = _number(row, "Id", where)
        parent = index.parent_of(number)
        if parent is None:
            return Dropped(f"{where}, post {number}", LOW_SCORE)
        if parent not in index:
            return Dropped(f"{where}, post {number}", NO_PARENT)
        topic = index.topic(parent) if self._spec.topic == "tag" else ""
        text = html_text.fragment(row.get("Body", ""))
        return Document(str(number), text, title=", ".join(index.tags(parent)), topic=topic)


def find_posts(path: Path) -> Path:
    """The Posts.xml, or the .7z archive, that ``path`` is or that the folder ``path`` has.

    Raises:
        UserError: neither, or several archives.
    """
    if path.is_file():
        return path
    if found := [file for file in sorted(path.iterdir()) if file.is_file() and file.name.lower() == _POSTS]:
        return found[0]
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() == _7Z and not files.is_hidden(file.name)]
    # Stack Overflow's tables are in an archive each.
    found = [file for file in found if file.stem.lower().endswith("-posts")] or found
    if len(found) != 1:
        raise UserError(
            f"{path.absolute()}: no Posts.xml in this folder, and {len(found)} .7z archives; one is needed. Set "
            "source.path to the Posts.xml or the archive of one site."
        )
    return found[0]


# --- index ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """Numbers of the questions and of the selected answers.

    Attributes:
        questions: ids, ascending.
        question_tags: for each question, the numbers of its tags, then -1.
        vocabulary: the tags by number.
        answers, parents: ids of the selected answers, ascending, and of their questions.
        by_parent, answers_by_parent: the same pairs, in ascending order of the questions.
    """

    questions: Numbers
    question_tags: Numbers
    vocabulary: list[str]
    answers: Numbers
    parents: Numbers
    by_parent: Numbers
    answers_by_parent: Numbers

    def __contains__(self, question: int) -> bool:
        return _position(self.questions, question) is not None

    def answers_of(self, question: int) -> list[int]:
        """Ids of the selected answers to ``question``, ascending."""
        first, last = (np.searchsorted(self.by_parent, question, side) for side in ("left", "right"))
        return cast(list[int], self.answers_by_parent[first:last].tolist())

    def parent_of(self, answer: int) -> int | None:
        """The id of the question of ``answer``; None if the answer is not selected."""
        position = _position(self.answers, answer)
        return None if position is None else int(self.parents[position])

    def tags(self, question: int) -> list[str]:
        """The tags of a question of the dump."""
        numbers = self.question_tags[_position(self.questions, question)]
        return [self.vocabulary[number] for number in numbers.tolist() if number >= 0]

    def topic(self, question: int) -> str:
        """The first tag of a question of the dump; empty without tags."""
        return next(iter(self.tags(question)), "")


def _position(ids: Numbers, wanted: int) -> int | None:
    position = int(np.searchsorted(ids, wanted))
    return position if position < len(ids) and ids[position] == wanted else None


def _index(file: Path, min_score: int) -> _Index:
    where = str(file.absolute())
    questions, accepted, tags = array("q"), array("q"), array("i")
    answers, parents, scored = array("q"), array("q"), array("b")
    vocabulary: dict[str, int] = {}
    for row in read_rows(file):
        post_type = row.get("PostTypeId")
        if post_type == _QUESTION:
            questions.append(_number(row, "Id", where))
            accepted.append(_number(row, "AcceptedAnswerId", where, missing=0))
            names = split_tags(row.get("Tags", ""))[:_MAX_TAGS]
            tags.extend(vocabulary.setdefault(name, len(vocabulary)) for name in names)
            tags.extend([-1] * (_MAX_TAGS - len(names)))
        elif post_type == _ANSWER:
            answers.append(_number(row, "Id", where))
            parents.append(_number(row, "ParentId", where, missing=0))
            scored.append(_number(row, "Score", where, missing=0) >= min_score)
    selected = np.asarray(scored, bool) | np.isin(np.asarray(answers), np.asarray(accepted))
    return _sorted_index(questions, tags, list(vocabulary), np.asarray(answers), np.asarray(parents), selected)


def _sorted_index(
    questions: "array[int]",
    tags: "array[int]",
    vocabulary: list[str],
    answers: Numbers,
    parents: Numbers,
    selected: Mask,
) -> _Index:
    order = np.argsort(np.asarray(questions), kind="stable")
    answers, parents = answers[selected], parents[selected]
    by_id = np.argsort(answers, kind="stable")
    by_parent = np.lexsort((answers, parents))
    return _Index(
        questions=np.asarray(questions)[order],
        question_tags=np.asarray(tags).reshape(-1, _MAX_TAGS)[order],
        vocabulary=vocabulary,
        answers=answers[by_id],
        parents=parents[by_id],
        by_parent=parents[by_parent],
        answers_by_parent=answers[by_parent],
    )


def split_tags(tags: str) -> list[str]:
    """The names in a Tags attribute: <a><b> in older dumps, |a|b| in newer ones."""
    return re.findall(r"[^<>|]+", tags)


def _number(row: Mapping[str, str], name: str, where: str, missing: int | None = None) -> int:
    value = row.get(name)
    if value is None and missing is not None:
        return missing
    if value is None or not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        raise UserError(
            f"{where}, post {row.get('Id', 'without Id')}: {name} is {'missing' if value is None else repr(value)}, "
            "but must be a number. Is this Posts.xml of a Stack Exchange dump? Get it again, or correct source.path."
        )
    return int(value)


# --- XML --------------------------------------------------------------------------------------------------------------


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """Yield the attributes of each row of Posts.xml, or of the Posts.xml in a .7z archive.

    Raises:
        UserError: it cannot be read, is broken or has entities, or is another table of the dump. Names the file, and
            the line if it is known.
    """
    where = str(file.absolute())
    target = _Rows(where)
    parser = SafeXml.XMLParser(target=target)
    unparsed = 0
    with closing(_blocks(file)) as blocks:
        try:
            for block in blocks:
                parser.feed(block)
                unparsed = 0 if target.rows else unparsed + len(block)
                if unparsed > _MAX_ROW:
                    raise UserError(
                        f"{where}: a row of more than {_MAX_ROW >> 20} MiB, or none. This is no Posts.xml: correct "
                        "source.path."
                    )
                yield from target.rows
                target.rows.clear()
            parser.close()
        except DefusedXmlException as error:
            raise UserError(f"{where}: refused, because it defines entities ({error}). Posts.xml has none.") from error
        except (ParseError, ValueError, LookupError) as error:
            raise UserError(
                f"{where}: broken XML ({error}). The file is incomplete or damaged: get it again."
            ) from error


def _blocks(file: Path) -> Generator[bytes]:
    with file.open("rb") as stream:
        is_7z = stream.read(6) == b"7z\xbc\xaf\x27\x1c"
        stream.seek(0)
        if not is_7z:
            while block := stream.read(_BLOCK):
                yield block
            return
    unpacked = sevenzip.read_member(file, lambda name: name.lower().rpartition("/")[2] == _POSTS, "Posts.xml")
    with closing(unpacked) as blocks:
        for block in blocks:
            for start in range(0, len(block), _BLOCK):
                yield block[start : start + _BLOCK]


class _Rows:
    """Collects the attributes of rows. Without a tree, nothing has to be removed from it."""

    def __init__(self, where: str) -> None:
        self.rows: list[dict[str, str]] = []
        self._where = where
        self._has_root = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if not self._has_root and tag != "posts":
            raise UserError(
                f"{self._where}: the root element is '{tag}', but Posts.xml has 'posts'. Set source.path to Posts.xml."
            )
        self._has_root = True
        if tag == "row":
            self.rows.append(dict(attributes))

    def end(self, tag: str) -> None:
        """An element ends."""

    def close(self) -> None:
        """The document ends."""
