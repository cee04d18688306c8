"""docs/eks.md: its commands are valid, its prices follow from infra/prices.yaml, its table of tests names real tests.

Commands that need AWS or a cluster are not executed. The page lists them, and the test compares the lists.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import warm
from charts.tools import API_VERSIONS, CHART, INSTALLATIONS, helm
from infra.test_eks_scripts import assert_commands_exist
from pyrite.cli import app
from pyrite.config import load
from pyrite.controller.resource import Control
from pyrite.spec import RunSpec

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))

from eks_common import Prices  # noqa: E402
from eks_up import given_parameters  # noqa: E402

PAGE = (ROOT / "docs" / "eks.md").read_text()
TEXT, LIST = PAGE.split("**Commands of this page.**")
MAKEFILE = (ROOT / "Makefile").read_text()
PROGRAMS = ("aws", "curl", "export", "helm", "kubectl", "make", "pyrite", "source")

#: Words that a file with this kind of evidence contains.
EVIDENCE = {
    "cfn-lint": "cfn-lint",
    "moto": "mock_aws",
    "a double of aws": "cloud_double",
    "Stubber": "Stubber",
    "a stub of the API": "class Stub",
    "an emulation": "vpc_cni",
    "buildah": "buildah",
    "a fake": "Harness",
    "with Helm": "charts.tools",
    "promtool": "check_queries",
    "real one-node Kubernetes": "pytest.mark.real",
}


def blocks() -> Iterator[str]:
    """Indented code: one command per line; an open quote or a backslash continues it."""
    command = ""
    for line in re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL).splitlines():
        if line.startswith("    "):
            command += f"{line.strip()}\n"
            try:
                shlex.split(command)
            except ValueError:
                continue
            if not line.endswith("\\"):
                yield command.replace("\\\n", " ").strip()
                command = ""
    assert not command, f"unfinished: {command}"


def commands() -> list[str]:
    """All commands: in blocks, in inline code, and in $(...)."""
    inline = re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`\n]+)`", TEXT)
    found = [*blocks(), *inline]
    return found + [inner for command in found for inner in re.findall(r"\$\(([^)]+)\)", command)]


COMMANDS = [shlex.split(command, comments=True) for command in commands()]


def of(program: str) -> list[list[str]]:
    return [words[1:] for words in COMMANDS if words[0] == program]


def test_the_page_has_commands_of_all_programs() -> None:
    assert {words[0] for words in COMMANDS} == set(PROGRAMS), "add a check for a new program, and list its commands"
    assert len(COMMANDS) > 50


def test_the_list_of_commands_that_are_not_executed_is_complete() -> None:
    verbs = {" ".join(words[:2]) for words in COMMANDS if words[0] in ("aws", "kubectl")}
    verbs |= {"helm test", *(words[0] for words in COMMANDS if words[0] in ("curl", "export", "source"))}
    assert set(re.findall(r"`([^`\n]+)`", LIST.split(":\n\n")[1])) == verbs


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_make_targets_options_and_parameters_exist(words: list[str]) -> None:
    target, *settings = words
    recipe = re.search(rf"^{target}:.* ## .*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
    assert recipe, f"make {target}"
    values = dict(setting.split("=", 1) for setting in settings)
    for name in values:
        assert f"$({name}" in recipe[1], f"make {target} does not use {name}"
    arguments = shlex.split(values.get("ARGS", ""))
    script = re.search(r"scripts/\w+\.py", recipe[1])
    if arguments:
        assert script
        usage = subprocess.run([sys.executable, ROOT / script[0], "--help"], capture_output=True, text=True).stdout
        assert {each for each in arguments if each.startswith("--")} <= set(re.findall(r"--[a-z-]+", usage))
        if target == "eks-up":
            given_parameters([each for each in arguments if "=" in each], None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which the page's run file was written as the page says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    init = next(words for words in of("pyrite") if words[0] == "init")
    warm.pyrite(init, tmp_path).check_returncode()
    file = tmp_path / init[-1]
    [edits] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | yaml.safe_load(edits)))
    return tmp_path


def test_pyrite_commands_and_settings_are_valid(folder: Path) -> None:
    group: Any = typer.main.get_command(app)
    for words in of("pyrite"):
        name, *arguments = words
        assert name in group.commands, f"pyrite {name}"
        if not arguments:
            continue  # prose that names the command
        context = group.commands[name].make_context(name, list(arguments))
        if (file := context.params.get("run_file")) and "overrides" in context.params:
            load(file, context.params["overrides"] or ())
    check = next(words for words in of("pyrite") if words[0] == "check")
    done = warm.pyrite(check, folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", [words for words in of("helm") if words[0] == "upgrade"], ids=" ".join)
def test_helm_commands_render(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, *arguments = words
    ignored = ("--install", "--create-namespace", "--reset-then-reuse-values")
    values = INSTALLATIONS["eks"] if "--reset-then-reuse-values" in arguments else ()
    chart = [each.replace("REGISTRY", "registry.example") for each in arguments if each not in ignored]
    monkeypatch.chdir(ROOT)
    done = helm("template", *chart, *values, *API_VERSIONS)
    assert done.returncode == 0, done.stderr


def test_aws_commands_have_known_options() -> None:
    assert_commands_exist([["aws", *words] for words in of("aws")])


def test_patches_and_requests_are_valid_json() -> None:
    known = {*Control.model_fields, *RunSpec.model_fields}
    patches = [json.loads(words[words.index("-p") + 1]) for words in of("kubectl") if words[0] == "patch"]
    assert len(patches) == 2
    for patch in patches:
        assert patch.keys() == {"spec"}
        assert patch["spec"].keys() <= known
    [body] = [json.loads(words[words.index("-d") + 1]) for words in of("curl") if "-d" in words]
    assert {"model", "messages"} <= body.keys()


def test_prices_follow_from_the_price_list() -> None:
    prices = Prices()
    idle, gpu = prices.idle("m6i.xlarge"), prices.gpu()
    month = idle * 730
    for text in (
        f"| ${idle:.2f} | ${idle * 24:.2f} |",
        f"| ${gpu:.2f} | ${gpu * 24:.2f} |",
        f"| ${idle * 24:.2f} a day, ${month:.0f} a month |",
        f"an idle month alone costs ${month:.0f}",
        f"| ${gpu * 62:.0f} a weekend (62 hours) |",
        f"up to three more CPU nodes (${prices.node('m6i.xlarge', 100):.2f} an hour each)",
        f"is on, and costs ${gpu:.2f} an hour",
        f"${6 * (idle + gpu):.0f} to ${12 * (idle + gpu):.0f}",
        *(f"| ${prices.month(kind, 1):.2f} a month for each GB |" for kind in ("s3", "logs", "gp3")),
    ):
        assert text in " ".join(PAGE.split()), text


def test_each_row_of_the_table_has_its_test() -> None:
    table = TEXT.split("## What was tested on what")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "tests/" in line]
    assert len(rows) > 15
    previous = ""
    for _, tested_with, file, _ in rows:
        evidence = previous if tested_with == "the same" else tested_with
        assert (ROOT / file).is_file(), file
        for kind, word in EVIDENCE.items():
            if kind in evidence:
                assert word in (ROOT / file).read_text(), f"{file} is no evidence of {kind}"
        previous = evidence
    named = {file for _, _, file, _ in rows}
    assert {str(each.relative_to(ROOT)) for each in (ROOT / "tests" / "infra").glob("test_eks*.py")} <= named


def test_links_of_the_page_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in headings(PAGE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def headings(text: str) -> list[str]:
    return [line.lstrip("# ") for line in text.splitlines() if re.match("#+ ", line)]


def test_readme_and_cluster_page_link_to_it() -> None:
    assert "docs/eks.md" in (ROOT / "README.md").read_text()
    assert "eks.md" in (ROOT / "docs" / "cluster.md").read_text()
    assert "docs/eks.md" in (CHART / "values-eks.yaml").read_text()
