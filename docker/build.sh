#!/bin/sh
# Build the images: docker/build.sh [train|pipeline …], both by default. Prints their names, and
# writes what is in them (CycloneDX) to build/sbom/.
#
# Environment variables (all may be left out):
#   PLATFORM    cpu (default) or cuda
#   REGISTRY    what stands before the names, such as registry.example/team
#   VERSION     tag; default: the version in pyproject.toml
#   BUILDER     the command that takes a build's options; default: docker, podman or buildah,
#               whichever is here and answers
#   BUILD_ARGS  further options of the build, such as --build-arg BASE_IMAGE=… or --secret …
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "docker/build.sh: $*" >&2
    exit 2
}

find_builder() {
    if docker info >/dev/null 2>&1; then
        echo "docker build"
    elif command -v podman >/dev/null; then
        echo "podman build"
    elif command -v buildah >/dev/null; then
        echo "buildah build --layers"
    else
        fail "needs docker, podman or buildah; none is here, or docker's daemon does not answer"
    fi
}

version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
revision=unknown created=unknown source=
if git rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
    revision=$(git rev-parse HEAD)
    [ -z "$(git status --porcelain)" ] || revision=$revision-modified
    # The commit's time, not today's: the same source makes the same labels.
    created=$(git log -1 --format=%cI)
    # Only an address that others can use, and never with a password in it.
    source=$(git config --get remote.origin.url | sed -n 's|^https://\([^@/]*@\)\{0,1\}|https://|p')
fi
targets=${*:-train pipeline}
builder=${BUILDER:-$(find_builder)}

set -- --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --build-arg "CREATED=$created" --build-arg "SOURCE=${source:-unknown}"
case ${PLATFORM:-cpu} in
cpu) ;;
cuda)
    # torch from the usual index, and the compiler that torch.compile launches its kernels with.
    set -- "$@" --build-arg TORCH_INDEX_URL= --build-arg "TRAIN_APT=gcc libc6-dev"
    ;;
*) fail "PLATFORM=$PLATFORM: give cpu or cuda" ;;
esac

for target in $targets; do
    case $target in
    train | pipeline) ;;
    *) fail "no image $target: give train or pipeline" ;;
    esac
    name=${REGISTRY:+${REGISTRY%/}/}percmae-$target:$version
    # The builder and BUILD_ARGS are commands and options in one string: split at spaces.
    # shellcheck disable=SC2086
    $builder -f docker/Dockerfile --target "$target" -t "$name" "$@" ${BUILD_ARGS:-} . >&2
    # shellcheck disable=SC2086
    $builder -f docker/Dockerfile --target "$target-sbom" --output "type=local,dest=build/sbom" \
        "$@" ${BUILD_ARGS:-} . >&2
    echo "$name"
done
