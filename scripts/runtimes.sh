#!/usr/bin/env bash
# Installs the runtimes that check exports, besides those in Pyrite's own environment, in the folder PYRITE_RUNTIMES
# (default: .venv-runtimes): python/ with fastembed and llama-cpp-python, and node/ with transformers.js.
#
#   bash scripts/runtimes.sh [fastembed] [llama.cpp] [transformers.js]     (default: all)
#
# llama-cpp-python is built from its sources, for this machine's processor: it needs cmake and a C++ compiler, and takes
# seven minutes of processor time. The rest takes under a minute. Together they need 0.8 GB.
set -euo pipefail

folder=${PYRITE_RUNTIMES:-.venv-runtimes}
python=$folder/python/bin/python
wanted=${*:-fastembed llama.cpp transformers.js}
mkdir -p "$folder/node"
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder/python"
"$python" -c 'import tokenizers' 2>/dev/null ||
  "$python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3 numpy

if [[ " $wanted " == *" fastembed "* ]] && ! "$python" -c 'import fastembed' 2>/dev/null; then
  echo "installing fastembed"
  "$python" -m pip install --quiet --disable-pip-version-check fastembed==0.9.1 tokenizers==0.23.3
fi

if [[ " $wanted " == *" llama.cpp "* ]] && ! "$python" -c 'import llama_cpp' 2>/dev/null; then
  if command -v cmake >/dev/null && command -v c++ >/dev/null; then
    echo "building llama-cpp-python: some minutes"
    CMAKE_ARGS="-DGGML_NATIVE=ON" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
      "$python" -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36
  else
    echo "llama-cpp-python is skipped: it needs cmake and a C++ compiler (Debian: apt-get install cmake g++)" >&2
  fi
fi

if [[ " $wanted " == *" transformers.js "* && ! -d "$folder/node/node_modules/@huggingface/transformers" ]]; then
  if command -v npm >/dev/null; then
    echo "installing transformers.js"
    # Without the variable, onnxruntime-node downloads libraries for CUDA.
    ONNXRUNTIME_NODE_INSTALL=skip \
      npm install --silent --no-save --prefix "$folder/node" @huggingface/transformers@4.3.1
  else
    echo "transformers.js is skipped: it needs Node 20 or newer with npm" >&2
  fi
fi

echo "ready: $folder"
