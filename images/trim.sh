#!/bin/sh
# Take out of the virtual environment $1 what no stage and no controller uses, and compile what is left.
set -eu
site=$(echo "$1"/lib/python3*/site-packages)
cd "$site"

# Suites of tests that packages carry, and what one needs to build against them: there is no compiler in the image.
# torch asks for setuptools to build extensions only. (Folders named `test` can be commands: torch's is named alone.)
find . -type d -name tests -prune -exec rm -rf {} +
find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.pyi' \) -delete
rm -rf torch/test torch/include torch/share torch/bin/test_* torch/bin/protoc* pyarrow/include \
  setuptools setuptools-* _distutils_hack distutils-precedence.pth pkg_resources

# Arrow's own clients for Flight and S3: Pyrite reads files, and reaches S3 by boto3.
rm -f pyarrow/*_flight* pyarrow/flight.py pyarrow/*_s3*

# boto3 describes some 400 services. We call S3; the others are how it gets credentials.
for data in botocore/data boto3/data; do
  find "$data" -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -rf {} +
done

# The Kubernetes client comes twice, the second time for asyncio, which the controller does not use.
rm -rf kubernetes/aio kubernetes/docs

# Compiled here, because nothing can be compiled into a read-only file system at each start of a pod (10 s of CPU time).
# Not the hundreds of models' code that transformers carries, but for those that embedding models are made of. Unchecked:
# the files do not change any more, and a builder that rewrites their times must not make Python throw all this away.
find . -type d -name __pycache__ -prune -exec rm -rf {} +
models='auto|bert|roberta|xlm_roberta|distilbert|mpnet|modernbert|nomic_bert|qwen2|qwen3|gemma3|t5|mt5'
# It fails for files that are no Python, which some packages carry as templates.
"$1/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash \
  -x "/transformers/models/(?!($models)/)[^/]+/" "$site" >/dev/null || true
