# Asks the owner's policy: the claims become `input`, and the request `data`, as Trustee has them. Data
# that came in by the engine's own door would have the policy analysed again for each request.
package cloister_release

allow := value if {
	value := data.policy.allow with input as input.claims
		with data.plugin as input.plugin
		with data["resource-path"] as input.path
		with data.query as input.query
}

reasons := value if {
	value := data.policy.reasons with input as input.claims
		with data.plugin as input.plugin
		with data["resource-path"] as input.path
		with data.query as input.query
}
