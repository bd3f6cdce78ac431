# Asks the owner's appraisal policy for all at once: a second question would evaluate it from the start.
# A rule that it does not have gives an empty list.
package cloister_appraisal

answer := {
	"trust_claims": [value | value := data.policy.trust_claims],
	"judgements": [value | value := data.policy.judgements],
	"reasons": [value | value := data.policy.reasons],
	"extensions": [value | value := data.policy.extensions],
}
