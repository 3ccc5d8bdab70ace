#!/usr/bin/env bash
# Installs the packages if the lockfile has changed, with the npm on the user's PATH. Links .payloop/bin/node to the
# Node that runs everything.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly installed=node_modules/.package-lock.installed.json
readonly node=.payloop/bin/node

say() { echo "make: $*" >&2; }

fail() {
  say "$*"
  exit 1
}

# Node's versions are those that oxlint and rolldown support: on an older one npm silently leaves out their bindings.
check_host() {
  local tool version major minor
  [[ $PWD != *:* ]] || fail "the path of this folder has a colon, which PATH cannot hold: move it ($PWD)"
  for tool in curl jq; do
    command -v "$tool" >/dev/null || fail "$tool is missing: install it from your system's packages"
  done
  command -v node >/dev/null || fail 'Node is missing: install Node 24, https://nodejs.org'
  version=$(node --version) || fail 'Node does not run: node --version fails'
  [[ $version =~ ^v([0-9]+)\.([0-9]+)\. ]] || fail "node --version prints '$version', not a version: install Node 24, https://nodejs.org"
  major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
  ((major == 20 && minor >= 19 || major == 22 && minor >= 12 || major >= 23)) ||
    fail "Node ${version#v} is not one of ^20.19.0 || >=22.12.0: install Node 24, https://nodejs.org"
  command -v npm >/dev/null || fail 'npm is missing: it comes with Node, https://nodejs.org'
}

hint() {
  [[ $PWD != *%* ]] || echo ": npm before 10.9.8, and 11 before 11.6.2, cannot install below a folder with a % in its name"
}

# Creates the link here, as npm before 11.6.2 drops node_modules/.bin/node (https://github.com/npm/cli/issues/4362).
# Tries to run each Node: those from npm need glibc, which Alpine and NixOS do not have in its usual place.
link_node() {
  local candidate reason='npm has none for this system'
  mkdir -p "${node%/*}" || fail "${node%/*} cannot be created: payloop needs a folder that it can write to"
  for candidate in node_modules/node-*/bin/node; do
    [[ -f $candidate ]] || continue
    if reason=$("$candidate" --version 2>&1); then
      ln -sf "../../$candidate" "$node"
      return
    fi
  done
  reason=${reason##*$'\n'}
  candidate=$(command -v node)
  [[ $(node --version) =~ ^v(2[4-9]|[3-9][0-9])\. ]] ||
    fail "npm's Node 24 does not run on $(uname -sm) ($reason): install Node 24 and put it on the PATH"
  say "npm's Node 24 does not run on $(uname -sm) ($reason): using $candidate, $(node --version)"
  ln -sf "$candidate" "$node"
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  local start=$SECONDS
  check_host
  if ! cmp -s package-lock.json "$installed"; then
    say 'npm ci installs the packages: about 15 s, or a minute the first time'
    # All packages are needed, even if the user's settings (NODE_ENV, omit) leave some out. engine-strict would refuse
    # Node 20 because of packages that only ever run on npm's Node 24.
    npm ci --prefer-offline --loglevel=error --include=dev --include=optional --engine-strict=false ||
      fail "npm ci failed, see above$(hint)"
    cp package-lock.json "$installed"
    say "npm ci took $((SECONDS - start)) s"
  fi
  "$node" --version >/dev/null 2>&1 || link_node
}
main "$@"
