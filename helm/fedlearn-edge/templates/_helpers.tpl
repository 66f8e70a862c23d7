{{- define "fedlearn.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select, and so never change from one version of the chart to the next. */}}
{{- define "fedlearn.selector" -}}
app.kubernetes.io/name: fedlearn-edge
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fedlearn.labels" -}}
{{ include "fedlearn.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fedlearn
fedlearn.io/site: {{ .Values.site.name }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Labels that the agent sets on clients (edge/kube/labels.py). */}}
{{- define "fedlearn.clients" -}}
app.kubernetes.io/managed-by: fedlearn-edge
app.kubernetes.io/component: client
fedlearn.io/site: {{ .Values.site.name }}
{{- end -}}

{{/* Labels of pods that are not the agent: no Service and no selector finds them. */}}
{{- define "fedlearn.aside" -}}
app.kubernetes.io/name: fedlearn-edge-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end -}}

{{- define "fedlearn.clientNamespace" -}}
{{- .Values.workloads.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* An image by digest, or by its `insecureTag`: (list image registry). */}}
{{- define "fedlearn.image" -}}
{{- $image := index . 0 -}}
{{- $name := printf "%s/%s" (trimSuffix "/" ($image.registry | default (index . 1))) $image.repository -}}
{{- if $image.insecureTag }}{{ printf "%s:%s" $name $image.insecureTag }}{{ else }}{{ printf "%s@%s" $name $image.digest }}{{ end -}}
{{- end -}}

{{- define "fedlearn.agentImage" -}}
{{- include "fedlearn.image" (list .Values.image .Values.image.registry) -}}
{{- end -}}

{{- define "fedlearn.tokenSecret" -}}
{{- .Values.enrollment.existingSecret | default (printf "%s-join" (include "fedlearn.name" .)) -}}
{{- end -}}

{{/* The restricted profile, for a pod. */}}
{{- define "fedlearn.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- /* Always would make the site's key readable for its group at every mount. */}}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The restricted profile, for a container. */}}
{{- define "fedlearn.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Requests that equal limits. */}}
{{- define "fedlearn.resources" -}}
requests: {{ toJson . }}
limits: {{ toJson . }}
{{- end -}}

{{/* One egress rule: (list ports peers). */}}
{{- define "fedlearn.egress" -}}
- ports:
    {{- range index . 0 }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with index . 1 }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "fedlearn.dns" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
  to:
    - namespaceSelector:
        matchLabels: {{- toYaml .Values.networkPolicy.dnsNamespaceLabels | nindent 10 }}
{{- end -}}

{{/* site.toml as a table. */}}
{{- define "fedlearn.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $kubernetes := $config.kubernetes | default dict -}}
{{- $_ := set $kubernetes "namespace" (include "fedlearn.clientNamespace" .) -}}
{{- $_ := set $kubernetes "image" (include "fedlearn.image" (list .Values.client.image .Values.image.registry)) -}}
{{- $_ := set $kubernetes "sponsor_listen" (printf "0.0.0.0:%d" (int .Values.sponsor.port)) -}}
{{- $_ := set $kubernetes "sponsor_address" (printf "%s.%s.svc:%d" (include "fedlearn.name" .) .Release.Namespace (int .Values.sponsor.port)) -}}
{{- $_ := set $kubernetes "service_account" (include "fedlearn.clientAccount" .) -}}
{{- with .Values.client.pullSecrets }}{{ $_ := set $kubernetes "pull_secrets" . }}{{ end -}}
{{- if and (eq $kubernetes.workload "confidential-containers") (not $kubernetes.runtime_class) -}}
{{- $_ := set $kubernetes "runtime_class" "kata-qemu-tdx" -}}
{{- end -}}
{{- range $key := list "runtime_class" "tee" -}}
{{- if not (get $kubernetes $key) }}{{ $_ := unset $kubernetes $key }}{{ end -}}
{{- end -}}
{{- $_ := set $config "kubernetes" $kubernetes -}}
{{- $launcher := $config.launcher | default dict -}}
{{- $_ := set $launcher "kind" "kubernetes" -}}
{{- $_ := set $config "launcher" $launcher -}}
{{- $_ := set $config "state" "/var/lib/fedlearn/state" -}}
{{- include "fedlearn.toml" (dict "table" $config) -}}
{{- end -}}

{{- define "fedlearn.clientAccount" -}}
{{ include "fedlearn.name" . }}-client
{{- end -}}
