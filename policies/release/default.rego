# Releases to guests of which every part is affirmed by the default appraisal policy and none is
# simulated. A part that could not be judged is no reason to trust, so it is a reason to refuse. A guest
# may choose the policy that appraises it: only a release policy of the owner's may accept another than
# the default, by its name.
package policy

default allow := false

# A part of another form gives no judgement of its own, and must not pass for want of one.
allow if {
	count(judgements) == 2 + (3 * count(submods))
	{judgement.holds | some judgement in judgements} == {true}
}

judgements := array.concat(
	[
		{
			"claim": "data.plugin",
			"expected": "resource",
			"found": data.plugin,
			"holds": data.plugin == "resource",
			"rule": "allow",
			"fix": "the default policy releases resources only: write a rule for this plugin",
		},
		{
			"claim": "submods",
			"expected": "at least one appraised part",
			"found": object.keys(submods),
			"holds": count(submods) > 0,
			"rule": "allow",
			"fix": "the token appraises nothing: attest again",
		},
	],
	[judgement |
		some name, submod in submods
		status := object.get(submod, "ear.status", null)
		appraiser := object.get(submod, "ear.appraisal-policy-id", null)
		evidence := object.keys(object.get(submod, "ear.veraison.annotated-evidence", {}))
		some judgement in [
			{
				"claim": ["submods", name, "ear.veraison.annotated-evidence"],
				"expected": "evidence of a hardware TEE",
				"found": evidence & simulated,
				"holds": evidence & simulated == set(),
				"rule": "allow",
				"fix": "run the guest in a TEE, or for development set a release policy that asks for this kind by name",
			},
			{
				"claim": ["submods", name, "ear.appraisal-policy-id"],
				"expected": "default",
				"found": appraiser,
				"holds": appraiser == "default",
				"rule": "allow",
				"fix": "start the guest without a policy selector, or set a release policy that accepts this appraisal policy by name",
			},
			{
				"claim": ["submods", name, "ear.status"],
				"expected": "affirming",
				"found": status,
				"holds": status == "affirming",
				"rule": "allow",
				"fix": "register reference values for what this guest runs, or set a release policy that names it",
			},
		]
	],
)

submods := object.get(input, "submods", {})

simulated := {"sample", "sampledevice", "sim-snp", "sim-tdx"}
