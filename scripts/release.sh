#!/usr/bin/env bash
# Prints the manifests that a pipeline applies to production: the prod overlay with the digest of each image. The tag in
# the overlay is the release. A release that REGISTRY has is reused, since a release never changes; one that it lacks is
# built from this folder and pushed.
#   REGISTRY=ghcr.io/acme scripts/release.sh >release.yaml && kubectl apply --filename=release.yaml
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly absent=3 denied=4 unknown=5

say() { printf 'release: %s\n' "$*" >&2; }

fail() {
  say "$*"
  exit 1
}

# Prints the digest that the registry has for an image. Returns $absent if the registry has none, $denied if it does not
# let this login read, and $unknown, with a message, for every other answer.
digest_of() { # IMAGE
  local digest error
  if digest=$(docker buildx imagetools inspect --format '{{json .Manifest.Digest}}' "$1" 2>"$folder/error") &&
    [[ $digest =~ ^\"(sha256:[0-9a-f]{64})\"$ ]]; then
    printf '%s\n' "${BASH_REMATCH[1]}"
    return
  fi
  error=$(<"$folder/error")
  case $error in
    # With the image's name: "not found" alone is also printed for commands and hosts.
    *"$1: not found") return "$absent" ;;
    *'401 Unauthorized'* | *'403 Forbidden'* | *denied* | *'authorization failed'* | *'authentication required'*) return "$denied" ;;
  esac
  say "the registry does not tell whether it has $1: ${error:-$digest}"
  return "$unknown"
}

# Builds an image and pushes it as the release, unless the registry turns out to have the release. Sets `digest`.
#
# The first answer alone does not show that a release is absent. Some registries deny reading a repository that does not
# exist (ghcr.io, Docker Hub), and others answer "not found" to a login that may not read. So the build is pushed
# under the tag of its commit first, which creates the repository and overwrites no release. A login that reads this tag
# back may read the repository, and only then does "not found" mean that the release is absent.
publish() { # SERVICE IMAGE WHY
  local changes revision code=0
  # A release has to be traceable to a commit.
  changes=$(git status --porcelain)
  [[ -z $changes ]] || fail "$2 $3, and there are changes that are not committed: commit them first"
  revision=$(git rev-parse HEAD)
  local -r candidate=${2%:*}:commit-$revision
  say "building $2"
  # Without attestations, which would add a second image.
  docker buildx build --quiet --provenance=false --file=Dockerfile --target=prod --build-arg="SERVICE=$1" \
    --tag="$candidate" --label="org.opencontainers.image.revision=$revision" --load . >&2
  docker push --quiet "$candidate" >&2 ||
    fail "$candidate could not be pushed, see above: log in with \`docker login\`, as a user who may push there"
  digest_of "$candidate" >/dev/null ||
    fail "this login pushed $candidate but cannot read it, so it cannot tell whether $2 exists: let it read the repository"
  digest=$(digest_of "$2") || code=$?
  case $code in
    0) say "$2 is in the registry already: its image stays" ;;
    "$absent")
      docker tag "$candidate" "$2"
      docker push --quiet "$2" >&2 || fail "$2 could not be pushed, see above"
      digest=$(digest_of "$2") || fail "$2 cannot be read from the registry after it was pushed"
      ;;
    *) fail "the registry shows $candidate to this login, but does not tell whether it has $2" ;;
  esac
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local tool releases release service tag image digest code
  [[ -n ${REGISTRY:-} ]] || fail 'REGISTRY must be the place to push the images to, such as ghcr.io/acme'
  PATH=$(node --import tsx scripts/tools.ts kustomize)
  for tool in docker git; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
  done
  docker info >/dev/null 2>&1 || fail "Docker does not answer. Start it; \`docker info\` prints the reason."

  # Beside overlays/, since a kustomization refers to others by relative paths.
  folder=$(mktemp -d kustomize/release.XXXXXX)
  trap 'rm -r "$folder"' EXIT
  printf 'resources: [../overlays/prod]\nimages:\n' >"$folder/kustomization.yaml"
  releases=$(kustomize build kustomize/overlays/prod | sed -n 's|^ *image: payloop/||p')
  [[ -n $releases ]] || fail 'kustomize/overlays/prod has no image payloop/…: nothing to release'
  for release in $releases; do
    service=${release%%:*} tag=${release#*:}
    image=$REGISTRY/$release
    code=0
    digest=$(digest_of "$image") || code=$?
    case $code in
      0) ;;
      "$absent") publish "$service" "$image" 'is not in the registry' ;;
      "$denied") publish "$service" "$image" 'cannot be read with this login' ;;
      *) exit 1 ;;
    esac
    say "$image is $digest"
    printf '  - { name: payloop/%s, newName: %s, newTag: %s, digest: %s }\n' \
      "$service" "$REGISTRY/$service" "$tag" "$digest" >>"$folder/kustomization.yaml"
  done
  kustomize build "$folder"
}

main "$@"
