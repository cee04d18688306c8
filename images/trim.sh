#!/bin/sh
# Remove files that neither stages nor the controller use from the virtual environment $1, and compile the rest.
set -eu
site=$(echo "$1"/lib/python3*/site-packages)
cd "$site"

# Test suites and development files: the image has no compiler. torch needs setuptools only to build extensions.
# Folders named `test` can contain commands, so only torch's is removed.
find . -type d -name tests -prune -exec rm -rf {} +
find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.pyi' \) -delete
rm -rf torch/test torch/include torch/share torch/bin/test_* torch/bin/protoc* pyarrow/include \
  setuptools setuptools-* _distutils_hack distutils-precedence.pth pkg_resources

# Arrow's Flight and S3 clients: Pyrite reads local files and uses boto3 for S3.
rm -f pyarrow/*_flight* pyarrow/flight.py pyarrow/*_s3*

# boto3 has definitions of about 400 services. Pyrite uses S3; the other ones here provide credentials.
for data in botocore/data boto3/data; do
  find "$data" -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -rf {} +
done

# The Kubernetes client includes an asyncio version, which the controller does not use.
rm -rf kubernetes/aio kubernetes/docs

# Compile now: in a pod the file system is read-only, so each start would compile again (10 s of CPU time).
# Of transformers' hundreds of models, compile only the architectures of embedding models. With unchecked-hash, Python
# does not compare bytecode with its source: the files do not change, but a builder may rewrite their timestamps.
find . -type d -name __pycache__ -prune -exec rm -rf {} +
models='auto|bert|roberta|xlm_roberta|distilbert|mpnet|modernbert|nomic_bert|qwen2|qwen3|gemma3|t5|mt5'
# Some packages contain templates with a .py suffix, which fail to compile.
"$1/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash \
  -x "/transformers/models/(?!($models)/)[^/]+/" "$site" >/dev/null || true
