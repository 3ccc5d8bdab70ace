#!/usr/bin/env bash
# The scanners on what production would run, and the API server's own word on it: kube-score without a CRITICAL or a
# WARNING and nothing ignored, checkov without a failed check, `kubectl apply --dry-run=server` without a warning.
# An exception stands in the manifest, with its reason. checkov comes from PyPI into .payloop/, once.
#
# With `manifests` only the scanners run, which need no cluster; with `server` only the dry run.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly context=kind-payloop

fail() {
  printf 'scan: %s\n' "$*" >&2
  exit 1
}

# A Python that scripts/checkov-constraints.txt has versions for.
find_python() {
  local python
  for python in python3 python3.13 python3.12 python3.11; do
    case $("$python" --version 2>/dev/null) in
      'Python 3.11.'* | 'Python 3.12.'* | 'Python 3.13.'*)
        echo "$python"
        return
        ;;
    esac
  done
  return 1
}

install_checkov() {
  has_checkov && return
  echo "scan: installing checkov $checkov_version into $checkov_folder"
  local python
  python=$(find_python) || fail 'checkov needs Python 3.11, 3.12 or 3.13: install one from your system'"'"'s packages'
  rm -rf "$checkov_folder"
  "$python" -m venv "$checkov_folder" ||
    fail "$python lacks its venv module, which checkov needs: package python3-venv of your system"
  "$checkov_folder/bin/pip" install --quiet --disable-pip-version-check \
    --constraint scripts/checkov-constraints.txt "checkov==$checkov_version" || {
    rm -rf "$checkov_folder"
    fail "checkov $checkov_version could not be had from PyPI, see above"
  }
}

scan_manifests() {
  command -v kube-score >/dev/null || fail "kube-score is missing: \`mise install\` gets the tools of mise.toml"
  install_checkov
  local found
  ! grep -n 'kube-score/ignore' "$manifests" || fail 'kube-score is told to ignore something, see above'
  found=$(kube_score "$manifests")
  [[ -z $found ]] || fail $'kube-score finds\n'"$found"
  echo 'scan: kube-score finds nothing'

  found=$(checkov "$manifests" Dockerfile)
  # It must have looked: the exceptions are always there.
  [[ $found == *excepted:* ]] || fail "checkov did not read the manifests: $found"
  [[ $found != *failed:* ]] || fail $'checkov finds\n'"$found"
  printf 'scan: checkov finds nothing but what is\n%s\n' "$found"
}

ask_server() {
  kubectl --context="$context" apply --dry-run=server --warnings-as-errors --filename="$manifests" >/dev/null ||
    fail 'the API server does not take the manifests, or warns of them, see above'
  echo 'scan: the API server takes the manifests without a warning'
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  # shellcheck source=scripts/scanners.sh
  source scripts/scanners.sh
  folder=$(mktemp -d)
  trap 'rm -r "$folder"' EXIT
  manifests=$folder/prod.yaml
  kustomize build kustomize/overlays/prod >"$manifests"
  [[ ${1:-} == server ]] || scan_manifests
  [[ ${1:-} == manifests ]] || ask_server
}

main "$@"
