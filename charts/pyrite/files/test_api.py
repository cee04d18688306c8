"""helm test: check that the controller's service account can list TrainingRuns."""

import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HINTS = {
    403: "the controller's Role is missing or was changed; run helm upgrade",
    404: "the cluster has no CRD for TrainingRun; run kubectl apply --server-side --field-manager=helm -f charts/pyrite/crds",
}

time.sleep(3)  # network policies apply to a new pod with a delay; until then everything may be allowed

host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
host = f"[{host}]" if ":" in host else host
url = f"https://{host}:{port}/apis/pyrite.dev/v1alpha1/namespaces/{os.environ['PYRITE_NAMESPACE']}/trainingruns?limit=1"
token = (ACCOUNT / "token").read_text()
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
try:
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=20, context=context):
        print("ok: the controller's account can list TrainingRuns")
except urllib.error.HTTPError as error:
    sys.exit(f"FAILED: the API server responded with {error.code}; {HINTS.get(error.code, error.reason)}")
except OSError as error:
    sys.exit(f"FAILED: cannot reach the API server ({error}); check networkPolicy.apiServer")
