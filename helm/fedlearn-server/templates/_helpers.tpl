{{- define "fedlearn.name" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select, and so never change from one version of the chart to the next. */}}
{{- define "fedlearn.selector" -}}
app.kubernetes.io/name: fedlearn-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fedlearn.labels" -}}
{{ include "fedlearn.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fedlearn
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "fedlearn.image" -}}
{{- with .Values.image -}}
{{- $name := printf "%s/%s" (trimSuffix "/" .registry) .repository -}}
{{- if .insecureTag }}{{ printf "%s:%s" $name .insecureTag }}{{ else }}{{ printf "%s@%s" $name .digest }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* The restricted profile, for a pod. */}}
{{- define "fedlearn.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- /* Always would make private keys readable for their group at every mount. */}}
fsGroupChangePolicy: OnRootMismatch
{{- with .Values.supplementalGroups }}
supplementalGroups: {{ toJson . }}
{{- end }}
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
{{- $all := merge (dict "cpu" .cpu "memory" .memory) (.extended | default dict) -}}
requests: {{ toJson $all }}
limits: {{ toJson $all }}
{{- end -}}

{{/* The ports, in the order of server.toml. */}}
{{- define "fedlearn.ports" -}}
gate: 9443
control: 9444
fleet: 9445
{{- end -}}

{{- define "fedlearn.host" -}}
{{ include "fedlearn.name" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Where the container of apps listens: a folder that it makes in the volume of both. */}}
{{- define "fedlearn.appHost" -}}
/run/fedlearn-apps/own/app-host.sock
{{- end -}}

{{/* server.toml as a table; `state` is the folder. */}}
{{- define "fedlearn.config" -}}
{{- $root := .root -}}
{{- $config := deepCopy $root.Values.config -}}
{{- $ports := include "fedlearn.ports" $root | fromYaml -}}
{{- $listen := dict -}}
{{- $advertise := $config.advertise | default dict -}}
{{- range $name, $port := $ports -}}
{{- $_ := set $listen $name (printf "0.0.0.0:%d" (int $port)) -}}
{{- if not (get $advertise $name) -}}
{{- $_ := set $advertise $name (printf "%s:%d" (include "fedlearn.host" $root) (int $port)) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $config "listen" $listen -}}
{{- $_ := set $config "advertise" $advertise -}}
{{- $_ := set $config "state" .state -}}
{{- if has "recovery-key" $config.keys.protect -}}
{{- $_ := set $config.keys "recovery_key" "/etc/fedlearn/recovery.pub.pem" -}}
{{- end -}}
{{- if has "passphrase" $config.keys.protect -}}
{{- $_ := set $config.keys "passphrase_file" "/run/secrets/fedlearn/passphrase" -}}
{{- end -}}
{{- if $root.Values.front.enabled -}}
{{- /* The gate sees the proxy's address for all peers. Each limit has a largest value of its own. */ -}}
{{- $limits := $config.limits | default dict -}}
{{- if not (hasKey $limits "requests_per_second_per_peer") -}}
{{- $_ := set $limits "requests_per_second_per_peer" (minf 10000 (get $limits "requests_per_second" | default 400)) -}}
{{- end -}}
{{- if not (hasKey $limits "challenges_per_peer") -}}
{{- $_ := set $limits "challenges_per_peer" (min 100000 (get $limits "challenges" | default 4096)) -}}
{{- end -}}
{{- if not (hasKey $limits "connections_per_peer") -}}
{{- $_ := set $limits "connections_per_peer" (get $limits "connections" | default 1024) -}}
{{- end -}}
{{- $_ := set $config "limits" $limits -}}
{{- end -}}
{{- if $root.Values.apps.container -}}
{{- $_ := set $config "jobs" (merge (dict "app_host" (include "fedlearn.appHost" $root)) ($config.jobs | default dict)) -}}
{{- end -}}
{{- if $root.Values.metrics.enabled -}}
{{- $_ := set $config "metrics" (dict "listen" (printf "0.0.0.0:%d" (int $root.Values.metrics.port))) -}}
{{- end -}}
{{- include "fedlearn.toml" (dict "table" $config) -}}
{{- end -}}

{{/* Labels of pods that are not the coordinator: no Service and no selector finds them. */}}
{{- define "fedlearn.aside" -}}
app.kubernetes.io/name: fedlearn-server-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end -}}
