"""What a run's pods say of themselves: which are asked for, and when their events are read too."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pyrite.controller import diagnose
from pyrite.controller.api import JOB_LABEL, Cluster
from pyrite.controller.observed import Job, Pods
from pyrite.controller.resource import TrainingRun

#: A Job has its first pod within a second; one that has none for so long may not make any.
_NO_POD = timedelta(seconds=30)


def look(cluster: Cluster, run: TrainingRun, jobs: Sequence[Job], now: datetime) -> Pods:
    """Why the run's pods do not run; where none is to run, which still do, and what the failed ones said last."""
    going = [job for job in jobs if not job.ended]
    stopped = run.spec is None or run.control.cancel or run.control.suspend
    found = [] if stopped and not going else cluster.pods(run.name)
    if not going:
        failed = [job.name for job in jobs if job.ended == "Failed"]
        return Pods(
            diagnose.trouble(found, now),
            left=min((pod["metadata"]["name"] for pod in found), default=""),
            last_words={name: diagnose.last_words(cluster.failed_pods(name)) for name in failed},
        )
    of = {job.name: [pod for pod in found if pod["metadata"]["labels"].get(JOB_LABEL) == job.name] for job in going}
    pods = [pod for each in of.values() for pod in each]
    trouble = diagnose.trouble(pods, now) or _not_made(cluster, pods, now)
    for job in going:
        if not of[job.name] and not job.queued and not job.done and now - job.created > _NO_POD:
            trouble = diagnose.refused(job.name, cluster.events(job.name)) or trouble
    running = any(diagnose.is_running(pod) for pod in pods)
    return Pods(trouble, running, unmade=any(diagnose.is_unmade(pod, now) for pod in pods))


def of_server(cluster: Cluster, instance: str, stateful_set: str, now: datetime) -> str:
    """Why pods of the vLLM server are not there or do not run; nothing where they may just be starting."""
    found = cluster.server_pods(instance)
    if not found:
        return diagnose.refused(stateful_set, cluster.events(stateful_set))
    return diagnose.trouble(found, now) or _not_made(cluster, found, now)


def _not_made(cluster: Cluster, pods: Sequence[dict[str, Any]], now: datetime) -> str:
    """Of the first pod alone, so that a turn does not ask once a shard: the others wait for the same thing."""
    name = next((pod["metadata"]["name"] for pod in pods if diagnose.is_unmade(pod, now)), None)
    return diagnose.not_made(name, cluster.events(name)) if name else ""
