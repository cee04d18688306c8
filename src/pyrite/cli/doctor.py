"""`pyrite doctor`: what is missing before a run, on this machine or on a cluster."""

import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pyrite.cli.cluster import Namespace
from pyrite.cli.common import StoreOption, console
from pyrite.config import load
from pyrite.doctor import Check
from pyrite.errors import UserError
from pyrite.spec import RunSpec
from pyrite.store import open_store

if TYPE_CHECKING:
    from pyrite.doctor.kube import Release

PROBLEMS = 2
_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]", "skip": "[dim]skip[/]"}


class Place(StrEnum):
    """Where to check."""

    HERE = "here"
    CLUSTER = "cluster"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""

    @app.command(rich_help_panel="Before a run")
    def doctor(
        run_file: Annotated[
            Path | None,
            typer.Argument(metavar="RUN_FILE", help="Check this run's model and judge.", show_default=False),
        ] = None,
        on: Annotated[Place, typer.Option("--on", help="Check this machine, or the cluster of your kubeconfig.")] = (
            Place.HERE
        ),
        judge_url: Annotated[
            list[str] | None, typer.Option("--judge-url", help="Also check this judge's server: http://host:port.")
        ] = None,
        store: StoreOption = "store",
        namespace: Namespace = None,
    ) -> None:
        """Check what a run needs, before it. Exit code 0: nothing is missing; 2: the table says what to fix.

        On a cluster, it reads AWS and Kubernetes with your credentials, and runs a short Job as a worker would.
        """
        spec = load(run_file, ()) if run_file else None
        found = list(_cluster(namespace) if on == Place.CLUSTER else _here(spec, judge_url or [], store))
        _show(found)
        if any(check.status == "fail" for check in found):
            raise typer.Exit(PROBLEMS)


def _show(checks: Iterable[Check]) -> None:
    """Print a table, as lines that a narrow terminal does not cut, so that commands can be copied."""
    for check in checks:
        mark = f"{_MARKS[check.status]}{' ' * (5 - len(check.status))}"
        console.print(f"{mark}{escape(f'{check.name:<18} {check.found}')}", highlight=False, soft_wrap=True)
        if check.fix:
            console.print(f"{' ' * 24}{escape(check.fix)}", highlight=False, soft_wrap=True)


def _here(spec: RunSpec | None, urls: list[str], store: str) -> Iterator[Check]:
    # Imported here, like the modules for AWS and Kubernetes, because --help must be fast.
    from pyrite.addresses import normalize_server_urls
    from pyrite.doctor import laptop
    from pyrite.llm.client import read_api_key
    from pyrite.spec import JudgeServers, ModelSpec

    try:
        servers = JudgeServers(normalize_server_urls(urls, JudgeServers([]).set_key))
    except ValueError as error:
        raise UserError(f"--judge-url: {error}") from None
    opened = open_store(store)
    yield from laptop.check_machine(laptop.read_machine(opened.local))
    yield laptop.check_model(spec.model if spec else ModelSpec())
    yield laptop.check_store(opened)
    address = laptop.store_address(store)
    dates = [laptop.read_date(address)] if address else []
    judges = (spec.main_judge, spec.first_judge, spec.evaluation_judge) if spec else ()
    pools = [(judge.servers, judge.spec.server_model) for judge in judges if judge]
    for pool, model in [*pools, (servers, pools[0][1] if pools else None)]:
        key = read_api_key(pool) if pool.urls else None
        for url in pool.urls:
            reply = laptop.read_server(url, key)
            dates.append(reply.date)
            yield laptop.check_server(reply, pool, model)
    yield laptop.check_clock(dates, time.time())


def _cluster(namespace: str | None) -> Iterator[Check]:
    from pyrite.doctor import kube

    api = kube.Api(namespace)
    answers = api.read()
    amis: list[str] = []
    if api.eks:
        found, amis = _aws(api.eks["name"], api.eks["region"], api.namespace, answers.release)
        yield from found
    else:
        yield Check("AWS", "skip", f"{api.cluster} is not an EKS cluster")
    yield from kube.checks(answers, api.namespace, amis)
    if answers.release:
        yield api.run_job(answers.release)


def _aws(cluster: str, region: str, namespace: str, release: "Release | None") -> tuple[list[Check], list[str]]:
    """The checks of AWS, and the types of the GPU node groups' images."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    from pyrite.doctor import Unreadable, aws

    try:
        session = boto3.session.Session(region_name=region)
        identity = aws.identity(session)
    except (BotoCoreError, ClientError) as error:
        fix = "Sign in, so that `aws sts get-caller-identity` works: `aws sso login`, or set AWS_PROFILE."
        return [Check("AWS credentials", "fail", str(error), fix)], []
    answers = aws.read(session, cluster, release.images if release else [])
    accounts = release.accounts if release else ["pyrite-controller", "pyrite-worker"]
    gpus = release.gpus if release else 0
    groups = [] if isinstance(answers.groups, Unreadable) else answers.groups
    found = [Check("AWS credentials", "ok", identity), *aws.checks(answers, namespace, accounts, gpus)]
    return found, [group.ami for group in groups]
