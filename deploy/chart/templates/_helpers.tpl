{{- define "gateway.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- define "gateway.labels" -}}
app.kubernetes.io/name: gateway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* A dictionary: root, component. */}}
{{- define "gateway.selector" -}}
app.kubernetes.io/name: gateway
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "gateway.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* A number of a values file is a float64, and 1e+06 from a million on: settings are whole numbers. */}}
{{- define "gateway.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- define "gateway.engineURL" -}}
{{- if .Values.engine.enabled -}}
http://{{ include "gateway.name" . }}-engine:8081
{{- else -}}
{{ required "engine.url: an engine of yours, or engine.enabled" .Values.engine.url }}
{{- end -}}
{{- end }}

{{/* In the pod itself, so that old pods keep their settings until they are replaced, and a migration that
fails has changed nothing. */}}
{{- define "gateway.settings" -}}
- name: POD_IP  # first: another names it, for Prometheus asks by the pod's address
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- $name := include "gateway.name" . }}
{{- $chart := dict
  "ALLOWED_HOSTS" (printf "%s,%s,$(POD_IP)" .Values.host $name)
  "HOST" "0.0.0.0"
  "PORT" "8000"
  "WORKERS" .Values.web.workers
  "DRAIN_SECONDS" .Values.web.drainSeconds
  "TRUSTED_PROXY_HOPS" .Values.ingress.hops
  "CSRF_TRUSTED_ORIGINS" (printf "https://%s" .Values.host)
  "DETECTION_ENGINE_URL" (include "gateway.engineURL" .)
  "PROMETHEUS_MULTIPROC_DIR" "/run/metrics"
  "LOG_FORMAT" "json" }}
{{- if .Values.stores.enabled }}
{{- $_ := set $chart "CACHE_REDIS_URL" (printf "redis://%s-cache:6379/0" $name) }}
{{- end }}
{{- range $name, $value := merge (deepCopy .Values.settings) $chart }}
- {name: {{ $name }}, value: {{ include "gateway.text" $value | quote }}}
{{- end }}
{{- end }}

{{/* What every container of the gateway has; a dictionary: root, component. The engine reads texts of
strangers and needs none of the secrets. */}}
{{- define "gateway.container" -}}
image: {{ include "gateway.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  {{- include "gateway.settings" .root | nindent 2 }}
  {{- if ne .component "engine" }}
  {{- range .root.Values.secret.keys }}
  {{- if ne . $.root.Values.stores.passwordKey }}
  - name: {{ . }}_FILE
    value: /run/secrets/gateway/{{ . }}
  {{- end }}
  {{- end }}
  {{- end }}
volumeMounts:
  {{- if ne .component "engine" }}
  - {name: secrets, mountPath: /run/secrets/gateway, readOnly: true}
  {{- end }}
  - {name: metrics, mountPath: /run/metrics}
  - {name: tmp, mountPath: /tmp}
  {{- if and (eq .component "engine") .root.Values.engine.modelsClaim }}
  - {name: models, mountPath: /models, readOnly: true}
  {{- end }}
{{- end }}

{{/* What every pod has; a dictionary: root, component. */}}
{{- define "gateway.pod" -}}
automountServiceAccountToken: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "gateway.selector" $ | nindent 8 }}
  {{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
volumes:
  {{- if ne .component "engine" }}
  - name: secrets
    secret:
      secretName: {{ .root.Values.secret.existingSecret }}
      defaultMode: 0440
      items:
        {{- range .root.Values.secret.keys }}
        - {key: {{ . }}, path: {{ . }}}
        {{- end }}
  {{- end }}
  - name: metrics
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
  - name: tmp
    {{- if eq .component "web" }}
    # A mail is copied here while it is downloaded, and may be of any size: on disk, not in memory.
    emptyDir: {sizeLimit: {{ .root.Values.web.temporaryFiles }}}
    {{- else }}
    emptyDir: {medium: Memory, sizeLimit: 64Mi}
    {{- end }}
  {{- if eq .component "engine" }}
  {{- with .root.Values.engine.modelsClaim }}
  - name: models
    persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
  {{- end }}
  {{- end }}
{{- end }}
