{{/*
The router's configuration. It only ever guesses which replica is best: every replica answers for every adapter, so an id
that it does not find, or a wrong one, costs a load and no answer.
*/}}
{{- define "adaptermux.haproxy" -}}
{{- $name := include "adaptermux.fullname" . }}
{{- $router := .Values.router }}
global
  log stdout format raw local0 notice
  maxconn {{ $router.maxConnections }}
  tune.bufsize {{ $router.bufferBytes }}
  hard-stop-after {{ add .Values.drain.requestsS .Values.drain.marginS }}s

resolvers cluster
  parse-resolv-conf
  resolve_retries 3
  timeout resolve 1s
  timeout retry 1s
  hold valid 5s
  hold obsolete 10s

defaults
  mode http
  log global
  option dontlognull
  option forwardfor
  option redispatch 1
  retries 2
  timeout connect 2s
  timeout check 5s
  timeout client {{ $router.timeoutS }}s
  timeout server {{ $router.timeoutS }}s
  timeout queue 10s
  timeout http-request 30s
  timeout http-keep-alive 75s  # longer than a balancer in front keeps a connection

frontend api
  bind :8080

  acl is_stream path /v1/classify/batch
  acl is_change method PUT DELETE
  acl is_change path /v1/load_lora_adapter /v1/unload_lora_adapter /load_lora_adapter /unload_lora_adapter
  acl is_change path_beg /v2/repository/

  http-request deny deny_status 404 if { path /metrics }  # of one replica only; Prometheus asks each of them
  {{- if eq $router.changes "refuse" }}
  http-request return status 409 content-type application/problem+json string '{"type":"about:blank","title":"Conflict","status":409,"code":"conflict","detail":"this service has several replicas, and a change would reach one of them; change the list or the bucket that they follow"}' if is_change
  {{- end }}

  # The adapter: in the path, else in the header, else in the body; without its version, so that all of them lie together.
  http-request set-var(txn.adapter) path,field(4,/),url_dec,field(1,@) if { path_beg /v1/adapters/ } or { path_beg /v2/models/ }
  http-request set-var(txn.adapter) path,field(4,/),field(1,:),url_dec,field(1,@) if { path_beg /v1/models/ }
  http-request set-var(txn.adapter) path,field(3,/),url_dec,field(1,@) if { path_beg /models/ } or { path_beg /tei/ }
  http-request set-var(txn.adapter) req.hdr(x-adapter-id),field(1,@) if !{ var(txn.adapter) -m found } { req.hdr(x-adapter-id) -m found }
  # whole, as far as it fits: to find the adapter, and since only what is there as a whole can be sent again
  http-request wait-for-body time 30s if METH_POST !is_stream !is_change
  http-request set-var(txn.adapter) req.body,json_query('$.adapter_id'),field(1,@) if METH_POST { path /v1/classify } !{ var(txn.adapter) -m found }
  http-request set-var(txn.adapter) req.body,json_query('$.model'),field(1,@) if METH_POST { path /classify } !{ var(txn.adapter) -m found }

  # A classification changes nothing, so it may be asked twice; a stream has been read, and a change may have been made.
  http-request set-var(txn.is_safe) bool(true) if !is_stream !is_change
  default_backend replicas

backend replicas
  balance hash var(txn.adapter)
  hash-type consistent sdbm avalanche
  hash-balance-factor {{ $router.balancePercent }}
  option httpchk
  http-check send meth GET uri /health/ready
  http-check expect status 200
  retry-on conn-failure empty-response
  http-request set-timeout server 1h if { path /v1/classify/batch }
  http-request disable-l7-retry if !{ var(txn.is_safe) -m bool }
  default-server check inter 1s fastinter 500ms fall 3 rise 2 weight 100 resolvers cluster init-addr none
  # by number: a replica that comes back takes the adapters that it had, whatever its address
  {{- range $number := until (int (include "adaptermux.mostReplicas" .)) }}
  server replica-{{ $number }} {{ $name }}-{{ $number }}.{{ $name }}-pods.{{ $.Release.Namespace }}.svc.{{ $router.clusterDomain }}:8000
  {{- end }}

frontend metrics
  bind :8404
  monitor-uri /ready
  monitor fail if { nbsrv(replicas) lt 1 }
  http-request use-service prometheus-exporter if { path /metrics }
  http-request return status 200 if { path /live }
{{- end }}
