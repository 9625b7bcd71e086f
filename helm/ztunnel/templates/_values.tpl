{{/* What counts of all values given: defaults < profile < platform < global < top level. Left in .Values.resolved, once. */}}
{{- define "ztunnel.resolve" -}}
{{- /* global.priorityClassName is for the other charts: this one's pods stand above it. */ -}}
{{- if not (hasKey .Values "resolved") -}}
{{- $v := deepCopy .Values.defaults -}}
{{- $given := deepCopy (omit .Values "defaults" "global" "enabled" "defaultRevision" "_internal_defaults_do_not_set") -}}
{{- $global := dict -}}
{{- range $key, $value := deepCopy (.Values.global | default dict) -}}
{{- if and (hasKey $v $key) (ne $key "priorityClassName") -}}{{- $_ := set $global $key $value -}}{{- end -}}
{{- end -}}
{{- range $key := keys $given | sortAlpha -}}
{{- if not (hasKey $v $key) -}}
{{- fail (printf "%s: this chart has no such value; it has %s" $key (keys $v | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- include "ztunnel.overlay" (dict "onto" (dict "v" $v) "from" (dict "v" (include "ztunnel.presets" (dict "Files" .Files "given" $given "global" $global) | fromYaml))) -}}
{{- include "ztunnel.overlay" (dict "onto" (dict "v" $v) "from" (dict "v" $global)) -}}
{{- include "ztunnel.overlay" (dict "onto" (dict "v" $v) "from" (dict "v" $given)) -}}
{{- $_ := set .Values "resolved" $v -}}
{{- include "ztunnel.derive" . -}}
{{- include "ztunnel.refuse" . -}}
{{- end -}}
{{- end -}}

{{/* Puts the map `from` over the map `onto`, in place: maps are merged, everything else replaced, null takes away. */}}
{{- define "ztunnel.overlay" -}}
{{- range $key, $value := .from -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $.onto $key)) -}}
{{- include "ztunnel.overlay" (dict "onto" (get $.onto $key) "from" $value) -}}
{{- else if kindIs "invalid" $value -}}
{{- $_ := unset $.onto $key -}}
{{- else -}}
{{- $_ := set $.onto $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The presets of profile and platform, merged, as YAML. */}}
{{- define "ztunnel.presets" -}}
{{- $profile := coalesce (get .given "profile") (get .global "profile") | default "" -}}
{{- $platform := coalesce (get .given "platform") (get .global "platform") | default "" -}}
{{- $profiles := list "ambient" "default" "demo" "empty" "minimal" "openshift" "openshift-ambient" "preview" "remote" "stable" -}}
{{- $platforms := list "aks" "eks" "gke" "k3d" "k3s" "kind" "microk8s" "minikube" "openshift" -}}
{{- if and $profile (not (has $profile $profiles)) -}}
{{- fail (printf "profile=%s is not known; profiles are %s" $profile (join ", " $profiles)) -}}
{{- end -}}
{{- if and $platform (not (has $platform $platforms)) -}}
{{- fail (printf "platform=%s is not known; platforms are %s, or leave it empty" $platform (join ", " $platforms)) -}}
{{- end -}}
{{- $names := list -}}
{{- if hasSuffix "ambient" $profile -}}{{- $names = append $names "profile-ambient" -}}{{- end -}}
{{- if hasPrefix "openshift" $profile -}}{{- $names = append $names "platform-openshift" -}}{{- end -}}
{{- $names = append $names (printf "platform-%s" $platform) -}}
{{- $out := dict -}}
{{- range $names -}}
{{- with $.Files.Get (printf "files/presets/%s.yaml" .) -}}
{{- include "ztunnel.overlay" (dict "onto" (dict "v" $out) "from" (dict "v" (fromYaml .))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $out -}}
{{- end -}}

{{/* What follows from the values: the name, whether we are on OpenShift, who captures, the grace period. */}}
{{- define "ztunnel.derive" -}}
{{- $v := .Values.resolved -}}
{{- $_ := set $v "name" ($v.resourceName | default "ztunnel") -}}
{{- $_ := set $v "openshift" (or (eq (toString $v.platform) "openshift") (hasPrefix "openshift" (toString $v.profile))) -}}
{{- if eq $v.capture "auto" -}}
{{- $_ := set $v "capture" (ternary "ebpf" "external" (eq $v.enroll "kubernetes")) -}}
{{- end -}}
{{- $grace := int64 $v.terminationGracePeriodSeconds -}}
{{- if $v.drainMax -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 -}}
{{- $seconds := int64 0 -}}
{{- range regexFindAll "[0-9]+[smh]" $v.drainMax -1 -}}
{{- $seconds = add $seconds (mul (int64 (trimSuffix (substr (sub (len .) 1 | int) -1 .) .)) (get $units (substr (sub (len .) 1 | int) -1 .))) -}}
{{- end -}}
{{- $grace = max $grace (add $seconds 5) -}}
{{- end -}}
{{- $_ := set $v "grace" $grace -}}
{{- $_ := set $v "cluster" (ne $v.resourceScope "namespace") -}}
{{- $_ := set $v "namespaced" (ne $v.resourceScope "cluster") -}}
{{- end -}}

{{/* Combinations that cannot work, each with the alternatives. What one value may be is values.schema.json. */}}
{{- define "ztunnel.refuse" -}}
{{- $v := .Values.resolved -}}
{{- if and (eq $v.enroll "zds") (eq $v.capture "ebpf") -}}
{{- fail "enroll=zds with capture=ebpf: istio-cni redirects the pods it tells of, so connections would be captured twice. Set capture=external (or auto), or enroll=kubernetes to go without istio-cni" -}}
{{- end -}}
{{- if and (eq $v.enroll "kubernetes") (not (contains "/" $v.image)) (hasPrefix "registry.istio.io/" $v.hub) -}}
{{- fail (printf "enroll=kubernetes with hub=%s: Istio's own image only knows enroll=zds. Set hub and tag, or image, to an image of this project" $v.hub) -}}
{{- end -}}
{{- range $owner, $names := dict "enroll" (list "ENROLL" "ENROLL_FILE") "capture" (list "CAPTURE" "HOST_PROC") "hold" (list "HOLD" "HOLD_TIMEOUT" "HOLD_POLICY") "drainMax" (list "DRAIN_MAX" "CONNECTION_TERMINATION_DEADLINE") "terminationGracePeriodSeconds" (list "TERMINATION_GRACE_PERIOD_SECONDS") -}}
{{- range $names -}}
{{- if or (hasKey ($v.env | default dict) .) (hasKey ($v.meshConfig.defaultConfig.proxyMetadata | default dict) .) -}}
{{- if not (and (eq . "CONNECTION_TERMINATION_DEADLINE") (not $v.drainMax)) -}}
{{- fail (printf "env.%s: mounts and grace period would not follow it. Set the value %s instead" . $owner) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $rolling := (($v.updateStrategy | default dict).rollingUpdate) | default dict -}}
{{- $none := list "" "0" "0%" "<nil>" -}}
{{- if not (or (has (toString $rolling.maxSurge) $none) (has (toString $rolling.maxUnavailable) $none)) -}}
{{- fail (printf "updateStrategy.rollingUpdate.maxUnavailable=%v with maxSurge=%v: Kubernetes takes only one of them. Set maxSurge: 0 to replace without an overlap, or maxUnavailable: 0" $rolling.maxUnavailable $rolling.maxSurge) -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled $v.podMonitor.enabled -}}
{{- fail "serviceMonitor.enabled with podMonitor.enabled: every sample would be taken twice. Choose one of them" -}}
{{- end -}}
{{- if and $v.appArmorProfile (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "appArmorProfile with Kubernetes %s: the field is of 1.30. Set the annotation container.apparmor.security.beta.kubernetes.io/istio-proxy by podAnnotations" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (eq $v.enroll "kubernetes") (not $v.priorityClassName) -}}
{{- fail "enroll=kubernetes without priorityClassName: pods that wait for their place in the mesh must not keep the daemon out. Set system-node-critical or a class of your own" -}}
{{- end -}}
{{- end -}}

{{/* The image. */}}
{{- define "ztunnel.image" -}}
{{- $v := .Values.resolved -}}
{{- if contains "/" $v.image -}}
{{- $v.image -}}
{{- else -}}
{{- printf "%s/%s:%s" $v.hub $v.image (toString $v.tag) -}}{{- with $v.variant -}}-{{ . }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* istiod's address, without a scheme. */}}
{{- define "ztunnel.istiod" -}}
{{- $v := .Values.resolved -}}
istiod{{- with $v.revision -}}-{{ . }}{{- end -}}.{{ $v.istioNamespace }}.svc:15012
{{- end -}}

{{/* metadata of an object, below `metadata:`; the name may be another than the chart's. */}}
{{- define "ztunnel.metadata" -}}
{{- $v := .root.Values.resolved -}}
{{- $labels := dict "app" "ztunnel" "app.kubernetes.io/name" "ztunnel" "app.kubernetes.io/instance" .root.Release.Name "app.kubernetes.io/managed-by" .root.Release.Service "app.kubernetes.io/part-of" "istio" "app.kubernetes.io/version" .root.Chart.AppVersion "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version) -}}
{{- with $v.ownerName -}}{{- $_ := set $labels "install.operator.istio.io/owning-resource" . -}}{{- end -}}
{{- include "ztunnel.overlay" (dict "onto" (dict "v" $labels) "from" (dict "v" ($v.labels | default dict))) -}}
{{- with .labels -}}{{- include "ztunnel.overlay" (dict "onto" (dict "v" $labels) "from" (dict "v" .)) -}}{{- end -}}
name: {{ .name | default $v.name }}
{{- if not .cluster }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- $annotations := deepCopy ($v.annotations | default dict) -}}
{{- with $v.revision -}}{{- $_ := set $annotations "istio.io/rev" . -}}{{- end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
