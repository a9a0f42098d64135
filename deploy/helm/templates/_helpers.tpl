{{/* A label as of RFC 1035, as KubeRay wants it, with room for what it appends. */}}
{{- define "shoal.fullname" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- if not (regexMatch "^[a-z]" $name) }}
{{- fail (printf "release name %q: expected one that begins with a letter" .Release.Name) }}
{{- end }}
{{- $name | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Takes (root, component). Ray's pods have an app.kubernetes.io/name of KubeRay's. */}}
{{- define "shoal.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/part-of: shoal
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "shoal.labels" -}}
{{- $root := index . 0 -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- define "shoal.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "shoal.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "shoal.fullname" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{/* Of every pod. Kubernetes' variables for Services would be taken for Shoal's options. */}}
{{- define "shoal.pod" -}}
serviceAccountName: {{ include "shoal.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Of every container. */}}
{{- define "shoal.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Of Ray's containers. */}}
{{- define "shoal.rayContainer" -}}
{{ include "shoal.container" . }}
env:
  # A day: shard servers serve while the head is away. Ray would end them after a minute.
  - {name: RAY_gcs_rpc_server_reconnect_timeout_s, value: "86400"}
  # Short of memory, Ray would kill the largest process: the shard server.
  - {name: RAY_memory_monitor_refresh_ms, value: "0"}
  - {name: RAY_LOG_TO_STDERR, value: "1"}
  - {name: RAY_BACKEND_LOG_LEVEL, value: warning}
  {{- include "shoal.objectStoreEnv" . | nindent 2 }}
  {{- include "shoal.tracingEnv" . | nindent 2 }}
lifecycle:
  preStop: {exec: {command: [ray, stop]}}
{{- end }}

{{/* How `ray start` is told of memory for objects: its least. Hardly anything goes through Ray. */}}
{{- define "shoal.rayObjects" -}}
object-store-memory: "83886080"
{{- end }}

{{- define "shoal.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes (root, component): apart from one another, by node and by zone. */}}
{{- define "shoal.spread" -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{ include "shoal.selector" . | nindent 14 }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "shoal.selector" . | nindent 8 }}
{{- end }}

{{/* Variables with which a process finds the object store. */}}
{{- define "shoal.objectStoreEnv" -}}
{{- with .Values.objectStore }}
{{- if .region }}
- {name: AWS_REGION, value: {{ .region | quote }}}
{{- end }}
{{- if .endpoint }}
- {name: AWS_ENDPOINT_URL_S3, value: {{ .endpoint | quote }}}
{{- end }}
{{- if .existingSecret }}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ $key }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.objectStore.existingSecret }}, key: {{ $key }}}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "shoal.tracingEnv" -}}
{{- with .Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{/* Of a URL without a path. */}}
{{- define "shoal.portOf" -}}
{{- $url := urlParse . }}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (eq $url.scheme "http" | ternary "80" "443") }}
{{- end }}

{{- define "shoal.objectStorePort" -}}
{{- with .Values.objectStore.endpoint }}{{ include "shoal.portOf" . }}{{ else }}443{{ end }}
{{- end }}

{{- define "shoal.shardServers" -}}
{{- $sum := 0 }}
{{- range .Values.shards.groups }}{{ $sum = add $sum .replicas }}{{ end }}
{{- $sum }}
{{- end }}

{{/* Takes (root, variable, key of the Secret, whether it may be missing). */}}
{{- define "shoal.apiKey" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef: {name: {{ $root.Values.auth.existingSecret }}, key: {{ index . 2 }}, optional: {{ index . 3 }}}
{{- end }}

{{- define "shoal.clusterTLSVolume" -}}
{{- if .Values.clusterTLS.enabled -}}
- name: cluster-tls
  secret:
    secretName: {{ include "shoal.clusterTLSSecret" . }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "shoal.clusterTLSSecret" -}}
{{- with .Values.clusterTLS }}
{{- if and (not .existingSecret) (not .issuer.name) }}
{{- fail "clusterTLS: expected an existingSecret, or an issuer of cert-manager" }}
{{- end }}
{{- .existingSecret | default (printf "%s-cluster-tls" (include "shoal.fullname" $)) }}
{{- end }}
{{- end }}

{{- define "shoal.routerTLSSecret" -}}
{{- with .Values.routerTLS }}
{{- if and (not .existingSecret) (not .issuer.name) }}
{{- fail "routerTLS: expected an existingSecret, or an issuer of cert-manager" }}
{{- end }}
{{- .existingSecret | default (printf "%s-router-tls" (include "shoal.fullname" $)) }}
{{- end }}
{{- end }}

{{/* Where this release's own clients reach the routers. */}}
{{- define "shoal.url" -}}
http{{ if .Values.routerTLS.enabled }}s{{ end }}://{{ include "shoal.fullname" . }}:6333
{{- end }}

{{/* By what such a client knows them. */}}
{{- define "shoal.authorityEnv" -}}
{{- if .Values.routerTLS.enabled -}}
- {name: SSL_CERT_FILE, value: /router-tls/ca.crt}
{{- end }}
{{- end }}

{{- define "shoal.authorityMount" -}}
{{- if .Values.routerTLS.enabled -}}
- {name: router-tls, mountPath: /router-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "shoal.authorityVolume" -}}
{{- if .Values.routerTLS.enabled -}}
- name: router-tls
  secret:
    secretName: {{ include "shoal.routerTLSSecret" . }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}

{{- /* What the paths of gRPC calls to routers begin with. */}}
{{- define "shoal.grpcPaths" -}}
[/qdrant.Qdrant, /qdrant.Collections, /qdrant.Points, /qdrant.Snapshots, /grpc.health.v1.Health]
{{- end }}

{{- define "shoal.tlsSecret" -}}
{{- .Values.ingress.tls.secretName | default (printf "%s-tls" (include "shoal.fullname" .)) }}
{{- end }}
