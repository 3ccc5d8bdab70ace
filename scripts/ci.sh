#!/usr/bin/env bash
# Runs the tests in a cluster, for `make ci` and pipelines: creates the cluster, runs `tilt ci` and the tests of
# tests/cluster, and removes the cluster. OVERLAY is dev or prod. On failure it prints why pods are not ready.
#
# With TESTS=loop it runs the tests in tests/cluster/loop instead, which start `tilt up` themselves. With TESTS=prove it
# runs the long tests in tests/cluster/prove/OVERLAY, and OVERLAY is flaky or prod.
#
# A cluster that already existed stays, with its volumes and Secrets; `tilt down` removes the objects of Tilt. The
# script refuses to start while `tilt up` runs, since both would change the same pods. It queries Tilt's API for a
# session at its usual port.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly context=kind-payloop
overlay=${OVERLAY:-dev}
tests=${TESTS:-quick}
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
  command -v node >/dev/null || fail "node is not on the PATH: run \`make ci\`, which puts it there"
  PATH=$(node --import tsx scripts/tools.ts "${tools[@]}")
  tools=(docker curl jq)
  [[ $overlay != prod ]] || tools+=(openssl)
  for tool in "${tools[@]}"; do
    command -v "$tool" >/dev/null || fail "$tool is missing: install it from your system's packages"
  done
  docker info >/dev/null 2>&1 || fail "Docker does not answer. Start it; \`docker info\` prints the reason."
  [[ -f kustomize/overlays/$overlay/kustomization.yaml ]] || fail "OVERLAY must be a folder of kustomize/overlays, not $overlay"
  case $tests in
    quick | prove) ;;
    loop) [[ $overlay == dev ]] || fail "the tests of the inner loop need OVERLAY=dev, not $overlay" ;;
    *) fail "TESTS must be quick, loop or prove, not $tests" ;;
  esac
  ! tilt get session >/dev/null 2>&1 || fail "Tilt is running: stop \`tilt up\` first"
}

# Runs a command and prints how long it took.
timed() {
  local -r start=$SECONDS
  local code=0
  say "$*"
  "$@" || code=$?
  say "$1 ${2:-} took $((SECONDS - start)) s"
  return "$code"
}

# Lists the pods that are not ready: namespace, name, and why each container waits or exited.
# shellcheck disable=SC2016  # $why is jq's.
unready='
  def reason:
    if .state.waiting then "\(.state.waiting.reason) \(.state.waiting.message // "")"
    elif .state.terminated then "exited with code \(.state.terminated.exitCode) (\(.state.terminated.reason))"
    else "runs, but is not ready" end;
  .items[]
  | select(.metadata.deletionTimestamp == null)
  | select(any(.status.conditions[]?; .type == "Ready" and .status == "True") | not)
  | [(.status.conditions[]? | select(.type == "PodScheduled" and .status == "False") | .message),
     ((.status.initContainerStatuses[]?, .status.containerStatuses[]?) | select(.ready | not)
      | "\(.name): \(reason), \(.restartCount) restarts")] as $why
  | [.metadata.namespace, .metadata.name, ($why | join("; "))] | @tsv'

# The long tests of prod drain a node, so a cluster that is created for them has two.
two_nodes() {
  cat ctlptl.yaml
  printf '    - role: worker\n      %s\n' "$(sed -n 's/^ *\(image: .*\)/\1/p' ctlptl.yaml)"
}

make_cluster() {
  if [[ $tests == prove && $overlay == prod && -n $made_cluster ]]; then
    timed ctlptl apply -f - < <(two_nodes)
    # With the taint all pods would run on the worker, and could not move when it is drained.
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
  # If a pod cannot be created at all, the event is about its owner.
  printf '\n--- the last warnings that are not about pods\n'
  kube get events --all-namespaces --field-selector='type=Warning,involvedObject.kind!=Pod,involvedObject.kind!=Node' \
    --no-headers --sort-by=.lastTimestamp --output=custom-columns='K:.involvedObject.kind,N:.involvedObject.name,M:.message' |
    tail -n 3
}

tear_down() {
  if [[ -n $made_cluster ]]; then
    scripts/down.sh
  else
    say 'the cluster already existed and stays'
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
  export PATH=$PWD/.payloop/bin:$PWD/node_modules/.bin:$PATH OVERLAY=$overlay TESTS=$tests
  check_machine
  local clusters
  clusters=$(kind get clusters 2>&1) || fail "kind cannot list the clusters: $clusters"
  [[ $'\n'$clusters$'\n' == *$'\n'"${context#kind-}"$'\n'* ]] || made_cluster=yes
  trap finish EXIT
  trap 'exit 130' INT TERM
  local scan=''
  if [[ $overlay == prod && $tests == quick ]]; then
    # The scanners need no cluster: they run while it starts.
    timed scripts/scan.sh manifests &
    scan=$!
  fi
  make_cluster
  [[ $tests == loop ]] || timed tilt ci -- --overlay="$overlay"
  if [[ -n $scan ]]; then
    wait "$scan"
    timed scripts/scan.sh server
  fi
  timed vitest run --config=tests/cluster/vitest.config.ts
}

main "$@"
