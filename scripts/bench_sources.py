"""Measure time and peak memory of reading a Stack Exchange dump, which is generated, or a source that exists.

Usage: python scripts/bench_sources.py --questions 120000 [--archive]
       python scripts/bench_sources.py --documents FOLDER
"""

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TextIO
from xml.sax.saxutils import quoteattr

from bench_stub import WORDS

from pyrite.sources import open_source
from pyrite.spec import DocumentsSource, SourceSpec, StackexchangeSource

#: Characters of each body.
_BODY = 1500


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--questions", type=int, default=20_000, help="with two answers each, of 1,500 characters")
    options.add_argument("--archive", action="store_true", help="compress the dump with py7zr first")
    options.add_argument("--documents", type=Path, help="read this folder or file as source.kind documents instead")
    chosen = options.parse_args()
    # A process for each, because a peak includes that of the parent process.
    processes = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
    with tempfile.TemporaryDirectory() as folder, processes as pool:
        path = chosen.documents or pool.apply(_dump, (Path(folder), chosen.questions, chosen.archive))
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        print(f"{path.name}: {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB")
        kind = DocumentsSource if chosen.documents else StackexchangeSource
        print(pool.apply(_read, (kind(path=str(path)),)))


def _dump(folder: Path, questions: int, archive: bool) -> Path:
    path = folder / "Posts.xml"
    with path.open("w", encoding="utf-8") as file:
        _write_posts(file, questions)
    if not archive:
        return path
    import py7zr

    fast = [{"id": py7zr.FILTER_LZMA2, "preset": 1}]
    with py7zr.SevenZipFile(folder / "site.7z", "w", filters=fast) as compressed:
        compressed.write(path, path.name)
    return folder / "site.7z"


def _write_posts(file: TextIO, questions: int) -> None:
    rng = random.Random(0)

    def body() -> str:
        words = " ".join(rng.choices(WORDS, k=_BODY // 8))
        return quoteattr(
            f"<p>{words}</p>\n\n<pre><code>if a:\n    b()\n</code></pre>\n\n<p><a href='#'>{words[:200]}</a></p>"
        )

    file.write('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
    for number in range(1, 3 * questions, 3):
        tags = quoteattr(f"<tag-{rng.randrange(1000)}><tag-{rng.randrange(1000)}>")
        title = quoteattr(" ".join(rng.choices(WORDS, k=9)))
        accepted = f'AcceptedAnswerId="{number + 1}"'
        file.write(f'  <row Id="{number}" PostTypeId="1" {accepted} Title={title} Tags={tags} Body={body()} />\n')
        for answer in (number + 1, number + 2):
            file.write(
                f'  <row Id="{answer}" PostTypeId="2" ParentId="{number}" Score="{answer % 3}" Body={body()} />\n'
            )
    file.write("</posts>\n")


def _read(spec: SourceSpec) -> str:
    before = _peak()
    start = time.monotonic()
    counts = Counter(type(record).__name__ for record in open_source(spec).records())
    seconds = time.monotonic() - start
    records = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    return f"{records}: {seconds:.1f} s; peak {_peak()} MB, of which {before} MB before reading"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
