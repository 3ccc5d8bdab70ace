#!/usr/bin/env bash
# Creates a role and a database for each service that k8s/kustomization.yaml lists, with the password in its Secret
# `database`. It can run again at any time: for a new service, or after a Secret or the volume was lost.
set -o errexit -o nounset -o pipefail
unset CDPATH

# Prints statements that psql reads from its standard input, so that no argument, environment or log has the password.
statements() { # ROLE; the URL of its database on standard input
  local password
  password=$(sed 's|^postgres://[^:]*:\([^@]*\)@.*|\1|')
  [[ $password =~ ^[0-9a-f]+$ ]] || { echo "databases: the Secret of ${1//_/-} has no password created by secrets.sh" >&2 && return 1; }
  cat <<SQL
SET log_min_error_statement = panic;
SELECT 'CREATE ROLE "$1" LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$1') \gexec
ALTER ROLE "$1" PASSWORD '$password';
SELECT 'CREATE DATABASE "$1" OWNER "$1"' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '$1') \gexec
-- Only the service may connect: by default any role may.
REVOKE CONNECT ON DATABASE "$1" FROM PUBLIC;
SQL
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/../.."
  # shellcheck source=k8s/local/cluster.sh
  source k8s/local/cluster.sh
  local service
  while IFS= read -r service; do
    kube "$service" get secret database --output=json | jq --raw-output '.data.url | @base64d' |
      statements "${service//-/_}" |
      kube postgres exec --stdin postgres-0 --container=postgres -- \
        psql --no-psqlrc --quiet --username=postgres --dbname=postgres --set=ON_ERROR_STOP=1
    echo "the role and the database of $service exist"
  done < <(list_services)
}

main "$@"
