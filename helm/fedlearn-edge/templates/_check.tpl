{{/* Why the digest of an image is not one; empty when it is: (list path image). */}}
{{- define "fedlearn.digestProblem" -}}
{{- $path := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.insecureTag -}}
{{- else if not $image.digest -}}
{{ $path }}.digest: is required, "sha256:" and 64 hexadecimal digits: the image that runs is the image that was measured
{{- else if not (regexMatch "^sha256:[0-9a-f]{64}$" $image.digest) -}}
{{ $path }}.digest: must be "sha256:" and 64 hexadecimal digits, not {{ quote $image.digest }}
{{- end -}}
{{- end -}}

{{/* Why a value is not the name of a Secret; the value may be a secret and is not shown: (list path value). */}}
{{- define "fedlearn.secretNameProblem" -}}
{{- if not (regexMatch "^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$" (index . 1)) -}}
{{ index . 0 }}: must be the name of a Secret in the release's namespace: a-z, 0-9, "-" and "."; the value is not shown
{{- end -}}
{{- end -}}

{{/*
What the schema of the values leaves to words: required values, secrets, which must not be shown, and
values that exclude each other. All problems are named at once.
*/}}
{{- define "fedlearn.check" -}}
{{- $problems := list -}}
{{- $values := .Values -}}
{{- $clients := $values.config.kubernetes -}}
{{- $policy := $values.networkPolicy -}}
{{- if not $values.site.name -}}
{{- $problems = append $problems "site.name: is required, the name of the site as in `fedlearn site token NAME`" -}}
{{- else if not (regexMatch "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" $values.site.name) -}}
{{- $problems = append $problems (printf "site.name: must be 1 to 63 of a-z, 0-9 and \"-\", not starting or ending with \"-\"; it is %q" $values.site.name) -}}
{{- end -}}
{{- if not (regexMatch "^(\\s*fedlearn-join-[A-Za-z0-9_-]+\\s*)?$" $values.enrollment.token) -}}
{{- $problems = append $problems "enrollment.token: is not a join token, which begins with \"fedlearn-join-\"; pass the file that `fedlearn site token` wrote (--set-file enrollment.token=token.txt); the value is not shown" -}}
{{- end -}}
{{- with include "fedlearn.secretNameProblem" (list "enrollment.existingSecret" $values.enrollment.existingSecret) }}{{ $problems = append $problems . }}{{ end -}}
{{- with include "fedlearn.digestProblem" (list "image" $values.image) }}{{ $problems = append $problems . }}{{ end -}}
{{- with include "fedlearn.digestProblem" (list "client.image" $values.client.image) }}{{ $problems = append $problems . }}{{ end -}}
{{- if $values.ccnp.enabled -}}
{{- with include "fedlearn.digestProblem" (list "ccnp.image" $values.ccnp.image) }}{{ $problems = append $problems . }}{{ end -}}
{{- end -}}
{{- if has $clients.workload (list "confidential-cluster" "kubevirt") -}}
{{- if has $values.workloads.podSecurity (list "restricted" "baseline") -}}
{{- $problems = append $problems (printf "workloads.podSecurity: %q does not admit clients of the workload %q, which use devices or folders of the node; leave it empty, or use \"privileged\"" $values.workloads.podSecurity $clients.workload) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $clients.workload "kubevirt") (not $clients.tee) -}}
{{- $problems = append $problems "config.kubernetes.tee: is required for the workload \"kubevirt\": \"tdx\" or \"snp\"" -}}
{{- end -}}
{{- if and (eq $clients.workload "kubevirt") $clients.runtime_class -}}
{{- $problems = append $problems "config.kubernetes.runtime_class: must be empty for the workload \"kubevirt\": a virtual machine has none" -}}
{{- end -}}
{{- range $tee := list "tdx" "snp" -}}
{{- if and $clients.tee (hasSuffix (printf "-%s" $tee) ($clients.runtime_class | default "")) (ne $clients.tee $tee) -}}
{{- $problems = append $problems (printf "config.kubernetes.tee: is %q, but config.kubernetes.runtime_class is for %q" $clients.tee $tee) -}}
{{- end -}}
{{- end -}}
{{- if and $policy.enabled (not $policy.insecureAnyAddress) -}}
{{- if not $policy.coordinator.to -}}
{{- $problems = append $problems "networkPolicy.coordinator.to: is empty, and clients could send records to any address; name the coordinator's, e.g. [{ipBlock: {cidr: 192.0.2.7/32}}], or set networkPolicy.insecureAnyAddress" -}}
{{- end -}}
{{- if and (eq $clients.workload "confidential-containers") $policy.registry.ports (not $policy.registry.to) -}}
{{- $problems = append $problems "networkPolicy.registry.to: is empty, and clients could send records to any address; name the registry's, e.g. [{ipBlock: {cidr: 192.0.2.9/32}}], empty networkPolicy.registry.ports where guests pull no image, or set networkPolicy.insecureAnyAddress" -}}
{{- end -}}
{{- end -}}
{{- with $problems -}}
{{- fail (join "\n" .) -}}
{{- end -}}
{{- end -}}
