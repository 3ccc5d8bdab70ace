#!/usr/bin/env bash
# Removes the cluster with its volumes, and the registry, as `ctlptl apply` created them. Removes nothing else.
set -o errexit -o nounset -o pipefail
unset CDPATH

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  command -v docker >/dev/null || { echo 'make down: there is no docker command here, so there is no cluster to remove' && return; }
  docker version >/dev/null 2>&1 || { echo "make down: Docker does not answer. Start it, then run make down again." >&2 && exit 1; }
  PATH=$(node --import tsx scripts/tools.ts ctlptl)
  ctlptl delete --ignore-not-found -f ctlptl.yaml
}

main "$@"
