"""helm test: check from a judge pod that the store is writable and the judge servers respond."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

from pyrite.addresses import normalize_server_urls
from pyrite.errors import PyriteError
from pyrite.store.s3 import S3Store
from pyrite.store.s3_errors import RetryPolicy

KEY = "probe/helm-test"

time.sleep(3)  # network policies apply to a new pod with a delay; until then everything may be allowed

try:
    # Shorter than the 15 minutes that a run waits for its store: a user is waiting.
    store = S3Store(os.environ["PYRITE_STORE"], RetryPolicy(connect_timeout=5, max_wait=5, total_timeout=45))
    store.ensure_writable()
    store.write(KEY, b"pyrite")
    assert store.read(KEY) == b"pyrite"
    store.delete(KEY)
except PyriteError as error:
    sys.exit(
        f"FAILED: {error}\nIn a pod, credentials come from a Pod Identity association or IRSA role (EKS), or else from "
        "the Secret store.existingSecret. If the store did not respond at all, check networkPolicy.store too."
    )
print(f"ok: the store {store} is readable and writable")

try:
    urls = normalize_server_urls(json.loads(os.environ["JUDGE_URLS"]), "Set the API key in judge.existingSecret")
except ValueError as error:
    sys.exit(f"FAILED: judge.urls: {error}")
key = os.environ.get("PYRITE_JUDGE_API_KEY")
headers = {"Authorization": f"Bearer {key}"} if key else {}
failed = []
for url in urls:
    models = f"{url}/v1/models"
    request = urllib.request.Request(models, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            names = [model["id"] for model in json.load(response)["data"]]
        print(f"ok: {url} serves {', '.join(names)}")
    except (OSError, ValueError, KeyError) as error:
        if os.environ["JUDGE_IS_SCALED"] == "true" and not isinstance(error, urllib.error.HTTPError):
            print(f"not running: {url}; the controller starts it before judging")
        else:
            failed.append(f"FAILED: {models}: {error}; if the server did not respond, check networkPolicy.judge.ports")
sys.exit("\n".join(failed) or 0)
