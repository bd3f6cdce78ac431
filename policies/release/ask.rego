# Asks the owner's policy for all at once: the claims become `input`, and the request `data`, as Trustee
# has them. Data that came in by the engine's own door would have the policy analysed again for each
# request. A rule that the policy does not have gives an empty list.
package cloister_release

answer := value if {
	value := asked with input as input.claims
		with data.plugin as input.plugin
		with data["resource-path"] as input.path
		with data.query as input.query
		with data.method as input.method
}

asked := {
	"allow": [value | value := data.policy.allow],
	"judgements": [value | value := data.policy.judgements],
	"reasons": [value | value := data.policy.reasons],
}
