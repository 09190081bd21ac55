#!/bin/sh
# Sets Vault up for postern on Kubernetes: the engine that keys are in, the policies, and who logs in as what. It may be run
# again at any time: what is there already stays, and policies and roles become what is said here.
#
#   export VAULT_ADDR=https://vault.example:8200 VAULT_TOKEN    # or `vault login` before; a token that may do all this
#   sh setup.sh                          one role for all: each ServiceAccount reads the keys of px_<namespace>_<serviceaccount>
#   sh setup.sh shop/checkout shop/mail  a role for each of these ServiceAccounts, and for no other
#
# `vault` and `postern` must be in the PATH. What may be set otherwise:
set -eu
ENVIRONMENT=${ENVIRONMENT:-prod}
MOUNT=${MOUNT:-secret}    # the KV v2 engine
PREFIX=${PREFIX:-postern} # below it
AUTH=${AUTH:-kubernetes}  # the Kubernetes auth method; the audience of tokens is vault
NAMES=${NAMES:-postern}   # what roles and policies are called: postern-agent, postern-server; others for another environment
SERVER=${SERVER-postern-system/postern-server} # whom the management server runs as; empty: there is none
# Where the API server is asked whose a token is. A Vault that runs in the cluster needs none of them.
KUBERNETES_HOST=${KUBERNETES_HOST:-}         # https://api.example:6443
KUBERNETES_CA_FILE=${KUBERNETES_CA_FILE:-}   # its authority
TOKEN_REVIEWER_FILE=${TOKEN_REVIEWER_FILE:-} # a token that may create TokenReviews; else each pod's own has to

fail() {
  echo "setup.sh: $*" >&2
  exit 1
}

engine() {
  vault read "sys/mounts/$MOUNT" >/dev/null 2>&1 || vault secrets enable -path="$MOUNT" -version=2 kv
  case "$(vault read -field=type "sys/mounts/$MOUNT") $(vault read -field=options "sys/mounts/$MOUNT")" in
    "kv "*version:2*) ;;
    *) fail "MOUNT: the engine at $MOUNT/ is not KV version 2; name another path" ;;
  esac
}

auth_method() {
  vault read "sys/auth/$AUTH" >/dev/null 2>&1 || vault auth enable -path="$AUTH" kubernetes
  [ "$(vault read -field=type "sys/auth/$AUTH")" = kubernetes ] || fail "AUTH: the method at $AUTH/ is not kubernetes; name another path"
  if [ -n "$KUBERNETES_HOST" ]; then
    set -- "kubernetes_host=$KUBERNETES_HOST" disable_local_ca_jwt=true
    [ -z "$KUBERNETES_CA_FILE" ] || set -- "$@" "kubernetes_ca_cert=@$KUBERNETES_CA_FILE"
    if [ -n "$TOKEN_REVIEWER_FILE" ]; then
      tr -d '\n' <"$TOKEN_REVIEWER_FILE" | vault write "auth/$AUTH/config" "$@" token_reviewer_jwt=- # never in an argument
    else
      vault write "auth/$AUTH/config" "$@"
    fi
  elif ! vault read "auth/$AUTH/config" >/dev/null 2>&1; then # else it stays as somebody has configured it
    vault write "auth/$AUTH/config" kubernetes_host=https://kubernetes.default.svc ||
      fail "KUBERNETES_HOST: a Vault outside of the cluster has to be told where the API server is, and KUBERNETES_CA_FILE its authority"
  fi
}

# policy NAME FLAG…
policy() {
  name=$1
  shift
  # Not in one pipe: the shell would not notice that it failed.
  rules=$(postern policy --environment "$ENVIRONMENT" --mount "$MOUNT" --prefix "$PREFIX" "$@")
  printf '%s\n' "$rules" | vault policy write "$name" -
}

# role NAME NAMESPACE SERVICEACCOUNT: who logs in by it has the policy NAME, and no other.
role() {
  vault write "auth/$AUTH/role/$1" audience=vault bound_service_account_namespaces="$2" bound_service_account_names="$3" \
    token_policies="$1" token_no_default_policy=true token_ttl=1h
}

for account in ${SERVER:+"$SERVER"} "$@"; do
  case $account in
    */*/* | /* | */) fail "$account: want NAMESPACE/SERVICEACCOUNT" ;;
    */*) ;;
    *) fail "$account: want NAMESPACE/SERVICEACCOUNT" ;;
  esac
done
vault token lookup >/dev/null # whether there is a Vault, and a token

engine
auth_method
if [ $# = 0 ]; then
  accessor=$(vault read -field=accessor "sys/auth/$AUTH")
  policy "$NAMES-agent" --role agent --accessor "$accessor"
  role "$NAMES-agent" '*' '*'
fi
for account in "$@"; do # a pod names its role: postern.dev/vault-role: postern-px_shop_checkout
  id=px_${account%/*}_${account#*/}
  policy "$NAMES-$id" --role agent --proxy-id "$id"
  role "$NAMES-$id" "${account%/*}" "${account#*/}"
done
if [ -n "$SERVER" ]; then
  policy "$NAMES-server" --role server
  role "$NAMES-server" "${SERVER%/*}" "${SERVER#*/}"
fi
# For people, who log in by methods of their own (docs/ROLES.md). Developers and team leads have one for each proxy id.
for who in devops security; do
  policy "$NAMES-$who" --role "$who"
done
