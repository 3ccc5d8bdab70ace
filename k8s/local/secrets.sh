#!/usr/bin/env bash
# Makes the Secrets with the passwords of the databases, where they are absent: `postgres` with the superuser's, and for
# each service that k8s/ has a namespace for, `database` with the URL of its database. What is there is never replaced.
# Random and never shown: passwords travel through pipes, as an argument would be in the list of processes.
set -o errexit -o nounset -o pipefail
unset CDPATH

random() { od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'; }

# create, not apply, which would keep the values a second time, in an annotation. Nothing in them needs quotes or escapes.
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
