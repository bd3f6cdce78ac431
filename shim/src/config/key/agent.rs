//! `[agent.kata]`: the guest's agent.

use std::time::Duration;

use toml::Value;

use super::Kind::{Number, Switch, Text, Words};
use super::{Allowed, Honoured, Keys, Moot, Only, Set};
use crate::config::timeout;

/// The word that makes the agent say more.
const DEBUG: &str = "cloister.log=debug";

/// The table.
pub(super) static KEYS: Keys = Keys {
    honoured: HONOURED,
    moot: MOOT,
    only: ONLY,
};

const HONOURED: &[Honoured] = &[
    // Kata's Go runtime has this one alone, in seconds; where both are set the other counts.
    Honoured {
        name: "dial_timeout",
        set: Set::Number(|config, seconds| {
            config.boot_timeout = timeout(Duration::from_secs(seconds))?;
            Ok(())
        }),
        get: |config| seconds(config.boot_timeout),
    },
    Honoured {
        name: "reconnect_timeout_ms",
        set: Set::Number(|config, millis| {
            config.boot_timeout = timeout(Duration::from_millis(millis))?;
            Ok(())
        }),
        get: |config| {
            let millis = i64::try_from(config.boot_timeout.as_millis());
            Value::from(millis.unwrap_or(i64::MAX))
        },
    },
    Honoured {
        name: "create_container_timeout",
        set: Set::Number(|config, seconds| {
            config.create_timeout = timeout(Duration::from_secs(seconds))?;
            Ok(())
        }),
        get: |config| seconds(config.create_timeout),
    },
    Honoured {
        name: "enable_debug",
        set: Set::Switch(|config, on| {
            let words = &mut config.vm.kernel_params;
            if on && !words.iter().any(|word| word.starts_with("cloister.log=")) {
                words.push(DEBUG.to_owned());
            }
        }),
        get: |config| Value::from(config.vm.kernel_params.iter().any(|word| word == DEBUG)),
    },
];

const MOOT: &[Moot] = &[
    Moot {
        why: "the guest's phases are in the shim's traces, which enable_tracing in [runtime] turns on",
        keys: &[("enable_tracing", Switch)],
    },
    Moot {
        why: "the agent says by itself when it is ready, and holds its own deadlines in the guest",
        keys: &[
            ("dial_timeout_ms", Number),
            ("cdh_api_timeout", Number),
            ("cdh_api_timeout_ms", Number),
            ("launch_process_timeout", Number),
            ("image_pull_timeout", Number),
            ("health_check_request_timeout_ms", Number),
            ("log_level", Text),
            ("container_pipe_size", Number),
            ("passfd_listener_port", Number),
        ],
    },
    Moot {
        why: "counts for Kata's memory agent, which mem_agent_enable would ask for",
        keys: &[
            ("mem_agent.memcg_disable", Switch),
            ("mem_agent.memcg_swap", Switch),
            ("mem_agent.memcg_swappiness_max", Number),
            ("mem_agent.memcg_period_secs", Number),
            ("mem_agent.memcg_period_psi_percent_limit", Number),
            ("mem_agent.memcg_eviction_psi_percent_limit", Number),
            ("mem_agent.memcg_eviction_run_aging_count_min", Number),
            ("mem_agent.compact_disable", Switch),
            ("mem_agent.compact_period_secs", Number),
            ("mem_agent.compact_period_psi_percent_limit", Number),
            ("mem_agent.compact_psi_percent_limit", Number),
            ("mem_agent.compact_sec_max", Number),
            ("mem_agent.compact_order", Number),
            ("mem_agent.compact_threshold", Number),
            ("mem_agent.compact_force_times", Number),
        ],
    },
];

const ONLY: &[Only] = &[
    Only {
        allowed: Allowed::Nothing,
        why: "a console into the guest would let the host in",
        fix: "set it to false; `exec` goes through the owner's policy",
        keys: &[("debug_console_enabled", Switch)],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "the policy of a guest is its owner's, and the host's word does not replace it",
        fix: "put it into init-data as policy.rego",
        keys: &[("policy", Text)],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "the guest loads no modules but those of its own image",
        fix: "remove it",
        keys: &[("kernel_modules", Words)],
    },
    Only {
        allowed: Allowed::Number(1024),
        why: "the agent's port is part of the contract between host and guest",
        fix: "remove it, or use 1024",
        keys: &[("server_port", Number)],
    },
    Only {
        allowed: Allowed::Number(1025),
        why: "the agent's log comes by the console and beside its phases, and needs no port of its own",
        fix: "remove it, or use 1025",
        keys: &[("log_port", Number)],
    },
    Only {
        allowed: Allowed::Nothing,
        why: "there is no such part in Cloister's agent",
        fix: "set it to false",
        keys: &[
            ("visible_cdi_devices", Switch),
            ("mem_agent.mem_agent_enable", Switch),
            ("mem_agent.enable", Switch),
        ],
    },
];

fn seconds(duration: Duration) -> Value {
    Value::from(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX))
}
