# Releases to guests of which every part is affirmed by the default appraisal policy and none is
# simulated. A part that could not be judged is no reason to trust, so it is a reason to refuse. A guest
# may choose the policy that appraises it: only a release policy of the owner's may accept another than
# the default, by its name.
package policy

default allow := false

allow if {
	data.plugin == "resource"
	count(parts) == count(input.submods)
	{part.holds | some part in parts} == {[true, true, true]}
}

parts := [{
	"holds": [real, chosen, affirmed],
	"judgements": [
		{
			"claim": ["submods", name, "ear.veraison.annotated-evidence"],
			"expected": "no simulated evidence",
			"found": simulated,
			"holds": real,
			"fix": "run the guest in a TEE, or for development set a release policy that asks for this kind by name",
		},
		{
			"claim": ["submods", name, "ear.appraisal-policy-id"],
			"expected": "default",
			"found": appraiser,
			"holds": chosen,
			"fix": "start the guest without a policy selector, or set a release policy that accepts this appraisal policy by name",
		},
		{
			"claim": ["submods", name, "ear.status"],
			"expected": "affirming",
			"found": status,
			"holds": affirmed,
			"fix": "register reference values for what this guest runs, or set a release policy that names it",
		},
	],
} |
	some name, submod in input.submods
	kinds := object.keys(object.get(submod, "ear.veraison.annotated-evidence", {}))
	simulated := kinds & {"sample", "sampledevice", "sim-snp", "sim-tdx"}
	appraiser := object.get(submod, "ear.appraisal-policy-id", null)
	status := object.get(submod, "ear.status", null)
	real := simulated == set()
	chosen := appraiser == "default"
	affirmed := status == "affirming"
]

judgements := [
	{
		"claim": "data.plugin",
		"expected": "resource",
		"found": data.plugin,
		"holds": data.plugin == "resource",
		"fix": "the default policy releases resources only: write a rule for this plugin",
	},
	{
		"claim": "submods",
		"expected": "at least one appraised part",
		"found": count(parts),
		"holds": count(parts) > 0,
		"fix": "the token appraises nothing: attest again",
	},
	[part.judgements | some part in parts],
]
