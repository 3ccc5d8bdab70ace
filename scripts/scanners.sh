# What the scanners find, a line each: sourced by scripts/scan.sh, which wants none, and by review.sh, which compares.
# shellcheck shell=bash

readonly checkov_version=3.3.30
readonly checkov_folder=.payloop/checkov-$checkov_version

# kube_score FILE: what is CRITICAL or a WARNING. Optional checks that are off come as skipped, and are left out.
kube_score() {
  # Its exit code tells of findings, as its lines do.
  { kube-score score --output-format=ci "$1" || true; } | grep -E '^\[(CRITICAL|WARNING)\]' | sort || true
}

has_checkov() { [[ -x $checkov_folder/bin/checkov ]]; }

# checkov MANIFESTS DOCKERFILE: what failed, and what is excepted.
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
