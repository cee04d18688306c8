"""What a static model costs: retrieval by all-MiniLM-L6-v2 and by the static model that `pyrite export` makes of it.

Usage: python scripts/bench_static.py FOLDER [--only NAME ...] [--queries N] [--passages N]

FOLDER holds BEIR data sets, as for bench_domains.py. Of each, the test queries and a part of the passages are used, in
context. The static model is distilled once. Intervals are paired over queries. The last line is JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_domains import domains

from pyrite.embedding.models import BUILTIN, base_folder, load
from pyrite.export import FORMATS, Reference, Source, check, layout
from pyrite.export.parity import Statistics, as_json
from pyrite.export.runtimes import RUNTIMES
from pyrite.export.texts import Corpus, limit
from pyrite.sources import open_source
from pyrite.sources.base import Document, Question
from pyrite.spec import BeirSource, ModelSpec

SPEC = ModelSpec(base=BUILTIN)


def corpus(path: Path, queries: int, passages: int) -> tuple[Corpus, int]:
    """The part of the data set in ``path`` that is used, and the number of all its passages."""
    records = list(open_source(BeirSource(path=str(path))).records())
    documents = {each.id: f"{each.title}\n{each.text}".strip() for each in records if isinstance(each, Document)}
    tested = [each for each in records if isinstance(each, Question) and each.split == "test"]
    texts = {each.id: each.text for each in tested}
    relevant = {each.id: each.relevant for each in tested}
    return limit(Corpus(texts, documents, relevant), queries, passages), len(documents)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--passages", type=int, default=600)
    options = parser.parse_args()
    folder = base_folder(BUILTIN, None)
    model = load(folder, folder, SPEC, "cpu", precision="float32")
    rows = {}
    with TemporaryDirectory() as scratch:
        out = Path(scratch)
        layout.save(model, BUILTIN, out)
        FORMATS["static"].write(out, out)
        for name, path in domains(options.folder):
            if options.only and name not in options.only:
                continue
            part, total = corpus(path, options.queries, options.passages)
            source = Source(BUILTIN, folder, SPEC, part, total, name, Statistics())
            found = check(FORMATS["static"], RUNTIMES["model2vec"], out, Reference.of(source, model), None)
            metrics = {metric: as_json(each) for metric, each in found.parity.metrics.items()}
            speedup = {size: found.speed[size] / found.trained_speed[size] for size in found.speed}
            rows[name] = {"passages": len(part.passages), "top_10_overlap": found.parity.overlap, **metrics}
            rows[name] |= {"mean_cosine": found.parity.mean_cosine, "speedup": speedup}
            print(name, json.dumps(rows[name]), flush=True)
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
