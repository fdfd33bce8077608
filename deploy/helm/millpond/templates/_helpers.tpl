{{- define "millpond.selector" -}}
app.kubernetes.io/name: millpond
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "millpond.labels" -}}
{{ include "millpond.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "millpond.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The port that Millpond listens on. */}}
{{- define "millpond.port" -}}
{{ regexFind "[0-9]+$" .Values.config.listen }}
{{- end }}

{{/* What every probe asks. */}}
{{- define "millpond.health" -}}
httpGet: {path: /-/healthz, port: http, scheme: {{ empty .Values.config.tls | ternary "HTTP" "HTTPS" }}}
{{- end }}
