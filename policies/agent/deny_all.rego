# Denies every request: what a guest in a TEE starts with, until init-data brings the owner's policy.
package agent_policy

default AllowRequestsFailingPolicy := false

default SetPolicyRequest := false
