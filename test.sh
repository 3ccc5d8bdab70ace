#!/usr/bin/env bash
# The payment test. Prints TAP to standard output. Exits with 0 if every check passes; otherwise it prints one line with
# the reason to standard error.
#
#   ./test.sh [URL [REPLICAS]]     URL of invoice-app, by default http://localhost:8081
# The test waits until REPLICAS processes of each service run the code in this folder. Without REPLICAS it waits until
# ten responses in a row come from that code. It then resets the invoices if that is allowed, pays, and pays again. It
# fails at once if that code does not start, and waits for another test of the same URL. Needs curl and jq.
#
# invoice-app's /version also reports payment-provider. Every other service of kustomize/base is queried on this
# machine, at the port in its deploy/service.yaml or in NAME_PORT, and only if URL is http on this machine. The prod
# overlay uses https and maps no port to these services; there Tilt waits for their rollouts.
set -o errexit -o nounset -o pipefail
unset CDPATH

url=${1:-http://localhost:8081}
while [[ $url == */ ]]; do url=${url%/}; done
readonly url replicas=${2:-0} wait_seconds=20 turn_seconds=90
lock=${url/127.0.0.1/localhost}
lock=.payloop/payment-test-${lock//[^A-Za-z0-9]/_}
# Ignores .curlrc, which may add text to a response. Uses no proxy for this machine.
curl=(curl --disable)
is_here=''
case ${url#*://} in
  localhost | localhost[:/]* | *.localhost | *.localhost[:/]* | 127.* | '[::1]'*) curl+=(--noproxy '*') is_here=yes ;;
esac
if command -v sha256sum >/dev/null; then sha256=(sha256sum); else sha256=(shasum -a 256); fi
count=0

ok() { count=$((count + 1)) && echo "ok $count - $*"; }
fail() { echo "not ok $((count + 1)) - $1" && printf 'payment test failed: %s: %s\n' "$1" "$(plain "$2")" >&2 && exit 1; }

# Prints one line without control characters, which a terminal would interpret: the text may come from another server.
plain() { printf '%s' "$1" | LC_ALL=C tr '\001-\037\177' ' ' | LC_ALL=C sed $'s/\302[\200-\237]/ /g'; }

# check NAME WHY COMMAND…: passes if the command does.
check() { if "${@:3}"; then ok "$1"; else fail "$1" "$2"; fi; }

# Sets `status` (000 without a response) and `body`.
request() {
  body=$("${curl[@]}" --silent --show-error --max-time 60 --write-out '\n%{http_code}' "$@" 2>&1 | tr -d '\000') || true
  status=${body##*$'\n'} body=${body%$'\n'*}
}

# Hashes the code of a service in this folder, as hashSource in libraries/chassis/src/source.ts does. A file that cannot
# be read counts by its name only; the service reports it.
hash_source() {
  local path
  local -a paths=()
  while IFS= read -r -d '' path; do paths+=("$path"); done < <(
    find -L libraries/chassis/src "services/$1/src" -name '.?*' -prune -o -type f -name '*.ts' ! -name '*.test.ts' -print0 2>/dev/null |
      LC_ALL=C sort -z
  )
  if ((${#paths[@]} > 0)); then
    printf '%s\0' "${paths[@]}"
    printf '%s\0' "${paths[@]}" | { xargs -0 "${sha256[@]}" 2>/dev/null || true; } |
      LC_ALL=C sed -n 's/^\\\{0,1\}\([0-9a-f]\{64\}\) .*/\1/p'
  fi | "${sha256[@]}" | cut -d ' ' -f 1
}

is_alive() { kill -0 "$1" 2>/dev/null || [[ -d /proc/$1 ]] || ps -p "$1" >/dev/null 2>&1; }

# Waits for another test of this URL: two tests at once would reset and pay each other's invoices.
take_turn() {
  local owner waited_for=''
  # In a read-only folder it takes no lock.
  mkdir -p "${lock%/*}" 2>/dev/null && [[ -w ${lock%/*} ]] || return 0
  trap '[[ $(readlink "$lock") != "$$" ]] || rm -f "$lock"' EXIT
  until ln -s "$$" "$lock" 2>/dev/null; do
    owner=$(readlink "$lock") || continue
    if ! is_alive "$owner"; then
      # Only one test removes the lock of a dead process, and none removes a lock that another test created since.
      if mv "$lock" "$lock.$$" 2>/dev/null; then
        [[ $(readlink "$lock.$$") == "$owner" ]] || mv "$lock.$$" "$lock"
        rm -f "$lock.$$"
      fi
      continue
    fi
    [[ $owner == "$waited_for" ]] || echo "# waiting for the payment test of process $owner"
    waited_for=$owner
    ((SECONDS < turn_seconds)) || fail 'no other payment test runs' \
      "process $owner has run one for $turn_seconds s; if it is not a payment test, remove $PWD/$lock"
    sleep 0.1
  done
  SECONDS=0
}

# Prints the deployed services, one per line.
list_services() { sed 's/#.*//' kustomize/base/kustomization.yaml | grep -o 'services/[^/]*/deploy' | cut -d / -f 2; }

# Sets `services` to the services to wait for, and `asked` and `addresses` to those that are queried directly.
find_services() {
  local names service variable port
  services=(invoice-app payment-provider) asked=(invoice-app) addresses=("$url")
  names=$(list_services) || fail "$1" 'kustomize/base/kustomization.yaml lists no service'
  for service in $names; do
    [[ " ${services[*]} " != *" $service "* ]] || continue
    if [[ $is_here != yes || $url != http://* ]]; then
      echo "# the code of $service is not checked: no port leads to it from here"
      continue
    fi
    variable=$(tr 'a-z-' 'A-Z_' <<<"$service")_PORT
    port=${!variable:-$(sed -n "s/^ *port: *[\"']\{0,1\}\([0-9]\{1,\}\).*/\1/p" "services/$service/deploy/service.yaml" 2>/dev/null)} || true
    [[ -n $port ]] || fail "$1" "services/$service/deploy/service.yaml has no port"
    services+=("$service") asked+=("$service") addresses+=("http://localhost:$port")
  done
}

# Prints the hash of each service's code in this folder, as JSON.
hash_services() {
  local service
  for service in "${services[@]}"; do printf '%s %s\n' "$service" "$(hash_source "$service")"; done |
    jq --raw-input --null-input --compact-output '[inputs | split(" ") | {(.[0]): .[1]}] | add'
}

# Prints `ready`, or the worst problem in `answers`. A line of `answers` has a service, its address and its response to
# /version; a service without a line has not responded. Only a service's last response is judged: the earlier ones came
# from this code.
judge() {
  jq --raw-input --null-input --raw-output --argjson codes "$codes" --argjson replicas "$replicas" '
    def verdict($service; $code):
      last as {$silence, $answer} | ([.[].answer.instance?] | unique | length) as $seen
      | ($answer | type == "object") as $isObject
      | if $isObject and ($answer.failed == $code or ($answer.error | tostring | contains($code)))
        then [0, "\($service) does not start with the code in this folder, see its log"]
        elif $isObject == false or $answer.source == null then [1, $silence // "no answer from \($service)"]
        elif $answer.source != $code then [1, "\($service) (\($answer.instance)) runs other code: \($answer.source)"]
        elif $replicas == 0 and length < 10 then [2, "only \(length) answers in a row from \($service), not 10"]
        elif $seen < $replicas then [2, "only \($seen) of \($service) answered, not \($replicas)"]
        else [3, "ready"] end;
    [inputs | capture("^(?<service>[^ ]*) (?<address>[^ ]*) (?<body>.*)$"; "s")
      | {service, silence: "\(.address)/version does not say which code \(.service) runs: \(.body)",
        answer: (.body | fromjson? // null)}
      | ., (select(.service == "invoice-app") | .answer | objects
          | {service: "payment-provider", silence: "invoice-app gets no answer from payment-provider", answer: .provider})
    ] as $all
    | [$codes | to_entries[] | . as {$key, $value} | [$all[] | select(.service == $key)] | verdict($key; $value)]
    | min_by(.[0])[1]' <<<"$answers" 2>&1 || true
}

wait_for_code() {
  local name='every replica runs the code in this folder' codes='' verdict='' answers='' index
  local -a services asked addresses
  find_services "$name"
  until [[ $verdict == ready ]]; do
    if [[ $verdict != only* ]]; then
      # Hashes again: the folder may have changed since.
      answers='' codes=$(hash_services)
    fi
    [[ $verdict != *' does not start '* ]] || fail "$name" "$verdict"
    ((SECONDS < wait_seconds)) || fail "$name" "after $wait_seconds s: $verdict"
    for index in "${!asked[@]}"; do
      request --max-time 5 "${addresses[index]}/version"
      if ((index == 0)) && [[ $status == 404 ]] && request "$url/invoices" && ((status == 200)); then
        ok "$name # SKIP no /version here" && return
      fi
      answers+="${asked[index]} ${addresses[index]} ${body//$'\n'/ }"$'\n'
    done
    verdict=$(judge)
    [[ $verdict == ready ]] || sleep 0.1 # leaves a starting service the CPU
  done
  ok "$name"
  jq --raw-output 'to_entries[] | "# \(.key) \(.value)"' <<<"$codes"
}

# Sets `invoices` to all invoices, and `unpaid` to the number of unpaid ones.
read_invoices() {
  request "$url/invoices"
  unpaid=$(jq 'map(select(.IsPaid | not)) | length' <<<"$body" 2>/dev/null) && invoices=$body && return
  fail 'the invoices can be read' "GET $url/invoices answered $status: $body"
}

# Pays until every invoice is paid: each attempt retries declined payments and unknown outcomes. Gives up when an
# attempt fails and pays nothing.
pay() {
  for _ in {1..30}; do
    request --request POST "$url/invoices/pay"
    answered="$status: $body"
    [[ $status == 200 || $(jq .paid <<<"$body" 2>/dev/null) =~ [1-9] ]] || break
    read_invoices
    [[ $answered != 200* || $unpaid != 0 ]] || break
  done
  check "$1" "POST $url/invoices/pay answered $answered" test "${answered%%:*}" = 200
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")"
  local status body answered invoices unpaid before amounts='map(del(.IsPaid))' skip='' no_reset=''
  echo 1..8
  take_turn
  wait_for_code
  # A pod that is newly ready may have no endpoint yet: its mapped port then closes connections without an answer.
  until request --request POST "$url/reset" && [[ $status != 50? && $status != 000 ]] || ((SECONDS >= wait_seconds)); do sleep 0.1; done
  [[ $status != 404 ]] || no_reset=' # SKIP not allowed here'
  check "the invoices are reset$no_reset" "POST $url/reset answered $status: $body" test "${status/404/200}" = 200
  read_invoices
  [[ -z $no_reset || $unpaid != 0 ]] || skip=' # SKIP nothing unpaid'
  check "there are unpaid invoices$skip" 'all are paid' test "$unpaid$skip" != 0
  before=$(jq "$amounts" <<<"$invoices")
  pay 'paying is answered with 200'
  check "every invoice is paid$skip" "$unpaid are not" test "$unpaid" = 0
  check 'the amounts are untouched' 'GET /invoices differs from before' test "$(jq "$amounts" <<<"$invoices")" = "$before"
  before=$invoices
  pay 'paying again is answered with 200'
  check 'paying again changes nothing' 'GET /invoices differs from before' test "$invoices" = "$before"
  [[ -n $no_reset ]] || echo '# the invoices were reset, and are paid now: reset them on the page, or with POST /reset'
}
main
