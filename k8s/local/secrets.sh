#!/usr/bin/env bash
# Creates the Secrets with the databases' passwords if they are missing, and never replaces one. `postgres` has the
# superuser's password. Each service that k8s/kustomization.yaml lists has a Secret `database` with the URL of its
# database. Passwords are random and never shown. They go through pipes, since the list of processes shows arguments.
set -o errexit -o nounset -o pipefail
unset CDPATH

random() { od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'; }

# Uses create: apply would store the values a second time, in an annotation. The values contain nothing to escape.
create_unless_there() { # NAMESPACE SECRET KEY VALUE
  local found
  found=$(kube "$1" get secret "$2" --ignore-not-found --output=name)
  [[ -z $found ]] || return 0
  printf 'apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\nstringData:\n  %s: "%s"\n' "$2" "$3" "$4" |
    kube "$1" create --filename=-
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/../.."
  # shellcheck source=k8s/local/cluster.sh
  source k8s/local/cluster.sh
  local service role
  create_unless_there postgres postgres postgres "$(random)"
  while IFS= read -r service; do
    role=${service//-/_}
    create_unless_there "$service" database url "postgres://$role:$(random)@postgres.postgres:5432/$role"
  done < <(list_services)
}

main "$@"
