# Asks the owner's policy for all at once: the claims become `input`, and the request `data`, as Trustee
# has them. Data that came in by the engine's own door would have the policy analysed again for each
# request; what nearly every request has in common is there from the start, and `asked` itself is the
# question to a policy that does not look at the rest. A rule that the policy does not have gives an empty
# list.
package cloister_release

plain := value if {
	value := asked with input as input.claims
		with data["resource-path"] as input.path
}

answer := value if {
	value := asked with input as input.claims
		with data["resource-path"] as input.path
		with data.plugin as input.plugin
		with data.query as input.query
		with data.method as input.method
}

asked := {
	"allow": [value | value := data.policy.allow],
	"judgements": [value | value := data.policy.judgements],
	"reasons": [value | value := data.policy.reasons],
}
