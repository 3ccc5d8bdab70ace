#!/usr/bin/env bash
# Prints the uncompressed size of a service's prod image and of its parts: `make bench-image`, SERVICE=invoice-app.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly service=${SERVICE:-invoice-app}
container=''

clean_up() { [[ -z $container ]] || docker rm "$container" >/dev/null; }

# Prints bytes: all, Node, the service's bundle, its source map, the rest (the system's libraries, certificates).
# GNU tar lists owner/group in one column and the date in two. BSD tar lists the link count first, like ls.
sizes() {
  docker export "$container" | LC_ALL=C tar --list --verbose --file=- | awk '
    { if ($2 ~ /\//) { size = $3; path = $6 } else { size = $5; path = $9 } all += size }
    path ~ /^nodejs\// { node += size; next }
    path ~ /^app\/.*\.map$/ { map += size; next }
    path ~ /^app\// { bundle += size; next }
    { rest += size }
    END { printf "%d %d %d %d %d\n", all, node, bundle, map, rest }'
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  trap clean_up EXIT
  local image all node bundle map rest
  image=$(docker build --quiet --file=Dockerfile --target=prod --build-arg=SERVICE="$service" .)
  container=$(docker create "$image")
  read -r all node bundle map rest < <(sizes)
  printf '| prod image of %s | MB |\n| --- | ---: |\n' "$service"
  local name
  for name in all node bundle map rest; do printf '| %s | %s |\n' "$name" "$(megabytes "${!name}")"; done
  printf '{"service":"%s","bytes":%d,"node":%d,"bundle":%d,"map":%d,"rest":%d}\n' \
    "$service" "$all" "$node" "$bundle" "$map" "$rest"
}

megabytes() { awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1e6 }'; }

main "$@"
