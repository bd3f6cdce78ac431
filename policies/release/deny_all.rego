# Releases nothing.
package policy

default allow := false

reasons contains {
	"claim": "data.policy.allow",
	"expected": "true",
	"found": "this broker's policy releases nothing",
	"fix": "set a release policy: kbs policy set --file FILE",
}
