#!/usr/bin/env bash
# What secrets.sh and databases.sh share.

kube() { kubectl --context=kind-payloop --namespace="$1" "${@:2}"; } # NAMESPACE ARGUMENT…

# The services that k8s/ has a namespace for, one a line.
list_services() { sed 's/#.*//' k8s/kustomization.yaml | grep -o 'services/[^/]*/namespace' | cut -d / -f 2; }
