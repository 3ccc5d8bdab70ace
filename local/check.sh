#!/usr/bin/env bash
# What `make test` checks besides the tests themselves; where an outside tool is missing it says so and goes on.
set -o errexit -o nounset -o pipefail

run() {
  echo "$*"
  "$@"
}

check_scripts() {
  command -v shellcheck >/dev/null || { echo 'shellcheck: skipped, not installed' && return; }
  local script
  local -a scripts=()
  while IFS= read -r script; do scripts+=("$script"); done < <(
    find . -name node_modules -prune -o -name '.?*' ! -name .ci -prune -o -type f \( -name '*.sh' -o -path './.ci/run' \) -print
  )
  echo "shellcheck, ${#scripts[@]} scripts"
  shellcheck "${scripts[@]}"
}

check_overlays() {
  command -v kustomize >/dev/null || { echo 'kustomize: skipped, not installed' && return; }
  local overlay
  for overlay in k8s kustomize/overlays/*/; do
    echo "kustomize build ${overlay%/}"
    kustomize build "$overlay" >/dev/null
  done
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  run tsc --noEmit
  run oxlint --type-aware --quiet
  run prettier --check --log-level=warn .
  check_scripts
  check_overlays
}
main "$@"
