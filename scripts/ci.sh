#!/usr/bin/env bash
# What a pipeline runs, as `make ci`: makes the cluster, runs `tilt ci` and then the tests of tests/cluster in it,
# and tears it down. OVERLAY is dev or prod. On failure it says what is wrong with which pod. With PROVE=yes it runs
# the long tests that tests/cluster/prove/ has for the overlay.
#
# A cluster that was there before stays, with its volumes and Secrets; `tilt down` takes out what `tilt ci`
# put in. It refuses to start while a `tilt up` runs, which would fight over the same pods: it asks Tilt's API
# at its usual port for a session.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly context=kind-payloop
overlay=${OVERLAY:-dev}
made_cluster=''

say() { printf 'ci: %s\n' "$*"; }

fail() {
  say "$*" >&2
  exit 1
}

kube() { kubectl --context="$context" "$@"; }

check_machine() {
  local tool
  local -a tools=(kubectl kind ctlptl tilt kustomize)
  [[ $overlay != prod ]] || tools+=(kube-score)
  command -v node >/dev/null || fail "Node's packages are not installed: \`make ci\` does it"
  PATH=$(node --import tsx scripts/tools.ts "${tools[@]}")
  tools=(docker curl jq)
  [[ $overlay != prod ]] || tools+=(openssl)
  for tool in "${tools[@]}"; do
    command -v "$tool" >/dev/null || fail "$tool is missing: it is a package of your system"
  done
  docker info >/dev/null 2>&1 || fail "Docker does not answer: start it (\`docker info\` tells more)"
  [[ -f kustomize/overlays/$overlay/kustomization.yaml ]] || fail "OVERLAY must be a folder of kustomize/overlays, not $overlay"
  ! tilt get session >/dev/null 2>&1 || fail "Tilt is running: end \`tilt up\` first"
}

# Runs a command and says how long it took.
timed() {
  local -r start=$SECONDS
  local code=0
  say "$*"
  "$@" || code=$?
  say "$1 ${2:-} took $((SECONDS - start)) s"
  return "$code"
}

# The pods that are not ready: namespace, name, and what each container waits for or ended with.
# shellcheck disable=SC2016  # $why is jq's.
unready='
  def reason:
    if .state.waiting then "\(.state.waiting.reason) \(.state.waiting.message // "")"
    elif .state.terminated then "ended with exit code \(.state.terminated.exitCode) (\(.state.terminated.reason))"
    else "runs, but is not ready" end;
  .items[]
  | select(.metadata.deletionTimestamp == null)
  | select(any(.status.conditions[]?; .type == "Ready" and .status == "True") | not)
  | [(.status.conditions[]? | select(.type == "PodScheduled" and .status == "False") | .message),
     ((.status.initContainerStatuses[]?, .status.containerStatuses[]?) | select(.ready | not)
      | "\(.name): \(reason), \(.restartCount) restarts")] as $why
  | [.metadata.namespace, .metadata.name, ($why | join("; "))] | @tsv'

# The long tests of prod drain a node, so a cluster that is made for them has a second one.
two_nodes() {
  cat ctlptl.yaml
  printf '    - role: worker\n      %s\n' "$(sed -n 's/^ *\(image: .*\)/\1/p' ctlptl.yaml)"
}

make_cluster() {
  if [[ -n ${PROVE:-} && $overlay == prod && -n $made_cluster ]]; then
    timed ctlptl apply -f - < <(two_nodes)
    # Else all pods would be on the worker, and have nowhere to go.
    kube taint nodes --selector=node-role.kubernetes.io/control-plane node-role.kubernetes.io/control-plane-
  else
    timed ctlptl apply -f ctlptl.yaml
  fi
}

report() {
  say 'pods that are not ready, their events and last log lines:'
  local namespace pod reason
  kube get pods --all-namespaces --selector=app.kubernetes.io/part-of=payloop --output=json | jq --raw-output "$unready" |
    while IFS=$'\t' read -r namespace pod reason; do
      printf '\n--- %s/%s: %s\n' "$namespace" "$pod" "$reason"
      kube get events --namespace="$namespace" --field-selector="involvedObject.name=$pod" --no-headers \
        --sort-by=.lastTimestamp --output=custom-columns='T:.type,R:.reason,M:.message' | tail -n 10
      kube logs --namespace="$namespace" "$pod" --all-containers --prefix --tail=15 || true
      kube logs --namespace="$namespace" "$pod" --all-containers --prefix --tail=15 --previous 2>/dev/null || true
    done
  # What keeps a pod from being made at all is said of its owner.
  printf '\n--- the last warnings that are not about pods\n'
  kube get events --all-namespaces --field-selector='type=Warning,involvedObject.kind!=Pod,involvedObject.kind!=Node' \
    --no-headers --sort-by=.lastTimestamp --output=custom-columns='K:.involvedObject.kind,N:.involvedObject.name,M:.message' |
    tail -n 3
}

tear_down() {
  if [[ -n $made_cluster ]]; then
    scripts/down.sh
  else
    say 'the cluster was there before and stays'
    tilt down -- --overlay="$overlay"
  fi
}

finish() {
  local code=$?
  trap - EXIT
  ((code == 0)) || report || true
  timed tear_down || code=1
  say "exit code $code, after $SECONDS s"
  exit "$code"
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  export PATH=$PWD/.payloop/bin:$PWD/node_modules/.bin:$PATH OVERLAY=$overlay
  check_machine
  local clusters
  clusters=$(kind get clusters 2>&1) || fail "kind does not tell which clusters there are: $clusters"
  [[ $'\n'$clusters$'\n' == *$'\n'"${context#kind-}"$'\n'* ]] || made_cluster=yes
  trap finish EXIT
  trap 'exit 130' INT TERM
  local scan=''
  if [[ $overlay == prod && -z ${PROVE:-} ]]; then
    # The scanners need no cluster: they run while it starts.
    timed scripts/scan.sh manifests &
    scan=$!
  fi
  make_cluster
  timed tilt ci -- --overlay="$overlay"
  if [[ -n $scan ]]; then
    wait "$scan"
    timed scripts/scan.sh server
  fi
  timed vitest run --config=tests/cluster/vitest.config.ts
}

main "$@"
