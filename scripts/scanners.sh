# Functions that print the scanners' findings, one per line. scan.sh fails on any finding; review.sh compares findings.
# shellcheck shell=bash

readonly checkov_version=3.3.30
readonly checkov_folder=.payloop/checkov-$checkov_version

# kube_score FILE: prints findings that are CRITICAL or a WARNING. Omits optional checks, which are reported as skipped.
kube_score() {
  # Ignores its exit code, which only repeats that there are findings.
  { kube-score score --output-format=ci "$1" || true; } | grep -E '^\[(CRITICAL|WARNING)\]' | sort || true
}

has_checkov() { [[ -x $checkov_folder/bin/checkov ]]; }

# checkov MANIFESTS DOCKERFILE: prints the failed checks and the exceptions.
checkov() {
  local folder
  folder=$(mktemp -d)
  cp "$1" "$folder/manifests.yaml"
  cp "$2" "$folder/Dockerfile"
  "$checkov_folder/bin/checkov" --directory "$folder" --framework kubernetes dockerfile --skip-download \
    --soft-fail --output=json |
    jq --raw-output '[.] | flatten | .[].results // empty
      | (.failed_checks[]? | "failed: \(.check_id) \(.resource): \(.check_name)"),
        (.skipped_checks[]? | "excepted: \(.check_id) \(.resource): \(.check_result.suppress_comment)")' | sort -u
  rm -r "$folder"
}
