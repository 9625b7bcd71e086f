{{/* A value as the text that an environment variable holds. */}}
{{- define "ztunnel.text" -}}
{{- if kindIs "string" . -}}{{- . -}}{{- else -}}{{- toJson . -}}{{- end -}}
{{- end -}}

{{/* Environment of the container. The user's entries replace the chart's of the same name, so that no name stands twice. */}}
{{- define "ztunnel.env" -}}
{{- $v := .Values.resolved -}}
{{- $env := dict
  "CA_ADDRESS" ($v.caAddress | default (include "ztunnel.istiod" .))
  "XDS_ADDRESS" ($v.xdsAddress | default (include "ztunnel.istiod" .))
  "RUST_LOG" $v.logLevel
  "RUST_BACKTRACE" "1"
  "ISTIO_META_CLUSTER_ID" ($v.multiCluster.clusterName | default "Kubernetes")
  "INPOD_ENABLED" "true"
  "TERMINATION_GRACE_PERIOD_SECONDS" (toString $v.grace) -}}
{{- if $v.logAsJson -}}{{- $_ := set $env "LOG_FORMAT" "json" -}}{{- end -}}
{{- with $v.network -}}{{- $_ := set $env "NETWORK" . -}}{{- end -}}
{{- if $v.peerCaCrl.enabled -}}{{- $_ := set $env "CRL_PATH" "/var/run/secrets/istio/crl/ca-crl.pem" -}}{{- end -}}
{{- with $v.drainMax -}}{{- $_ := set $env "DRAIN_MAX" . -}}{{- end -}}
{{- if eq $v.enroll "kubernetes" -}}
{{- $_ := set $env "ENROLL" "kubernetes" -}}
{{- $_ := set $env "CAPTURE" $v.capture -}}
{{- $_ := set $env "HOST_PROC" "/host/proc" -}}
{{- end -}}
{{- if eq $v.capture "ebpf" -}}
{{- $_ := set $env "HOLD" (toString $v.hold.enabled) -}}
{{- if $v.hold.enabled -}}
{{- $_ := set $env "HOLD_TIMEOUT" $v.hold.timeout -}}
{{- $_ := set $env "HOLD_POLICY" $v.hold.policy -}}
{{- end -}}
{{- end -}}
{{- range $given := list ($v.meshConfig.defaultConfig.proxyMetadata | default dict) ($v.env | default dict) -}}
{{- range $name, $value := $given -}}
{{- if kindIs "invalid" $value -}}{{- $_ := unset $env $name -}}
{{- else -}}{{- $_ := set $env $name (include "ztunnel.text" $value) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name := keys $env | sortAlpha }}
- name: {{ $name }}
  value: {{ get $env $name | quote }}
{{- end }}
{{- range $name, $field := dict "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" "NODE_NAME" "spec.nodeName" "INSTANCE_IP" "status.podIP" "SERVICE_ACCOUNT" "spec.serviceAccountName" }}
{{- if not (hasKey $env $name) }}
- name: {{ $name }}
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: {{ $field }}
{{- end }}
{{- end }}
{{- $resources := dict "ZTUNNEL_CPU_LIMIT" "limits.cpu" -}}
{{- if (($v.resources | default dict).limits | default dict).cpu -}}{{- $_ := set $resources "ZTUNNEL_RESOURCE_CPU_LIMIT" "limits.cpu" -}}{{- end -}}
{{- if (($v.resources | default dict).requests | default dict).cpu -}}{{- $_ := set $resources "ZTUNNEL_RESOURCE_CPU_REQUEST" "requests.cpu" -}}{{- end -}}
{{- range $name, $resource := $resources }}
{{- if not (hasKey $env $name) }}
- name: {{ $name }}
  valueFrom:
    resourceFieldRef:
      resource: {{ $resource }}
      divisor: "1"
{{- end }}
{{- end }}
{{- end -}}
