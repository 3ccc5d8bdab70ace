#!/usr/bin/env bash
# Shows a reviewer how a change affects production: compares the rendered prod overlay of this folder with that of BASE,
# object by object, and prints new and resolved findings of the scanners. Needs git and kustomize; names a scanner that
# is missing. Prints nothing if nothing changed.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly base=${BASE:-main}

fail() {
  printf 'review: %s\n' "$*" >&2
  exit 1
}

# Writes each object of a stream to a separate file, named by kind, namespace and name.
split() { # FOLDER
  mkdir "$1"
  awk -v folder="$1" '
    function store() {
      if (kind != "") printf "%s", text > (folder "/" kind " " namespace name)
      kind = name = namespace = text = ""
    }
    /^---$/ { store(); next }
    /^kind: / { kind = $2 }
    /^[^ ]/ { in_metadata = ($1 == "metadata:") }
    in_metadata && /^  name: / { name = $2 }
    in_metadata && /^  namespace: / { namespace = $2 "." }
    { text = text $0 "\n" }
    END { store() }'
}

compare_objects() {
  local object what
  { ls "$work/old"; ls "$work/new"; } | sort -u | while IFS= read -r object; do
    local old=$work/old/$object new=$work/new/$object
    what='changed'
    if [[ ! -f $old ]]; then what='new' old=/dev/null; fi
    if [[ ! -f $new ]]; then what='gone' new=/dev/null; fi
    cmp -s "$old" "$new" && continue
    printf '== %s: %s\n' "$what" "$object"
    # Removes git's header, up to the names of the two files. git exits with 1 if there is a difference.
    { git --no-pager diff --no-index --no-color "$old" "$new" || true; } | sed '1,/^+++ /d'
  done
}

# Prints findings that are new since the base with a +, and resolved ones with a -.
compare_findings() { # SCANNER FUNCTION
  "$2" "$work/old.yaml" "$old_dockerfile" >"$work/old.findings"
  "$2" "$work/new.yaml" Dockerfile >"$work/new.findings"
  local found
  found=$({ git --no-pager diff --no-index --no-color --unified=0 "$work/old.findings" "$work/new.findings" || true; } |
    sed '1,/^+++ /d; /^@@/d')
  [[ -z $found ]] || printf '== findings of %s\n%s\n' "$1" "$found"
}

render() { # ROOT; prints nothing if there is no prod overlay
  [[ ! -d $1/kustomize/overlays/prod ]] || kustomize build "$1/kustomize/overlays/prod"
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  # shellcheck source=scripts/scanners.sh
  source scripts/scanners.sh
  command -v kustomize >/dev/null || fail "kustomize is missing: \`mise install\` installs the tools of mise.toml"
  git rev-parse --quiet --verify "$base^{commit}" >/dev/null || fail "BASE must be a revision that git knows, not $base"
  work=$(mktemp -d)
  trap 'rm -r "$work"' EXIT

  mkdir "$work/base"
  git archive "$base" | tar -x -C "$work/base"
  old_dockerfile=$work/base/Dockerfile
  # Its path in older revisions.
  [[ -f $old_dockerfile ]] || old_dockerfile=$work/base/services/Dockerfile
  render "$work/base" >"$work/old.yaml"
  render . >"$work/new.yaml"
  split "$work/old" <"$work/old.yaml"
  split "$work/new" <"$work/new.yaml"
  compare_objects
  if cmp -s "$work/old.yaml" "$work/new.yaml" && cmp -s "$old_dockerfile" Dockerfile; then return; fi
  if command -v kube-score >/dev/null; then compare_findings kube-score kube_score; else echo '== kube-score: not installed'; fi
  if has_checkov; then compare_findings checkov checkov; else echo "== checkov: not installed, \`make ci OVERLAY=prod\` installs it"; fi
}

main "$@"
