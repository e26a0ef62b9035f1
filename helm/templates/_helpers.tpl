{{/* Names, labels and what several templates need. */}}

{{- define "adaptermux.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 45 | trimSuffix "-" }}
{{- end }}

{{/* At most 45 characters, so that what is appended still fits into a label. */}}
{{- define "adaptermux.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else if contains (include "adaptermux.name" .) .Release.Name }}
{{- .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "adaptermux.name" .) | trunc 45 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Call with (list $ "component"). */}}
{{- define "adaptermux.selector" -}}
app.kubernetes.io/name: {{ include "adaptermux.name" (first .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "adaptermux.labels" -}}
{{ include "adaptermux.selector" . }}
app.kubernetes.io/version: {{ (first .).Chart.AppVersion | quote }}
app.kubernetes.io/part-of: adaptermux
app.kubernetes.io/managed-by: {{ (first .).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (first .).Chart.Name (first .).Chart.Version | replace "+" "_" }}
{{- with (first .).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Call with (list $ image). */}}
{{- define "adaptermux.image" -}}
{{- $image := last . }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default (first .).Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{- define "adaptermux.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "adaptermux.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The most replicas there may be. */}}
{{- define "adaptermux.mostReplicas" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.maxReplicas }}{{ else }}{{ .Values.replicas }}{{ end }}
{{- end }}

{{/* "true" or nothing. */}}
{{- define "adaptermux.hasRouter" -}}
{{- if eq .Values.router.enabled "always" }}true
{{- else if and (eq .Values.router.enabled "auto") (ge (int (include "adaptermux.mostReplicas" .)) 2) }}true
{{- end }}
{{- end }}

{{/* What --adapters is. */}}
{{- define "adaptermux.adapters" -}}
{{- if .Values.adapters.bucket }}{{ .Values.adapters.bucket }}
{{- else if .Values.adapters.claim }}/adapters
{{- else }}/etc/adaptermux/adapters/adapters.json
{{- end }}
{{- end }}

{{- define "adaptermux.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "adaptermux.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "adaptermux.sourceEnv" -}}
{{- range $name, $value := .Values.sources.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
- {name: HF_HOME, value: /tmp/huggingface}
{{- end }}

{{/* Stops the rendering where values contradict each other; what one value may be is in values.schema.json. */}}
{{- define "adaptermux.check" -}}
{{- $places := 0 }}
{{- if .Values.adapters.list }}{{ $places = add1 $places }}{{ end }}
{{- if .Values.adapters.bucket }}{{ $places = add1 $places }}{{ end }}
{{- if .Values.adapters.claim }}{{ $places = add1 $places }}{{ end }}
{{- if gt (int $places) 1 }}{{ fail "adapters: set one of list, bucket and claim, the others must be empty" }}{{ end }}
{{- if and .Values.base.source (not .Values.base.name) }}{{ fail "base.name is empty: it must name the folder that base.source is fetched into" }}{{ end }}
{{- if and .Values.base.source (not .Values.base.sha256) }}{{ fail "base.sha256 is empty: it must be the sha256 of the weights at base.source" }}{{ end }}
{{- if and .Values.base.claim (not .Values.base.name) }}{{ fail "base.name is empty: it must name the base model's folder in base.claim" }}{{ end }}
{{- if and .Values.base.name (not .Values.base.source) (not .Values.base.claim) }}{{ fail (printf "base.name is %s, but neither base.source nor base.claim says where it comes from" .Values.base.name) }}{{ end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}{{ fail (printf "autoscaling.minReplicas is %d, it must be at most autoscaling.maxReplicas (%d)" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}{{ end }}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.queueMs) (not .Values.autoscaling.tokensPerS) (not .Values.autoscaling.cpuPercent) }}{{ fail "autoscaling: queueMs, tokensPerS and cpuPercent are all 0, one of them must say when to scale" }}{{ end }}
{{- if and .Values.auth.secret .Values.serviceMonitor.enabled (not .Values.serviceMonitor.key.secret) }}{{ fail "serviceMonitor.key.secret is empty: with auth.secret, Prometheus needs a key with the scope metrics" }}{{ end }}
{{- if and .Values.auth.secret .Values.loadTest.enabled (not .Values.loadTest.key.secret) }}{{ fail "loadTest.key.secret is empty: with auth.secret, the load test needs a key with the scopes classify and metrics (behind the router, classify is enough)" }}{{ end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}{{ fail "httpRoute.parentRefs is empty: it must name a Gateway" }}{{ end }}
{{- end }}
