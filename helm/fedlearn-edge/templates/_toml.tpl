{{/*
TOML from values. `toToml` writes 1000000 as 1e+06 and 8 as 8.0, which a strict reader refuses;
JSON's numbers, strings, booleans and lists of these are TOML's, too.
*/}}
{{- define "fedlearn.toml" -}}
{{- $path := .path | default "" -}}
{{- range $key, $value := .table -}}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value) (eq (include "fedlearn.toml.tables" $value) "true")) }}
{{ include "fedlearn.toml.key" $key }} = {{ toRawJson $value }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- $below := include "fedlearn.toml.key" $key -}}
{{- if $path }}{{ $below = printf "%s.%s" $path $below }}{{ end -}}
{{- if kindIs "map" $value -}}
{{- if $value }}

[{{ $below }}]
{{- include "fedlearn.toml" (dict "table" $value "path" $below) -}}
{{- end -}}
{{- else if eq (include "fedlearn.toml.tables" $value) "true" -}}
{{- range $value }}

[[{{ $below }}]]
{{- include "fedlearn.toml" (dict "table" . "path" $below) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "fedlearn.toml.tables" -}}
{{- if kindIs "slice" . }}{{ if . }}{{ kindIs "map" (first .) }}{{ end }}{{ end -}}
{{- end -}}

{{- define "fedlearn.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toRawJson . }}{{- end -}}
{{- end -}}
