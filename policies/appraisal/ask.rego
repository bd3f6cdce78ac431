# Asks the owner's appraisal policy; a rule that it does not have is undefined.
package cloister_appraisal

trust_claims := data.policy.trust_claims

reasons := data.policy.reasons

extensions := data.policy.extensions
