#!/usr/bin/env bash
# npm ci, with the npm that the user has, when the lockfile is not the one that was installed.
set -o errexit -o nounset -o pipefail

readonly installed=node_modules/.package-lock.installed.json

fail() { echo "make: $*" >&2 && exit 1; }

check_node() {
  local version
  command -v node >/dev/null || fail 'Node is missing: install Node 20 or newer, https://nodejs.org'
  version=$(node --version) || fail 'Node does not run: node --version fails'
  version=${version#v}
  ((${version%%.*} >= 20)) || fail "Node $version is too old: install Node 20 or newer, https://nodejs.org"
  command -v npm >/dev/null || fail 'npm is missing: it comes with Node, https://nodejs.org'
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  if cmp -s package-lock.json "$installed"; then return; fi
  check_node
  echo 'npm ci'
  # Whatever the user's settings leave out elsewhere (NODE_ENV, omit): all of it is needed here.
  npm ci --loglevel=error --include=dev --include=optional || fail 'npm ci failed, see above'
  [[ -x node_modules/.bin/node ]] ||
    fail "there is no Node 24 on npm for $(uname -sm): Linux and macOS on x64 and arm64 have one"
  cp package-lock.json "$installed"
}
main "$@"
