#!/usr/bin/env bash
# Removes what `ctlptl apply` made: the cluster, with its volumes, and the registry. Nothing else.
set -o errexit -o nounset -o pipefail
unset CDPATH

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  PATH=$(node --import tsx local/tools.ts ctlptl)
  ctlptl delete --ignore-not-found -f ctlptl.yaml
}

main "$@"
