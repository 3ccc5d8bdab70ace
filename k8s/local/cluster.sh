#!/usr/bin/env bash
# Functions that secrets.sh and databases.sh share.

kube() { kubectl --context=kind-payloop --namespace="$1" "${@:2}"; } # NAMESPACE ARGUMENT…

# Prints the services that k8s/kustomization.yaml lists, one per line.
list_services() { sed 's/#.*//' k8s/kustomization.yaml | grep -o 'services/[^/]*/namespace' | cut -d / -f 2; }
