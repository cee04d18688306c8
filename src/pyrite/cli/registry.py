"""pyrite publish, models, promote, rollback, pull, select, litellm: published models of several domains."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pyrite.cli.common import RunName, StoreOption, console, find_run
from pyrite.cli.display import Display
from pyrite.errors import UserError
from pyrite.evaluation.scoring import METRICS
from pyrite.plan import Step
from pyrite.progress import ProgressEvents
from pyrite.registry import channels
from pyrite.registry.catalog import Catalog, Version
from pyrite.registry.names import PRODUCTION, check_domain, parse_target, version_name, version_number
from pyrite.report import formatting
from pyrite.store import open_store

if TYPE_CHECKING:
    from pyrite.registry.centroids import Selected

Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="A domain, such as medicine.")]
Channel = Annotated[str, typer.Option("--channel", help="The channel.")]

#: The metrics of the list of versions.
_GAINS = ("mrr@5", "dcg@5")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    panel = "Published models"

    @app.command(rich_help_panel=panel)
    def publish(
        run: RunName,
        domain: Annotated[
            str, typer.Option("--domain", help="The domain: lower-case letters, digits and dashes, at most 63.")
        ],
        channel: Annotated[
            str | None, typer.Option("--channel", help="Also move this channel to the version, such as production.")
        ] = None,
        force: Annotated[
            str | None,
            typer.Option(
                "--force",
                metavar="REASON",
                help="Publish although the gate is not met. The reason is recorded.",
            ),
        ] = None,
        export: Annotated[
            Path | None,
            typer.Option("--export", metavar="FOLDER", help="Record the parity.json of this export of the model."),
        ] = None,
        store: StoreOption = "store",
    ) -> None:
        """Publish the chosen model of a finished run as the next version of a domain: v1, v2, ...

        A version never changes. The channel `latest` moves to it. A model that is published already gets no new
        version.
        """
        from pyrite.registry.publish import publish_run

        check_domain(domain)
        if channel is not None:
            channels.check_movable(channel)
        found = find_run(run, store)
        found.store.ensure_writable()
        step = Step("publish")
        with Display(console) as display:
            display.started(step)
            events = ProgressEvents(lambda event: display.event(step, event))
            version, is_new = publish_run(found, domain, force, export, events)
        name = version["version"]
        if is_new:
            console.print(
                f"published {domain} {name}: {formatting.plural(len(version['files']), 'file')}", highlight=False
            )
        else:
            console.print(
                f"{domain} {name} is this model already, published {formatting.when(version['published'])} from run "
                f"{version['run']}; nothing was published"
                + ("; versions do not change, so --export has no effect" if export else ""),
                highlight=False,
                soft_wrap=True,
            )
        if channel:
            _promote(Catalog(found.store), domain, name, channel)

    @app.command(rich_help_panel=panel)
    def models(
        domain: Annotated[str | None, typer.Argument(metavar="DOMAIN", help="List this domain's versions.")] = None,
        versions: Annotated[
            list[str] | None, typer.Argument(metavar="VERSION VERSION", help="Compare two versions of the domain.")
        ] = None,
        store: StoreOption = "store",
    ) -> None:
        """List the published models: all domains, the versions of one, or two versions side by side."""
        catalog = Catalog(open_store(store))
        if domain is None:
            _show_domains(catalog)
        elif not versions:
            console.print(_versions(catalog, check_domain(domain)), highlight=False)
        elif len(versions) == 2:
            a, b = (catalog.version(check_domain(domain), each) for each in versions)
            console.print(_comparison(a, b), highlight=False)
            for note in _differences(a, b):
                console.print(note, highlight=False, markup=False)
        else:
            raise UserError(f"give two versions to compare, not {len(versions)}: pyrite models {domain} v1 v2")

    @app.command(rich_help_panel=panel)
    def promote(
        domain: Domain,
        version: Annotated[str, typer.Argument(metavar="VERSION", help="A version, such as v3; or a channel.")],
        channel: Channel = PRODUCTION,
        store: StoreOption = "store",
    ) -> None:
        """Move a channel of a domain to a version, such as production to v3."""
        channels.check_movable(channel)
        _promote(Catalog(open_store(store)), check_domain(domain), version, channel)

    @app.command(rich_help_panel=panel)
    def rollback(domain: Domain, channel: Channel = PRODUCTION, store: StoreOption = "store") -> None:
        """Move a channel back to the version before. Repeat it to go back further."""
        channels.check_movable(channel)
        catalog = Catalog(open_store(store))
        before = catalog.version(check_domain(domain), channel)["version"]
        history = catalog.move(domain, lambda moves, stamp: channels.rolled_back(moves, channel, stamp))
        now = version_name(channels.current(history)[channel])
        console.print(f"{domain}: {channel} is {now}, was {before}", highlight=False)

    @app.command(rich_help_panel=panel)
    def pull(
        target: Annotated[
            str,
            typer.Argument(
                metavar="DOMAIN[@CHANNEL|@VERSION]",
                help="medicine, medicine@latest or medicine@v3; default: @production.",
            ),
        ],
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder for the model.")],
        store: StoreOption = "store",
    ) -> None:
        """Copy a published model to a folder, and verify its checksums. sentence-transformers loads the folder."""
        from pyrite.registry.pull import pull as copy

        domain, reference = parse_target(target)
        catalog = Catalog(open_store(store))
        version = catalog.version(domain, reference)
        step = Step("pull")
        with Display(console) as display:
            display.started(step)
            copy(catalog, version, folder, ProgressEvents(lambda event: display.event(step, event)))
        console.print(f"{domain} {version['version']}, model digest {version['digest'][:12]}", highlight=False)
        console.print(str(folder), soft_wrap=True, highlight=False)

    @app.command(rich_help_panel=panel)
    def select(
        query: Annotated[str | None, typer.Argument(metavar="QUERY", help="A question in plain language.")] = None,
        queries: Annotated[
            Path | None, typer.Option("--queries", metavar="FILE", help="A text file with one query per line.")
        ] = None,
        channel: Annotated[
            str, typer.Option("--channel", help="Select among the models of this channel.")
        ] = PRODUCTION,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query.")] = False,
        trust_remote_code: Annotated[
            bool, typer.Option("--trust-remote-code", help="Run the base model's own code, if its runs allowed it.")
        ] = False,
        store: StoreOption = "store",
    ) -> None:
        """Select the domain of each query: the one whose training queries are nearest, by the base model."""
        from pyrite.registry.selection import select as nearest
        from pyrite.registry.selection import versions_at

        texts = _queries(query, queries)
        catalog = Catalog(open_store(store))
        versions = versions_at(catalog, channel)
        with console.status("selecting"):
            selected = nearest(catalog, versions, texts, trust_remote_code)
        for row in _rows(texts, selected, versions):
            if as_json:
                typer.echo(json.dumps(row, ensure_ascii=False))
            else:
                scores = ", ".join(f"{name} {formatting.number(score)}" for name, score in row["scores"].items())
                console.print(f"[bold]{row['domain']}[/] [dim]({scores})[/] {escape(row['query'])}", highlight=False)

    @app.command(rich_help_panel=panel)
    def litellm(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file to write.")],
        servers: Annotated[
            list[str],
            typer.Argument(
                metavar="DOMAIN[@CHANNEL|@VERSION]=URL ...",
                help="Models and their servers: medicine=http://host:port; default: @production.",
            ),
        ],
        store: StoreOption = "store",
    ) -> None:
        """Write the list of models for a LiteLLM proxy: one embedding model per domain and version."""
        from pyrite.registry.litellm import model_list, parse_deployments, write_config

        models = model_list(Catalog(open_store(store)), parse_deployments(servers))
        write_config(file, models)
        for model in models:
            console.print(
                f"{model['model_name']}  {model['litellm_params']['api_base']}", highlight=False, soft_wrap=True
            )
        console.print(f"wrote {file}; next: include it in the proxy's configuration", highlight=False, soft_wrap=True)


def _promote(catalog: Catalog, domain: str, reference: str, channel: str) -> None:
    """Move ``channel`` to the version that ``reference`` refers to, and print it."""
    name = catalog.version(domain, reference)["version"]
    number = version_number(name)
    catalog.move(domain, lambda history, stamp: channels.promoted(history, channel, number, stamp))
    console.print(f"{domain}: {channel} is {name}", highlight=False)


def _show_domains(catalog: Catalog) -> None:
    names = catalog.domains()
    if not names:
        text = f"no model is published in {catalog.store}; `pyrite publish RUN --domain NAME` publishes one"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        return
    table = _table("domain", "versions", "channels", "MRR@5 of the newest")
    for name in names:
        versions, pointing = catalog.versions(name), channels.current(catalog.history(name))
        shown = ", ".join(f"{channel} {version_name(number)}" for channel, number in sorted(pointing.items()))
        newest = versions[max(versions)]
        table.add_row(name, str(len(versions)), shown, _gain(newest, "mrr@5"))
    console.print(table, highlight=False)


def _versions(catalog: Catalog, domain: str) -> Table:
    catalog.published(domain)  # reports an unknown domain
    pointing = channels.current(catalog.history(domain))
    table = _table("version", "channels", *(METRICS[metric].label for metric in _GAINS), "published", "run")
    for number, version in reversed(catalog.versions(domain).items()):
        at = "\n".join(sorted(channel for channel, each in pointing.items() if each == number))
        run = f"{version['run']}, {version['chosen']}" + (f"\nforced: {version['forced']}" if version["forced"] else "")
        gains = (_gain(version, metric, "{}\n[dim]{}[/]") for metric in _GAINS)
        table.add_row(version_name(number), at, *gains, version["published"][:10], escape(run))
    return table


def _comparison(a: Version, b: Version) -> Table:
    """The metrics of two versions of a domain side by side, each compared with its base model."""
    table = _table("", a["version"], b["version"])
    for metric in METRICS:
        if metric in a["means"] or metric in b["means"]:
            table.add_row(METRICS[metric].label, *(_mean(version, metric) for version in (a, b)))
    for name in dict.fromkeys(row["set"] for version in (a, b) for row in version["retention"]):
        table.add_row(f"retention, {name}", *(_retention(version, name) for version in (a, b)))
    for label, key in (("run", "run"), ("chosen", "chosen"), ("seed", "seed"), ("published", "published")):
        table.add_row(label, *(escape(str(version[key])) for version in (a, b)))
    return table


def _differences(a: Version, b: Version) -> list[str]:
    """Why the metrics of two versions may not be comparable, as sentences."""
    notes = []
    if a["data"]["test"] != b["data"]["test"]:
        notes.append(
            "The versions were tested on different queries or passages: compare their gains, not their scores."
        )
    if a["base"]["digest"] != b["base"]["digest"]:
        notes.append(f"The base models differ: {a['base']['base']} and {b['base']['base']}.")
    if a["judges"] != b["judges"]:
        notes.append("Different judges graded the training pairs.")
    return notes


def _mean(version: Version, metric: str) -> str:
    if metric not in version["means"]:
        return formatting.NONE
    gain = _gain(version, metric)
    return formatting.number(version["means"][metric]) + ("" if gain == formatting.NONE else f"  {gain}")


def _gain(version: Version, metric: str, layout: str = "{} ({})") -> str:
    """The gain over the base model with its interval: ``+19% (+14% to +25%)``."""
    found = version["metrics"].get(metric)
    if not found:
        return formatting.NONE
    return layout.format(formatting.percent(found["relative"]), formatting.interval(found["relative_interval"]))


def _retention(version: Version, name: str) -> str:
    row = next((row for row in version["retention"] if row["set"] == name), None)
    return formatting.percent(row["change"]) if row else formatting.NONE


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _queries(query: str | None, file: Path | None) -> Sequence[str]:
    """The queries to select for: one, or the lines of a file that are not empty."""
    if (query is None) == (file is None):
        raise UserError("give a QUERY, or --queries FILE with one query per line.")
    if file is None:
        texts = [query or ""]
    else:
        try:
            texts = file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"--queries: {file} cannot be read: {error.strerror}. Check the path.") from None
        except UnicodeDecodeError as error:
            raise UserError(f"--queries: {file} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    if not (found := [text.strip() for text in texts if text.strip()]):
        raise UserError(f"{f'--queries: {file} has no query' if file else 'QUERY is empty'}. Give a question.")
    return found


def _rows(texts: Sequence[str], selected: "Selected", versions: Mapping[str, Version]) -> list[dict[str, Any]]:
    """For each query: its domain, the version of its model, and the scores of all domains, the highest first."""
    names = sorted(versions)
    rows = []
    for text, domain, scores in zip(texts, selected.domains, selected.scores.tolist(), strict=True):
        by_score = sorted(zip(names, scores, strict=True), key=lambda item: -item[1])
        rows.append(
            {
                "query": text,
                "domain": domain,
                "version": versions[domain]["version"],
                "scores": {name: round(score, 4) for name, score in by_score},
            }
        )
    return rows
