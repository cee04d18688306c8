{{/* Prefix of all names. 40 characters leave room for "-controller" and for a StatefulSet's suffixes. */}}
{{- define "pyrite.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-pyrite" .Release.Name) (contains "pyrite" .Release.Name) -}}
{{- default $name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of all the release's pods; the controller sets the same labels on the pods that it creates. */}}
{{- define "pyrite.selector" -}}
app.kubernetes.io/name: pyrite
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of objects, not of pods: in a pod template they would restart vLLM with every version of the chart. */}}
{{- define "pyrite.labels" -}}
{{ include "pyrite.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image reference: list $ .Values.server.image */}}
{{- define "pyrite.image" -}}
{{- $image := index . 1 -}}
{{ $image.repository }}:{{ default (index . 0).Chart.AppVersion $image.tag }}
{{- end -}}

{{/* Reference of an image that Pyrite's scripts build: list $ .Values.worker.image */}}
{{- define "pyrite.ownImage" -}}
{{- with (index . 0).Values.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- include "pyrite.image" . -}}
{{- end -}}

{{/* Name of a component's service account: list $ "worker" .Values.worker. If it is neither created here nor named, the
pods use the namespace's default. */}}
{{- define "pyrite.serviceAccountName" -}}
{{- $account := (index . 2).serviceAccount -}}
{{- $created := printf "%s-%s" (include "pyrite.fullname" (index . 0)) (index . 1) -}}
{{- default (ternary $created "default" $account.create) $account.name -}}
{{- end -}}

{{/* Restricted Pod Security, for pods */}}
{{- define "pyrite.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Restricted Pod Security, for containers */}}
{{- define "pyrite.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 65532
runAsGroup: 65532
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Scheduling fields of a component's pods: list $ .Values.worker */}}
{{- define "pyrite.placement" -}}
{{- $placement := dict -}}
{{- with (index . 0).Values.imagePullSecrets }}{{ $_ := set $placement "imagePullSecrets" . }}{{ end -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" -}}
{{- with index (index $ 1) $name }}{{ $_ := set $placement $name . }}{{ end -}}
{{- end -}}
{{- with $placement }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Environment variables that locate the store, for controller and workers */}}
{{- define "pyrite.storeEnv" -}}
- {name: PYRITE_STORE, value: {{ .Values.store.url | quote }}}
{{- with .Values.store.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- with .Values.store.endpointUrl }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.store.kmsKey }}
- {name: PYRITE_S3_KMS_KEY, value: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* Store credentials from a Secret, if set */}}
{{- define "pyrite.storeEnvFrom" -}}
{{- with .Values.store.existingSecret -}}
- secretRef: {name: {{ . | quote }}}
{{- end -}}
{{- end -}}

{{/* Hugging Face token, if set */}}
{{- define "pyrite.hubToken" -}}
{{- with .Values.huggingface -}}
{{- if .existingSecret -}}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .key | quote }}}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Environment variables of all workers */}}
{{- define "pyrite.workerEnv" -}}
{{ include "pyrite.storeEnv" . }}
{{ if .Values.networkPolicy.allowHub -}}
{{ include "pyrite.hubToken" . }}
{{- else -}}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- with .Values.worker.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Addresses of the chart's servers or of judge.urls, as a YAML list. Each replica has its own name: workers choose one
per query, so that all pairs of a query use the same prefix cache. */}}
{{- define "pyrite.judgeUrls" -}}
{{- if .Values.server.enabled -}}
{{- if .Values.judge.urls }}{{ fail "judge.urls and server.enabled exclude each other; unset one of them" }}{{ end -}}
{{- $server := include "pyrite.server" . -}}
{{- range $index := until (int .Values.server.replicas) }}
- http://{{ $server }}-{{ $index }}.{{ $server }}:8000
{{- end -}}
{{- else -}}
{{ toYaml .Values.judge.urls }}
{{- end -}}
{{- end -}}

{{/* Name of the server's StatefulSet and Service. Never just "vllm": a Service of that name sets VLLM_PORT. */}}
{{- define "pyrite.server" -}}
{{ include "pyrite.fullname" . }}-vllm
{{- end -}}

{{/* Port of a URL */}}
{{- define "pyrite.port" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) $port -}}
{{- end -}}

{{/* TCP ports of a NetworkPolicy rule, from a list of numbers */}}
{{- define "pyrite.ports" -}}
{{- range . -}}
- {protocol: TCP, port: {{ int . }}}
{{ end -}}
{{- end -}}

{{/* Peers of a NetworkPolicy rule: list PEERS PRIVATE. Without PEERS, all public addresses and, if PRIVATE is not
empty, all private ones. Private ranges are peers of their own: the EKS VPC CNI denies what any policy of the pod
lists in `except`, even if another policy allows it, unless that range is itself a peer. */}}
{{- define "pyrite.peers" -}}
{{- $private := list "10.0.0.0/8" "100.64.0.0/10" "172.16.0.0/12" "192.168.0.0/16" -}}
{{- if index . 0 -}}
{{ toYaml (index . 0) }}
{{- else -}}
- ipBlock: {cidr: 0.0.0.0/0, except: {{ append $private "169.254.0.0/16" | toJson }}}
{{- if index . 1 }}
{{- range $private }}
- ipBlock: {cidr: {{ . }}}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}
