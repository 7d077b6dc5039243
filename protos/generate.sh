#!/bin/sh
# Writes the committed stubs from the protos. CI runs it with an output folder and compares.
# Usage: protos/generate.sh [OUTPUT_DIR]    (default: the repository root)
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-python}" -m grpc_tools.protoc -I protos --python_out="${1:-.}" --pyi_out="${1:-.}" --grpc_python_out="${1:-.}" \
  specserve/v1/generation.proto specserve/worker/v1/worker.proto
