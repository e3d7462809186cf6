#!/bin/sh
# Build the image of the cluster tests: sh tests/cluster/toy/build.sh docker build -t percmae-toy:1
set -eu
here=$(dirname "$0")
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$here/Dockerfile" "$here/behave.py" "$context/"
cp "${PYTHON_PREFIX:-.venv}/bin/weed" "$context/weed"
"$@" "$context"
