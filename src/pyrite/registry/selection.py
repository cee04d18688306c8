"""Selects the domain of a query among the published models, by the base model's embeddings.

All domains must have the same base model: then one embedding of the query is compared with the centroids of all.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyrite.embedding.encoder import Encoder
from pyrite.embedding.models import base_digest, base_folder
from pyrite.errors import UserError
from pyrite.executors.step import Run
from pyrite.progress import Progress
from pyrite.registry import centroids, channels
from pyrite.registry.catalog import Catalog, Version
from pyrite.registry.centroids import Floats, Selected
from pyrite.registry.names import version_name
from pyrite.spec import ModelSpec, RunSpec
from pyrite.stages.inputs import read_queries
from pyrite.store import Store


def add_centroids(run: Run, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write the centroids of the run's training queries to ``folder``, and return their entry in version.json.

    The file's name has its digest: the centroids of two publishers may differ by rounding, and both may be stored.
    """
    queries = sample_queries(_training_queries(run), run.spec.seed)
    progress.begin(len(queries), "training queries encoded")
    vectors = base_encoder(run.spec, run.store).encode(queries, "query", progress.advance)
    found = centroids.fit_centroids(vectors, centroids.CENTROIDS, run.spec.seed)
    data = centroids.dump(found)
    name = f"centroids-{hashlib.sha256(data).hexdigest()[:16]}.npy"
    (folder / name).write_bytes(data)
    return {"file": name, "count": len(found), "queries": len(queries)}


def sample_queries(queries: list[str], seed: int) -> list[str]:
    """At most ``centroids.MAX_QUERIES`` of the ``queries``, drawn by ``seed``, in their order."""
    if len(queries) <= centroids.MAX_QUERIES:
        return queries
    drawn = np.random.default_rng(seed).choice(len(queries), centroids.MAX_QUERIES, replace=False)
    return [queries[position] for position in sorted(drawn.tolist())]


def base_encoder(spec: RunSpec, store: Store) -> Encoder:
    """An encoder for the base model, in float32, so that embeddings of several machines differ by rounding only."""
    base = base_folder(spec.model.base, spec.model.revision)
    return Encoder(base, base, spec, store, "float32")


def _training_queries(run: Run) -> list[str]:
    texts: list[str] = read_queries(run.reading_context(), "train")["text"].to_pylist()
    return texts


def versions_at(catalog: Catalog, channel: str) -> dict[str, Version]:
    """The version that ``channel`` points to in each domain that has this channel.

    Raises:
        UserError: no domain has this channel.
    """
    pointing = {domain: channels.current(catalog.history(domain)) for domain in catalog.domains()}
    if not any(channel in current for current in pointing.values()):
        advice = (
            f"`pyrite promote DOMAIN VERSION --channel {channel}` sets it." if pointing else "Publish a model first."
        )
        raise UserError(f"no domain in {catalog.store} has the channel {channel!r}. {advice}")
    return {
        domain: catalog.version(domain, version_name(current[channel]))
        for domain, current in pointing.items()
        if channel in current
    }


def select(
    catalog: Catalog, versions: Mapping[str, Version], queries: Sequence[str], trust_remote_code: bool
) -> Selected:
    """The nearest domain of each query.

    Args:
        versions: the version of each domain to select from.
        trust_remote_code: whether to run the base model's own code, if the published runs did.

    Raises:
        UserError: the domains have different base models, the base model on this machine is another one, or it has code
            of its own that is not trusted.
        PyriteError: centroids are missing or damaged.
    """
    spec = _common_base(versions, trust_remote_code)
    encoder = base_encoder(_run_spec(spec), catalog.store)
    return centroids.nearest_domain(
        encoder.encode(queries, "query"),
        {domain: _read_centroids(catalog, version) for domain, version in versions.items()},
    )


def _common_base(versions: Mapping[str, Version], trust_remote_code: bool) -> ModelSpec:
    """The settings of the base model of all ``versions``, after checking this machine's copy. Raises as ``select``."""
    domains: dict[str, list[str]] = {}
    for domain, version in versions.items():
        domains.setdefault(version["base"]["digest"], []).append(f"{domain} ({version['base']['base']})")
    if len(domains) > 1:
        groups = "; ".join(", ".join(group) for group in domains.values())
        raise UserError(
            f"the domains have different base models, so their scores cannot be compared: {groups}. Publish models "
            "that were trained from one base model, and move the channel to them."
        )
    domain, version = next(iter(versions.items()))
    settings = {name: value for name, value in version["base"].items() if name != "digest"}
    spec = ModelSpec.model_validate(settings)
    if spec.trust_remote_code and not trust_remote_code:  # version.json is data of the store, and must not decide it
        raise UserError(
            f"the base model {spec.base} runs code of its own. If you trust this code, add --trust-remote-code."
        )
    base_folder(spec.base, spec.revision, f"the base model of domain {domain}")
    if base_digest(spec) != version["base"]["digest"]:
        raise UserError(
            f"{spec.base} on this machine is not the base model of domain {domain}: its files have another digest. "
            "Copy the base model of the run here."
        )
    return spec


def _run_spec(model: ModelSpec) -> RunSpec:
    """Settings for an encoder of the base model: those of a run with this ``model``."""
    return RunSpec.model_validate({"name": "select", "source": {"kind": "sample"}, "model": model.model_dump()})


def _read_centroids(catalog: Catalog, version: Version) -> Floats:
    return centroids.parse(catalog.fetch_file(version, version["centroids"]["file"]).read_bytes())
