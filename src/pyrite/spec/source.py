"""Settings of the sources of documents and questions: ``source``."""

from typing import Annotated, Literal

from pydantic import Field

from pyrite.spec.section import Section


class SampleSource(Section):
    """The built-in sample corpus about everyday medicine."""

    kind: Literal["sample"] = "sample"


class MedquadSource(Section):
    """MedQuAD's XML files: a folder, or the published .tar.xz, .tar.gz or .zip archive."""

    kind: Literal["medquad"] = "medquad"
    path: str = Field(description="Folder or archive: a path, or s3://bucket/key.")
    collections: list[str] = Field(default=[], description="Collections to read, e.g. [NIDDK, NINDS]; empty: all.")


class _QuestionColumns(Section):
    question: str = Field(default="question", description="Column with the question.")
    answer: str = Field(default="answer", description="Column with the answer.")
    topic: str | None = Field(default=None, description="Column with the topic; unset: one topic per question.")
    type: str | None = Field(default=None, description="Column with the question's type, for the report.")
    title: str | None = Field(default=None, description="Column with the answer's title.")


class QaSource(_QuestionColumns):
    """Question-answer pairs, one per row, in a JSONL or CSV (also .gz) or Parquet file or a folder of such files."""

    kind: Literal["jsonl", "csv", "parquet"]
    path: str = Field(description="File, or folder of files: a path, or s3://bucket/key.")
    id: str | None = Field(
        default=None, description="Column with a unique id; unset: the row number, in JSONL and CSV that of the line."
    )


class BeirSource(Section):
    """A BEIR data set: a folder or archive with corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv."""

    kind: Literal["beir"] = "beir"
    path: str = Field(description="Folder, or .tar.xz, .tar.gz or .zip archive: a path, or s3://bucket/key.")
    relevance_level: int | None = Field(
        default=None,
        ge=1,
        le=127,
        description="Least grade in the qrels that counts as an answer (trec_eval's level); lower ones count as 0. "
        "Unset: 1, with a warning if there are grades above 1.",
    )


class StackexchangeSource(Section):
    """A Stack Exchange dump: the titles of questions, and the answers that were accepted or have a high score."""

    kind: Literal["stackexchange"] = "stackexchange"
    path: str = Field(description="Posts.xml, a .7z archive or a folder with it: a path, or s3://bucket/key.")
    min_score: int = Field(default=1, description="Minimum score of an answer that the asker did not accept.")
    topic: Literal["tag", "question"] = Field(
        default="tag", description="Split by the first tag, or by question if nearly all questions share the first tag."
    )


class HuggingfaceSource(_QuestionColumns):
    """Question-answer pairs read with the ``datasets`` library, from the Hugging Face hub or a local folder."""

    kind: Literal["huggingface"] = "huggingface"
    id: str = Field(description="Data set id on the hub, or a local path.")
    name: str | None = Field(default=None, description="Configuration of the data set.")
    revision: str | None = Field(default=None, description="Commit of the data set. Pin it for reproducible runs.")
    split: str = Field(default="train", description="Split to read.")


class DocumentsSource(Section):
    """Documents without questions: a folder of text, Markdown, HTML and PDF files, or a file with one per row."""

    kind: Literal["documents"] = "documents"
    path: str = Field(
        description="Folder of .txt, .md, .mdx, .html and .pdf files, or a JSONL, CSV or Parquet file with one "
        "document per row: a path, or s3://bucket/key."
    )
    text: str = Field(default="text", description="Rows: column with the text.")
    title: str | None = Field(default=None, description="Rows: column with the title. Files: headings or file name.")
    topic: str | None = Field(default=None, description="Rows: column with the topic; unset: one topic per document.")
    id: str | None = Field(default=None, description="Rows: column with a unique id; unset: the row number.")


SourceSpec = Annotated[
    SampleSource | MedquadSource | QaSource | BeirSource | StackexchangeSource | HuggingfaceSource | DocumentsSource,
    Field(discriminator="kind"),
]
