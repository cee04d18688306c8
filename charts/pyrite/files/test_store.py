"""helm test: what a judge pod needs, from inside one: the store, written and read, and the judge's servers."""

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

time.sleep(3)  # network policies take a moment to reach a new pod, and may let it do anything till then

try:
    # A run waits a quarter of an hour for its store; a person at a terminal does not.
    store = S3Store(os.environ["PYRITE_STORE"], RetryPolicy(connect_timeout=5, max_wait=5, total_timeout=45))
    store.ensure_writable()
    store.write(KEY, b"pyrite")
    assert store.read(KEY) == b"pyrite"
    store.delete(KEY)
except PyriteError as error:
    sys.exit(f"FAILED: {error}\nIf there was no answer at all, look at networkPolicy.store too.")
print(f"ok: the store {store} can be written and read")

try:
    urls = normalize_server_urls(json.loads(os.environ["JUDGE_URLS"]))
except ValueError as error:
    sys.exit(f"FAILED: judge.urls: {error}")
key = os.environ.get("PYRITE_JUDGE_API_KEY")
headers = {"Authorization": f"Bearer {key}"} if key else {}
failed = []
for url in urls:
    models = f"{url}/v1/models"
    request = urllib.request.Request(models, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            names = [model["id"] for model in json.load(answer)["data"]]
        print(f"ok: {url} serves {', '.join(names)}")
    except (OSError, ValueError, KeyError) as error:
        if os.environ["JUDGE_IS_SCALED"] == "true" and not isinstance(error, urllib.error.HTTPError):
            print(f"not up: {url}; the controller starts it before judging")
        else:
            failed.append(f"FAILED: {models}: {error}; if there was no answer, look at networkPolicy.judge.ports")
sys.exit("\n".join(failed) or 0)
