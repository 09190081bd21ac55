{{- /* The agent's configuration, one variable of the sidecar. */}}
{{- define "postern.config" -}}
version: 1
environment: {{ .Values.environment }}
proxy_id: {{ default (printf "px_%s_%s" .Release.Namespace .Values.workload.serviceAccount) .Values.proxyId }}
listen: {proxy: "127.0.0.1:8700", admin: "0.0.0.0:8701"}
unmatched: tunnel
store:
  vault:
    address: {{ .Values.vault.address | quote }}
    namespace: {{ .Values.vault.namespace | quote }}
    mount: {{ .Values.vault.mount }}
    prefix: {{ .Values.vault.prefix }}
    auth:
      kubernetes: {mount: {{ .Values.vault.authMount }}, role: {{ .Values.vault.role | quote }}, token_file: /var/run/secrets/postern/token}
ca: {state_dir: /run/postern/ca}
providers:
{{ toYaml .Values.providers | indent 2 }}
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
  failureThreshold: 120
readinessProbe:
  exec: {command: ["/postern", "status", "--ready", "-c", "env:POSTERN_CONFIG"]}
  periodSeconds: 10
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
      - serviceAccountToken: {path: token, audience: {{ .Values.vault.audience }}, expirationSeconds: 3600}
- name: postern-state
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
