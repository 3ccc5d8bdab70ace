#!/usr/bin/env bash
# Removes what `ctlptl apply` made: the cluster, with its volumes, and the registry. Nothing else.
set -o errexit -o nounset -o pipefail

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  PATH=$(node --import tsx local/tools.ts ctlptl)
  command -v ctlptl >/dev/null || { echo 'down: ctlptl is missing, and mise could not install it' >&2 && exit 1; }
  ctlptl delete --ignore-not-found -f ctlptl.yaml
}

main "$@"
