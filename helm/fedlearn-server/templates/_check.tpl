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
{{- $protect := $values.config.keys.protect -}}
{{- with include "fedlearn.digestProblem" (list "image" $values.image) }}{{ $problems = append $problems . }}{{ end -}}
{{- if $values.front.enabled -}}
{{- with include "fedlearn.digestProblem" (list "front.image" $values.front.image) }}{{ $problems = append $problems . }}{{ end -}}
{{- end -}}
{{- if not $values.config.trust_domain -}}
{{- $problems = append $problems "config.trust_domain: is required, a lower-case DNS name such as \"hospitals.example\": it is in all certificates and cannot change later" -}}
{{- end -}}
{{- if not $protect -}}
{{- $problems = append $problems "config.keys.protect: is required, what opens the root key: \"tpm-policy\", \"recovery-key\", \"passphrase\", or several of them" -}}
{{- end -}}
{{- if and (has "insecure-plain-key-file" $protect) (gt (len $protect) 1) -}}
{{- $problems = append $problems "config.keys.protect: \"insecure-plain-key-file\" must be the only protector: it leaves the key readable" -}}
{{- end -}}
{{- if and (has "recovery-key" $protect) (not $values.keys.recoveryKey) -}}
{{- $problems = append $problems "keys.recoveryKey: config.keys.protect names \"recovery-key\", which needs the public X25519 key in PEM (--set-file keys.recoveryKey=recovery.pub.pem)" -}}
{{- end -}}
{{- if not (regexMatch "^(\\s*-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----\\s*)?$" $values.keys.recoveryKey) -}}
{{- $problems = append $problems "keys.recoveryKey: must be one public key in PEM (`openssl pkey -in recovery.pem -pubout`); the value is not shown" -}}
{{- end -}}
{{- if and (has "passphrase" $protect) (not $values.keys.passphrase.existingSecret) -}}
{{- $problems = append $problems "keys.passphrase.existingSecret: config.keys.protect names \"passphrase\", which needs the Secret that holds it" -}}
{{- end -}}
{{- with include "fedlearn.secretNameProblem" (list "keys.passphrase.existingSecret" $values.keys.passphrase.existingSecret) }}{{ $problems = append $problems . }}{{ end -}}
{{- if and .Release.IsInstall (not $values.operator.csr) (not $values.operator.insecureKeyInPod) -}}
{{- $problems = append $problems "operator.csr: the first operator's request is missing; `fedlearn operator request NAME` makes it where the key is to stay (--set-file operator.csr=operator.csr)" -}}
{{- end -}}
{{- if not (regexMatch "^(\\s*-----BEGIN (NEW )?CERTIFICATE REQUEST-----[^-]*-----END (NEW )?CERTIFICATE REQUEST-----\\s*)?$" $values.operator.csr) -}}
{{- $problems = append $problems "operator.csr: must be one certification request in PEM, as `fedlearn operator request NAME` makes it; the value is not shown" -}}
{{- end -}}
{{- $times := $values.config.certificates | default dict -}}
{{- range $pair := list (list "renew_after_s" "renew_by_s" "below") (list "renew_by_s" "client_s" "at most") -}}
{{- $first := index $pair 0 -}}
{{- $second := index $pair 1 -}}
{{- if and (hasKey $times $first) (hasKey $times $second) -}}
{{- $one := int (get $times $first) -}}
{{- $two := int (get $times $second) -}}
{{- if or (gt $one $two) (and (eq $one $two) (eq (index $pair 2) "below")) -}}
{{- $problems = append $problems (printf "config.certificates.%s: must be %s config.certificates.%s, which is %d, not %d" $first (index $pair 2) $second $two $one) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.tlsRoute.enabled (not $values.tlsRoute.gateway.name) -}}
{{- $problems = append $problems "tlsRoute.gateway.name: is required with tlsRoute.enabled, the Gateway whose listeners pass TLS through" -}}
{{- end -}}
{{- if and $values.front.enabled (ne $values.mesh "none") -}}
{{- $problems = append $problems "front.enabled: a mesh brings its own gateway (meshOptions.gateways); use one of the two" -}}
{{- end -}}
{{- with $problems -}}
{{- fail (join "\n" .) -}}
{{- end -}}
{{- end -}}
