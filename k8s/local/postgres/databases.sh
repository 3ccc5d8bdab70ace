#!/usr/bin/env bash
# Makes a role and a database of its own for each service that Secret `postgres` has a password for. The
# image runs it when the volume is new. It adds only what is missing, so it can run again: for a service
# that came later, a minute after the Secret has it, or when the Secret was lost and the volume was not.
#   kubectl exec --namespace=postgres postgres-0 -- /docker-entrypoint-initdb.d/databases.sh
set -o errexit -o nounset -o pipefail

readonly passwords=/run/secrets/postgres

make_database() {
  local -r role=$1 password_file=$2
  # The password gets from its file into one statement: no argument and no environment has it, and no
  # log, even if the statement fails.
  psql --no-psqlrc --quiet --username=postgres --dbname=postgres --set=ON_ERROR_STOP=1 \
    --set=role="$role" --set=password_file="$password_file" <<'SQL'
SET log_min_error_statement = panic;
\set password `cat :'password_file'`
SELECT format('CREATE ROLE %I LOGIN', :'role')
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'role', :'role')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'role') \gexec
-- A service's database is its own: without this any role may connect.
REVOKE CONNECT ON DATABASE :"role" FROM PUBLIC;
SQL
}

main() {
  local file service
  for file in "$passwords"/*; do
    service=$(basename "$file")
    [[ $service != postgres ]] || continue
    make_database "${service//-/_}" "$file"
    echo "the role and the database of $service are there"
  done
}

main "$@"
