#!/usr/bin/env bash
# Runs the services, in a cluster under Tilt or as local processes. The arguments are Tilt's. Local processes support
# --debug, and --overlay= with dev or an overlay that only sets variables.
set -o errexit -o nounset -o pipefail
unset CDPATH

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local decision
  decision=$(node --import tsx local/mode.ts "$@")
  PATH=${decision#*$'\n'}
  case ${decision%%$'\n'*} in
    cluster)
      ctlptl apply -f ctlptl.yaml
      exec tilt up "$@"
      ;;
    local) exec node --import tsx local/up.ts "$@" ;;
  esac
}
main "$@"
