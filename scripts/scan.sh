#!/usr/bin/env bash
# Scans the manifests of production. Passes if kube-score finds nothing CRITICAL and no WARNING, with nothing ignored,
# checkov has no failed check, and `kubectl apply --dry-run=server` prints no warning. Exceptions are in the manifests,
# with their reasons. Installs checkov from PyPI into .payloop/, once.
#
# With `manifests` it only scans, which needs no cluster. With `server` it only does the dry run.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly context=kind-payloop

fail() {
  printf 'scan: %s\n' "$*" >&2
  exit 1
}

# Finds a Python that the versions in scripts/checkov-constraints.txt support.
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
    fail "$python lacks its venv module, which checkov needs: install python3-venv from your system's packages"
  "$checkov_folder/bin/pip" install --quiet --disable-pip-version-check \
    --constraint scripts/checkov-constraints.txt "checkov==$checkov_version" || {
    rm -rf "$checkov_folder"
    fail "checkov $checkov_version could not be installed from PyPI, see above"
  }
}

scan_manifests() {
  command -v kube-score >/dev/null || fail "kube-score is missing: \`mise install\` installs the tools of mise.toml"
  install_checkov
  local found
  ! grep -n 'kube-score/ignore' "$manifests" || fail 'the manifests tell kube-score to ignore something, see above'
  found=$(kube_score "$manifests")
  [[ -z $found ]] || fail $'kube-score finds\n'"$found"
  echo 'scan: kube-score finds nothing'

  found=$(checkov "$manifests" Dockerfile)
  # checkov always reports the exceptions if it has read the manifests.
  [[ $found == *excepted:* ]] || fail "checkov did not read the manifests: $found"
  [[ $found != *failed:* ]] || fail $'checkov finds\n'"$found"
  printf 'scan: checkov finds nothing but the exceptions:\n%s\n' "$found"
}

ask_server() {
  kubectl --context="$context" apply --dry-run=server --warnings-as-errors --filename="$manifests" >/dev/null ||
    fail 'the API server rejects the manifests or warns about them, see above'
  echo 'scan: the API server accepts the manifests without a warning'
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
