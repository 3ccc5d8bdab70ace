#!/usr/bin/env bash
# Makes the Secrets with the database passwords, once per cluster and where absent: `postgres` with a
# password for each role, and from it for each service the URL of its database. What is there is never
# replaced, so a volume that is kept keeps its passwords. Random and never shown: passwords travel through
# pipes, as an argument would be in the list of processes.
set -o errexit -o nounset -o pipefail

readonly context=kind-payloop
readonly services=(invoice-app payment-provider)

kube() { kubectl --context="$context" --namespace="$1" "${@:2}"; }

exists() { # NAMESPACE SECRET
  local name
  name=$(kube "$1" get secret "$2" --ignore-not-found --output=name)
  [[ -n $name ]]
}

# The keys and values of a Secret, as YAML. Nothing in them needs quotes or escapes.
pair() { printf '  %s: "%s"\n' "$1" "$2"; }

random() { od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'; }

# create, not apply, which would keep the values a second time, in an annotation.
create() { # NAMESPACE SECRET PAIRS
  printf 'apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\nstringData:\n%s\n' "$2" "$3" |
    kube "$1" create --filename=-
}

password() { # SERVICE; fails where there is none
  kube postgres get secret postgres --output=json | jq --exit-status --raw-output ".data[\"$1\"] // empty | @base64d"
}

main() {
  local pairs password service
  if ! exists postgres postgres; then
    pairs=$(for service in postgres "${services[@]}"; do pair "$service" "$(random)"; done)
    create postgres postgres "$pairs"
  fi
  for service in "${services[@]}"; do
    exists "$service" "$service-database" && continue
    # Absent for a service that came after the Secret.
    password "$service" >/dev/null || printf 'stringData:\n%s\n' "$(pair "$service" "$(random)")" |
      kube postgres patch secret postgres --patch-file=/dev/stdin
    password=$(password "$service")
    local role=${service//-/_}
    pairs=$(pair url "postgres://$role:$password@postgres.postgres:5432/$role")
    create "$service" "$service-database" "$pairs"
  done
}

main "$@"
