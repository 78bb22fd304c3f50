"""The workflows of .github are ones that GitHub takes, run targets that exist, and may do no more than they need."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import pytest

yaml = pytest.importorskip("yaml")

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# The keys of a workflow, a job and a step that GitHub knows.
WORKFLOW = {"name", "run-name", "on", "permissions", "env", "defaults", "concurrency", "jobs"}
JOB = {
    "name",
    "needs",
    "if",
    "runs-on",
    "environment",
    "concurrency",
    "outputs",
    "env",
    "defaults",
    "steps",
    "strategy",
}
JOB |= {"permissions", "timeout-minutes", "continue-on-error", "container", "services", "uses", "with", "secrets"}
STEP = {"id", "name", "if", "uses", "with", "run", "env", "shell", "working-directory", "timeout-minutes"}


def read(path: pathlib.Path) -> dict:
    """Returns a workflow by its keys; YAML 1.1 takes the key `on` for true."""
    facts = yaml.safe_load(path.read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in facts.items()}


def jobs() -> list:
    return [
        pytest.param(job, facts["jobs"], id=f"{path.stem}-{name}")
        for path in FILES
        for facts in [read(path)]
        for name, job in facts["jobs"].items()
    ]


RELEASE = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_reads_and_no_more(path):
    facts = read(path)
    assert {"name", "on", "permissions", "jobs"} <= set(facts) <= WORKFLOW
    assert facts["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(("job", "others"), jobs())
def test_a_job(job, others):
    assert set(job) <= JOB
    needs = job.get("needs", [])
    assert set([needs] if isinstance(needs, str) else needs) <= set(others)
    if "uses" in job:
        assert (ROOT / job["uses"]).exists()
        return
    assert job["timeout-minutes"] <= 60
    for step in job["steps"]:
        assert set(step) <= STEP
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w./-]+@(v\d+|release/v\d+)", step.get("uses", "actions/checkout@v1"))
        # What a reference, a title or a name holds must reach a shell as a variable, and not as its text.
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize(("job", "others"), jobs())
def test_a_job_runs_targets_that_exist(job, others):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    rows = job.get("strategy", {}).get("matrix", {}).get("include", [])
    commands = [step.get("run", "") for step in job.get("steps", [])] + [row.get("command", "") for row in rows]
    assert {name for command in commands for name in re.findall(r"^make ([\w-]+)", command, re.M)} <= set(targets)


def test_only_a_tag_publishes_after_everything_has_passed():
    publish, deploy = RELEASE["publish"], RELEASE["deploy"]
    assert publish["if"] == deploy["if"] == "github.ref_type == 'tag'"
    assert set(publish["needs"]) == set(RELEASE) - {"publish", "deploy"}
    assert deploy["needs"] == "publish"


def test_only_publishing_and_deploying_may_do_more():
    more = {name: job["permissions"] for name, job in RELEASE.items() if "permissions" in job}
    assert more == {"publish": {"id-token": "write"}, "deploy": {"pages": "write", "id-token": "write"}}
    assert "secrets" not in (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")


def test_what_is_uploaded_is_what_is_downloaded():
    steps = [step for job in RELEASE.values() for step in job.get("steps", [])]
    uploads = [step["with"] for step in steps if "actions/upload-artifact@" in step.get("uses", "")]
    downloads = [step["with"] for step in steps if "actions/download-artifact@" in step.get("uses", "")]
    assert {words["name"].partition("-")[0] for words in uploads} == {"dist"}
    assert [(words["pattern"], words["merge-multiple"]) for words in downloads] == [("dist-*", True)] * 2
    # Two jobs may not upload one name.
    assert len({words["name"] for words in uploads}) == len(uploads)


def test_the_wheel_is_repaired_as_make_repairs_it():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    excluded = re.search(r"^OF_TORCH := (.*)$", makefile, re.M)[1]
    assert excluded in RELEASE["wheels"]["env"]["CIBW_REPAIR_WHEEL_COMMAND"]


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="needs actionlint")
def test_actionlint_finds_nothing():
    done = subprocess.run(["actionlint", *FILES], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
