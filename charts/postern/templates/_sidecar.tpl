{{- /* The scope whose keys the sidecar serves. */}}
{{- define "postern.proxyId" -}}
{{- $id := default (printf "px_%s_%s" .Release.Namespace .Values.workload.serviceAccount) .Values.proxyId }}
{{- if not (regexMatch "^px_[a-z0-9_-]{1,61}$" $id) }}
{{- fail (printf "proxyId: %q, which namespace and serviceAccount give, is not allowed: set proxyId to px_ and then at most 61 lower-case letters, digits, _ and -" $id) }}
{{- end }}
{{- $id }}
{{- end }}

{{- /* The agent's configuration, one variable of the sidecar. */}}
{{- define "postern.config" -}}
version: 1
environment: {{ .Values.environment | quote }}
proxy_id: {{ include "postern.proxyId" . | quote }}
listen: {proxy: "127.0.0.1:8700", admin: "0.0.0.0:8701"}
unmatched: tunnel
store:
  vault:
    address: {{ .Values.vault.address | quote }}
    namespace: {{ .Values.vault.namespace | quote }}
    mount: {{ .Values.vault.mount | quote }}
    prefix: {{ .Values.vault.prefix | quote }}
    auth:
      kubernetes: {mount: {{ .Values.vault.authMount | quote }}, role: {{ .Values.vault.role | quote }}, token_file: /var/run/secrets/postern/token}
ca: {state_dir: /run/postern/ca}
providers:
{{ toYaml .Values.providers | indent 2 }}
{{- end }}

{{- /* The variables that lead the application's SDKs to the sidecar's routes. */}}
{{- define "postern.env" -}}
{{- $catalog := .Files.Get "files/sdk-env.yaml" | fromYaml }}
{{- $set := dict }}
{{- range .Values.providers }}
{{- $entry := get $catalog (default .name .provider) | default dict }}
{{- $vars := $entry.vars | default dict }}
{{- if kindIs "map" .sdk_env }}
{{- $vars = .sdk_env.vars | default $vars }}
{{- else if eq (toString .sdk_env) "true" }}
{{- $vars = merge (deepCopy ($entry.shared | default dict)) $vars }}
{{- else if eq (toString .sdk_env) "false" }}
{{- $vars = dict }}
{{- end }}
{{- $route := printf "http://127.0.0.1:8700/%s" .name }}
{{- range $name, $value := $vars }}
{{- if not (hasKey $set $name) }}
{{- $_ := set $set $name ($value | replace "{route}" $route | replace "{placeholder}" "attached-by-postern") }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := $set }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- /* The native sidecar: goes first into initContainers. */}}
{{- define "postern.sidecar" -}}
name: postern
image: "{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
restartPolicy: Always
args: ["agent", "-c", "env:POSTERN_CONFIG"]
env:
  - name: POSTERN_CONFIG
    value: |
{{ include "postern.config" . | indent 6 }}
ports:
  - {name: postern-admin, containerPort: 8701}
startupProbe:
  exec: {command: ["/postern", "status", "--ready", "-c", "env:POSTERN_CONFIG"]}
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 120
readinessProbe:
  exec: {command: ["/postern", "status", "--ready", "-c", "env:POSTERN_CONFIG"]}
  periodSeconds: 10
  timeoutSeconds: 5
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
resources:
{{ toYaml .Values.resources | indent 2 }}
volumeMounts:
  - {name: postern-token, mountPath: /var/run/secrets/postern, readOnly: true}
  - {name: postern-state, mountPath: /run/postern}
{{- end }}

{{- /* The volumes that belong to it. */}}
{{- define "postern.volumes" -}}
- name: postern-token
  projected:
    sources:
      - serviceAccountToken: {path: token, audience: {{ .Values.vault.audience | quote }}, expirationSeconds: 3600}
- name: postern-state
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
