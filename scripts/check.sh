#!/usr/bin/env bash
# Runs the checks of `make test` other than the tests. Skips a check if its tool is missing, and prints that. With
# STRICT set, as in the pipeline, it fails instead.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly actionlint_version=v1.7.12

run() {
  echo "$*"
  "$@"
}

skip() { # CHECK REASON
  echo "$1: skipped, $2"
  [[ -z ${STRICT:-} ]] || exit 1
}

check_scripts() {
  command -v shellcheck >/dev/null || { skip shellcheck 'not installed' && return; }
  local script
  local -a scripts=()
  while IFS= read -r script; do scripts+=("$script"); done < <(
    find . -name node_modules -prune -o -name '.?*' ! -name .ci -prune -o -type f \( -name '*.sh' -o -path './.ci/run' \) -print
  )
  echo "shellcheck, ${#scripts[@]} scripts"
  shellcheck "${scripts[@]}"
}

# Checks the pipeline. If actionlint is missing and Go is installed, gets actionlint from Go's modules.
check_pipeline() {
  local -r tools=.payloop/bin
  local actionlint
  if ! actionlint=$(command -v actionlint); then
    command -v go >/dev/null || { skip actionlint 'neither it nor Go is installed' && return; }
    actionlint=$tools/actionlint
    [[ -x $actionlint ]] || GOBIN=$PWD/$tools go install "github.com/rhysd/actionlint/cmd/actionlint@$actionlint_version" ||
      { skip actionlint 'it could not be installed, see above' && return; }
  fi
  echo actionlint
  "$actionlint"
}

check_overlays() {
  command -v kustomize >/dev/null || { skip kustomize 'not installed' && return; }
  local folder
  for folder in k8s k8s/local/edge kustomize/overlays/*/; do
    run kustomize build "${folder%/}" --output=/dev/null
  done
}

# Builds each overlay with each component that it does not use itself, and with all of them.
check_combinations() {
  command -v kustomize >/dev/null || return 0
  local folder overlay component
  # Hidden: otherwise a running `make up` would report it as a change.
  folder=$(mktemp -d kustomize/.combination.XXXXXX)
  # shellcheck disable=SC2064  # Expands the folder's name now.
  trap "rm -r '$folder'" EXIT
  for overlay in kustomize/overlays/*/; do
    local -a off=()
    for component in kustomize/components/*/; do
      component=$(basename "$component")
      turns_on "$overlay" "$component" || off+=("$component")
    done
    ((${#off[@]} > 0)) || continue
    for component in "${off[@]}"; do build_with "$(basename "$overlay")" "$component"; done
    ((${#off[@]} == 1)) || build_with "$(basename "$overlay")" "${off[@]}"
  done
}

build_with() { # OVERLAY COMPONENT…
  echo "kustomize build kustomize/overlays/$1 with ${*:2}"
  printf 'resources: [../overlays/%s]\ncomponents:\n' "$1" >"$folder/kustomization.yaml"
  printf -- '  - ../components/%s\n' "${@:2}" >>"$folder/kustomization.yaml"
  kustomize build "$folder" >/dev/null
}

# Tells whether an overlay, or one that it builds on, uses a component.
turns_on() { # OVERLAY COMPONENT
  ! grep -q "components/$2\$" "$1/kustomization.yaml" || return 0
  local below
  below=$(sed -n 's|^  - \(\.\./[a-z-]*\)$|\1|p' "$1/kustomization.yaml")
  [[ -n $below ]] && turns_on "$1/$below" "$2"
}

check_alerts() {
  command -v promtool >/dev/null || { skip promtool 'not installed' && return; }
  run promtool check rules k8s/monitoring/alerts.yaml
  run promtool test rules k8s/monitoring/alerts.test.yaml
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  run tsc --noEmit
  run tsc --noEmit --project services/invoice-app/src/page
  run oxlint --type-aware --quiet
  run prettier --check --log-level=warn --cache --cache-strategy=content --cache-location=.payloop/prettier-cache .
  check_scripts
  check_pipeline
  check_overlays
  check_combinations
  check_alerts
}
main "$@"
