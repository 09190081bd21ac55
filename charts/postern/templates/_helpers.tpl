{{- define "postern.injector" -}}
{{ printf "%s-injector" (.Release.Name | trunc 52 | trimSuffix "-") }}
{{- end }}

{{- /* The names of its replicas, as a list in JSON: each has a Deployment and a Service. */}}
{{- define "postern.injector.replicas" -}}
{{- $names := list }}
{{- range $n := until (int .Values.injector.replicas) }}
{{- $names = append $names (printf "%s-%d" (include "postern.injector" $) $n) }}
{{- end }}
{{- $names | toJson }}
{{- end }}

{{- define "postern.server" -}}
{{ printf "%s-server" (.Release.Name | trunc 54 | trimSuffix "-") }}
{{- end }}

{{- /* Of what belongs to no namespace. */}}
{{- define "postern.injector.cluster" -}}
{{ printf "%s-injector-%s" .Release.Name .Release.Namespace }}
{{- end }}

{{- define "postern.injector.selector" -}}
app.kubernetes.io/name: postern-injector
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "postern.server.selector" -}}
app.kubernetes.io/name: postern-server
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "postern.common" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: postern
{{- end }}

{{- define "postern.injector.labels" -}}
{{ include "postern.injector.selector" . }}
{{ include "postern.common" . }}
{{- end }}

{{- define "postern.server.labels" -}}
{{ include "postern.server.selector" . }}
{{ include "postern.common" . }}
{{- end }}

{{- /* An image's name; takes the image's values and the chart. */}}
{{- define "postern.image" -}}
{{- $i := index . 0 }}
{{- if $i.digest }}{{ $i.repository }}@{{ $i.digest }}{{ else }}{{ $i.repository }}:{{ default (index . 1).AppVersion $i.tag }}{{ end }}
{{- end }}

{{- define "postern.injector.certSecret" -}}
{{- if eq .Values.injector.certificates.mode "existing" }}{{ .Values.injector.certificates.secret }}{{ else }}{{ include "postern.injector" . }}-certs{{ end }}
{{- end }}

{{- /* Namespaces whose pods no webhook is asked about. */}}
{{- define "postern.excluded" -}}
{{ append .Values.injector.excludedNamespaces .Release.Namespace | uniq | sortAlpha | toJson }}
{{- end }}

{{- /* "true" where the injector looks for pods that it missed. */}}
{{- define "postern.watches" -}}
{{ not (regexMatch "^0+(ms|s|m|h)$" .Values.injector.watch) }}
{{- end }}

{{- /* The defaults of annotations. */}}
{{- define "postern.injector.defaults" -}}
{{- $i := .Values.injection }}
{{- $v := .Values.vault }}
{{- dict
  "image" (include "postern.image" (list .Values.image .Chart))
  "image-pull-policy" .Values.image.pullPolicy
  "environment" .Values.environment
  "proxy-id" .Values.proxyId
  "providers" .Values.providers
  "mode" $i.mode
  "containers" $i.containers
  "order" $i.order
  "override" $i.override
  "unmatched" $i.unmatched
  "log-level" $i.logLevel
  "run-as-user" $i.runAsUser
  "no-proxy" $i.noProxy
  "vault-address" $v.address
  "vault-namespace" $v.namespace
  "vault-mount" $v.mount
  "vault-prefix" $v.prefix
  "vault-role" $v.role
  "vault-audience" $v.audience
  "vault-auth-method" $i.vaultAuthMethod
  "vault-auth-mount" $v.authMount
  "vault-ca-configmap" $i.vaultCaConfigMap
  "extra-roots-configmap" $i.extraRootsConfigMap
  "config-map" $i.configMap
  "resources" .Values.resources
  | toYaml }}
{{- end }}

{{- define "postern.server.config" -}}
{{- $v := .Values.vault }}
{{- $vault := dict "address" $v.address "namespace" $v.namespace "mount" $v.mount "prefix" $v.prefix
  "auth" (dict "kubernetes" (dict "mount" $v.authMount "role" .Values.server.role "token_file" "/var/run/secrets/postern/token")) }}
{{- if .Values.server.caConfigMap }}
{{- $_ := set $vault "ca_file" "/etc/postern/vault-ca/ca.crt" }}
{{- end }}
{{- $own := dict "version" 1 "environment" .Values.environment
  "server" (dict "listen" "0.0.0.0:8702" "cert_file" "/etc/postern/tls/tls.crt" "key_file" "/etc/postern/tls/tls.key")
  "store" (dict "vault" $vault) "issuers" .Values.server.issuers "log" (dict "level" .Values.server.logLevel) }}
{{- with .Values.server.providers }}{{ $_ := set $own "providers" . }}{{ end }}
{{- if values .Values.server.egress | join "" }}{{ $_ := set $own "egress" .Values.server.egress }}{{ end }}
{{- toYaml $own }}
{{- end }}

{{- /* What the chart's own pods have in common; takes the workload's values and the root. */}}
{{- define "postern.pod" -}}
{{- $w := index . 0 }}
{{- $root := index . 1 }}
securityContext:
  runAsNonRoot: true
  seccompProfile: {type: RuntimeDefault}
  {{- if ne $root.Values.injection.runAsUser "none" }}
  fsGroup: 65532
  {{- end }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $w.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $w.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $w.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $w.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "postern.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- if ne .Values.injection.runAsUser "none" }}
runAsUser: 65532
runAsGroup: 65532
{{- end }}
{{- end }}
