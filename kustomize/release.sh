#!/usr/bin/env bash
# What a pipeline applies to production: prints the prod overlay with the digest of each image. The tag that the overlay
# names is the release. One that REGISTRY has already is taken as it is, since a release never changes; another is built
# from this folder and pushed.
#   REGISTRY=ghcr.io/acme kustomize/release.sh >release.yaml && kubectl apply --filename=release.yaml
set -o errexit -o nounset -o pipefail
unset CDPATH

say() { printf 'release: %s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 1
}

# The digest of a release in the registry; 1 where it is not there, 2 where nobody can tell.
digest_of() { # IMAGE
  local answer
  if answer=$(docker buildx imagetools inspect --format '{{json .Manifest.Digest}}' "$1" 2>&1); then
    printf '%s\n' "${answer//\"/}"
  elif [[ $answer == *'not found'* ]]; then
    return 1
  else
    say "the registry does not tell whether it has $1: $answer"
    return 2
  fi
}

build_and_push() { # SERVICE IMAGE
  say "building $2"
  # Else nobody could tell from a commit what the release is.
  [[ -z $(git status --porcelain) ]] || fail "$2 is not in the registry, and there are changes that are not committed: commit them first"
  # Without attestations, which would be a second image beside the one that is meant.
  docker buildx build --quiet --provenance=false --file=services/Dockerfile --target=prod --build-arg="SERVICE=$1" \
    --tag="$2" --label="org.opencontainers.image.revision=$(git rev-parse HEAD)" --load . >&2
  docker push --quiet "$2" >&2 || fail "$2 could not be pushed, see above: \`docker login\` first"
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local tool release service tag image digest
  [[ -n ${REGISTRY:-} ]] || fail 'REGISTRY must be where the images are pushed to, such as ghcr.io/acme'
  PATH=$(node --import tsx local/tools.ts kustomize)
  for tool in docker git; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
  done
  docker info >/dev/null 2>&1 || fail "Docker does not answer: start it (\`docker info\` tells more)"

  # Beside overlays/, as a kustomization refers to others by relative paths.
  folder=$(mktemp -d kustomize/release.XXXXXX)
  trap 'rm -r "$folder"' EXIT
  printf 'resources: [../overlays/prod]\nimages:\n' >"$folder/kustomization.yaml"
  for release in $(kustomize build kustomize/overlays/prod | sed -n 's|^ *image: payloop/||p'); do
    service=${release%%:*} tag=${release#*:}
    image=$REGISTRY/$release
    digest=$(digest_of "$image") || {
      [[ $? == 1 ]] || exit 1
      build_and_push "$service" "$image"
      digest=$(digest_of "$image") || fail "$image is not in the registry after it was pushed"
    }
    say "$image is $digest"
    printf '  - { name: payloop/%s, newName: %s, newTag: %s, digest: %s }\n' \
      "$service" "$REGISTRY/$service" "$tag" "$digest" >>"$folder/kustomization.yaml"
  done
  kustomize build "$folder"
}

main "$@"
