"""Real parts that tests start: federations, clusters, nodes, Envoy, a coordinator's parts."""
