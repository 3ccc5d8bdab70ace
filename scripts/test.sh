#!/usr/bin/env bash
# Runs the fast tests and, beside them, the static checks. Prints the output of the checks at the end.
set -o errexit -o nounset -o pipefail
unset CDPATH

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local log checks tests=0 checked=0
  log=$(mktemp)
  # shellcheck disable=SC2064  # Expands the name now: the variable is local.
  trap "rm -f '$log'" EXIT
  scripts/check.sh >"$log" 2>&1 &
  checks=$!
  vitest run --no-isolate --experimental.preParse --tags-filter='!slow' || tests=$?
  wait "$checks" || checked=$?
  cat "$log"
  ((tests == 0 && checked == 0))
}
main "$@"
