#!/usr/bin/env bash
# Creates the certificate of https://invoice-app.localhost, unless the cluster has one. Writes the certificate, without
# its key, to .payloop/certificate.pem, which clients have to trust. The key is in the Secret and nowhere else.
set -o errexit -o nounset -o pipefail
unset CDPATH

readonly context=kind-payloop host=invoice-app.localhost secret=invoice-app-tls
readonly certificate=.payloop/certificate.pem

kube() { kubectl --context="$context" --namespace=invoice-app "$@"; }

# Prints a key, and a certificate that is valid for a year. macOS and iOS reject any that is valid for over 825 days.
generate() {
  openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 365 -subj "/CN=$host" \
    -addext "subjectAltName=DNS:$host" -keyout /dev/stdout -out /dev/stdout 2>/dev/null
}

to_secret() {
  jq --raw-input --slurp --arg name "$secret" '
    def block(pem_label):
      capture("(?<pem>-----BEGIN [A-Z ]*\(pem_label)-----[^-]+-----END [A-Z ]*\(pem_label)-----\n)").pem;
    {apiVersion: "v1", kind: "Secret", type: "kubernetes.io/tls", metadata: {name: $name},
     stringData: {"tls.key": block("PRIVATE KEY"), "tls.crt": block("CERTIFICATE")}}'
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
  command -v openssl >/dev/null || { echo "certificate: openssl is missing; install it from your system's packages" >&2 && exit 1; }
  local found
  found=$(kube get secret "$secret" --ignore-not-found --output=name)
  [[ -n $found ]] || generate | to_secret | kube create --filename=-
  mkdir -p .payloop
  kube get secret "$secret" --output=json | jq --raw-output '.data["tls.crt"] | @base64d' >"$certificate"
}

main "$@"
