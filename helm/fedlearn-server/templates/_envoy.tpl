{{- define "fedlearn.frontLabels" -}}
{{ include "fedlearn.aside" (list . "front") }}
app.kubernetes.io/component: front
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fedlearn
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Not empty if the proxy has an autoscaler. */}}
{{- define "fedlearn.frontScales" -}}
{{- $range := .Values.front.replicas -}}
{{- if and (gt (int $range.max) (int $range.min)) (.Capabilities.APIVersions.Has "autoscaling/v2") -}}
yes
{{- end -}}
{{- end -}}

{{/*
Envoy's bootstrap. Only TLS with the coordinator's SNI has a filter chain; every other connection is
closed. There is no admin interface and no key.
*/}}
{{- define "fedlearn.envoy" -}}
{{- $root := . -}}
{{- $ports := include "fedlearn.ports" . | fromYaml -}}
static_resources:
  listeners:
  {{- range $port, $number := $ports }}
    - name: {{ $port }}
      address:
        socket_address: {address: 0.0.0.0, port_value: {{ $number }}}
      per_connection_buffer_limit_bytes: 65536
      # A connection without a ClientHello in this time is closed.
      listener_filters_timeout: 5s
      continue_on_listener_filters_timeout: false
      listener_filters:
        - name: envoy.filters.listener.tls_inspector
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector
      filter_chains:
        - filter_chain_match:
            transport_protocol: tls
            server_names: [{{ $root.Values.tlsRoute.hostname | quote }}]
          filters:
            - name: envoy.filters.network.local_ratelimit
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit
                stat_prefix: {{ $port }}
                token_bucket:
                  max_tokens: {{ mul 2 $root.Values.front.limits.connectionsPerSecond }}
                  tokens_per_fill: {{ $root.Values.front.limits.connectionsPerSecond }}
                  fill_interval: 1s
            - name: envoy.filters.network.connection_limit
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit
                stat_prefix: {{ $port }}
                max_connections: {{ $root.Values.front.limits.connections }}
            - name: envoy.filters.network.tcp_proxy
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
                stat_prefix: {{ $port }}
                cluster: {{ $port }}
                # A site's stream has a heartbeat every 15 seconds, so the peer of an idle one is gone.
                idle_timeout: {{ $root.Values.front.limits.idleSeconds }}s
  {{- end }}
    - name: ready
      address:
        socket_address: {address: 0.0.0.0, port_value: 9447}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: ready
                route_config: {}
                http_filters:
                  - name: envoy.filters.http.health_check
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
                      pass_through_mode: false
                      cluster_min_healthy_percentages:
                        gate: {value: 100}
                      headers:
                        - name: ":path"
                          string_match: {exact: /ready}
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  {{- range $port, $number := $ports }}
    - name: {{ $port }}
      type: STRICT_DNS
      connect_timeout: 5s
      health_checks:
        - timeout: 2s
          interval: 5s
          no_traffic_interval: 5s
          unhealthy_threshold: 2
          healthy_threshold: 1
          tcp_health_check: {}
      circuit_breakers:
        thresholds:
          - max_connections: {{ $root.Values.front.limits.connections }}
      upstream_connection_options:
        tcp_keepalive: {keepalive_time: 60, keepalive_interval: 15, keepalive_probes: 4}
      load_assignment:
        cluster_name: {{ $port }}
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address:
                      address: {{ include "fedlearn.name" $root }}-behind.{{ $root.Release.Namespace }}.svc
                      port_value: {{ $number }}
  {{- end }}
overload_manager:
  resource_monitors:
    - name: envoy.resource_monitors.global_downstream_max_connections
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
        max_active_downstream_connections: {{ mul 4 .Values.front.limits.connections }}
{{- end -}}
