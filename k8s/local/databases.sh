#!/usr/bin/env bash
# Makes a role and a database of its own for each service that k8s/ has a namespace for, with the password of its Secret
# `database`. It can run again at any time: for a service that came later, or when a Secret or the volume was lost.
set -o errexit -o nounset -o pipefail
unset CDPATH

# Statements that psql reads from its standard input: no argument, no environment and no log has the password.
statements() { # ROLE; the URL of its database on standard input
  local password
  password=$(sed 's|^postgres://[^:]*:\([^@]*\)@.*|\1|')
  [[ $password =~ ^[0-9a-f]+$ ]] || { echo "databases: the Secret of $1 has no password that secrets.sh made" >&2 && return 1; }
  cat <<SQL
SET log_min_error_statement = panic;
SELECT 'CREATE ROLE "$1" LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$1') \gexec
ALTER ROLE "$1" PASSWORD '$password';
SELECT 'CREATE DATABASE "$1" OWNER "$1"' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '$1') \gexec
-- A service's database is its own: without this any role may connect.
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
    echo "the role and the database of $service are there"
  done < <(list_services)
}

main "$@"
