{{- define "postern.injector" -}}
{{ printf "%s-injector" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Of what belongs to no namespace. */}}
{{- define "postern.injector.cluster" -}}
{{ printf "%s-injector-%s" .Release.Name .Release.Namespace }}
{{- end }}

{{- define "postern.injector.selector" -}}
app.kubernetes.io/name: postern-injector
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "postern.injector.labels" -}}
{{ include "postern.injector.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: postern
{{- end }}

{{- define "postern.injector.certSecret" -}}
{{- if eq .Values.injector.certificates.mode "existing" }}{{ .Values.injector.certificates.secret }}{{ else }}{{ include "postern.injector" . }}-certs{{ end }}
{{- end }}

{{- /* The defaults of annotations. */}}
{{- define "postern.injector.defaults" -}}
{{- $i := .Values.injection }}
{{- $v := .Values.vault }}
{{- dict
  "image" (printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag))
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
