"""Scales the vLLM server to zero if its lease has expired: ``python -m pyrite.controller.lease``, in a CronJob.

While the controller needs the server, it renews the server's Lease. So a controller that is dead, or cannot reach the
API server, does not leave the GPUs on.

- Why a CronJob: it needs no process that could be dead, as the controller is. A container of the server's pods could
  only exit, and the kubelet would restart it on the same node; to scale the server, the LLM's pod would need a token.
- Why a Lease: the permission to renew it gives no access to the StatefulSet, whereas an annotation on the StatefulSet
  needs a permission that also allows another image.
"""

import logging
import os
import sys
from datetime import UTC, datetime, timedelta

from kubernetes import config

from pyrite.controller.api import Cluster
from pyrite.controller.observed import read_server

_log = logging.getLogger("pyrite.controller.lease")


def main() -> None:
    """Check the lease once. The chart sets the environment variables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    config.load_incluster_config()
    duration = timedelta(minutes=int(os.environ["PYRITE_LEASE_MINUTES"]))
    expire(Cluster(os.environ["PYRITE_NAMESPACE"]), os.environ["PYRITE_SERVER"], duration, datetime.now(UTC))


def expire(cluster: Cluster, name: str, duration: timedelta, now: datetime) -> None:
    """Scale the StatefulSet ``name`` to zero if the Lease of that name is gone or was not renewed for ``duration``.

    Raises:
        ApiException, urllib3.exceptions.HTTPError: the API server refuses, or does not respond; the Job is retried.
    """
    server, renewed = cluster.server(name), cluster.lease(name)
    if server and read_server(server).replicas and (renewed is None or now - renewed > duration):
        _log.warning("%s: scaling to 0, because the controller has not renewed its lease since %s", name, renewed)
        cluster.scale(name, 0)


if __name__ == "__main__":
    main()
