//! From the request's seccomp profile to OCI's.
//!
//! Everything is checked here, by name, before any process is made: what libseccomp would refuse, and
//! what would only look as if it held. Names of system calls are the exception. Profiles are written
//! for many kernels, so that one that neither libseccomp nor [`crate::jail`] knows is no mistake; such
//! a name has no rule, as with runc, and the log says how many there were.

use std::fmt::Display;
use std::str::FromStr;

use agent_api::{GuestError, oci};
use libseccomp::ScmpArch;
use serde_json::{Value, json};

use super::{Object, PHASE};
use crate::fault::{invalid, unimplemented};
use crate::jail::filter;

/// What a rule may say, but for [`NOTIFY`].
const ACTIONS: [&str; 8] = [
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
];
const NOTIFY: &str = "SCMP_ACT_NOTIFY";
const FLAGS: [&str; 3] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
];
/// It is about notifications only; the kernel does not take it without them.
const WAIT_KILLABLE: &str = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];
/// Linux's own (MAX_ERRNO); the kernel would cut what is above.
const MAX_ERRNO: u32 = 4095;
/// A system call has six arguments, and a rule rarely compares one of them twice.
const MAX_ARGUMENTS: usize = 16;
const ARGUMENTS: u64 = 6;
/// The profile of most containers has around 450 names in 40 rules.
const MAX_RULES: usize = 1024;
const MAX_NAMES: usize = 8192;
const MAX_NAME: usize = 64;
/// More than libseccomp knows.
const MAX_ARCHITECTURES: usize = 32;
const MAX_FLAGS: usize = 8;

/// What loading a filter takes without `no_new_privs`.
const SYS_ADMIN: &str = "CAP_SYS_ADMIN";

/// The capabilities of a set as libcontainer is told them. A process that is to load a filter without
/// `no_new_privs` keeps one more until then. It has it no longer when the container's program runs:
/// execve(2) makes the sets anew, out of the bounding, the inheritable and the ambient one only.
pub(super) fn to_load(set: &[String], loads: bool) -> Value {
    let more = loads && !set.iter().any(|capability| capability == SYS_ADMIN);
    let more = more.then_some(SYS_ADMIN);
    json!(
        set.iter()
            .map(String::as_str)
            .chain(more)
            .collect::<Vec<_>>()
    )
}

/// The profile in OCI's JSON.
pub(super) fn json(profile: &oci::LinuxSeccomp) -> Result<Value, GuestError> {
    at_most(
        "architectures",
        profile.Architectures.len(),
        MAX_ARCHITECTURES,
    )?;
    at_most("flags", profile.Flags.len(), MAX_FLAGS)?;
    at_most("rules", profile.Syscalls.len(), MAX_RULES)?;
    let names = profile.Syscalls.iter().map(|rule| rule.Names.len()).sum();
    at_most("names of system calls", names, MAX_NAMES)?;
    let mut json = Object::new();
    action("DefaultAction", &profile.DefaultAction)?;
    json.put("defaultAction", profile.DefaultAction.as_str());
    if let Some(oci::linux_seccomp::DefaultErrnoRet::Defaulterrnoret(number)) =
        profile.DefaultErrnoRet
    {
        json.put("defaultErrnoRet", errno("DefaultErrnoRet", number)?);
    }
    for name in &profile.Architectures {
        if ScmpArch::from_str(name).is_err() {
            return Err(unknown(
                "Architectures",
                name,
                "an architecture of libseccomp",
            ));
        }
    }
    json.list("architectures", &profile.Architectures);
    for name in &profile.Flags {
        if name == WAIT_KILLABLE {
            let why = "nobody in the guest answers notifications";
            return Err(unimplemented(
                PHASE,
                format!("seccomp: Flags: {name}: {why}"),
            ));
        }
        one_of("Flags", name, &FLAGS)?;
    }
    json.list("flags", &profile.Flags);
    let rules: Result<Vec<Value>, GuestError> = profile.Syscalls.iter().map(rule).collect();
    json.put("syscalls", rules?);
    tell_skipped(profile);
    Ok(json.done())
}

fn rule(rule: &oci::LinuxSyscall) -> Result<Value, GuestError> {
    let first = rule.Names.first().map_or("no name", String::as_str);
    let place = |field: &str| format!("Syscalls ({}): {field}", first.escape_debug());
    if rule.Names.is_empty() {
        return Err(refused("Syscalls: a rule without names"));
    }
    for name in &rule.Names {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(unknown("Syscalls", name, "a name of a system call"));
        }
    }
    action(&place("Action"), &rule.Action)?;
    at_most(&place("Args"), rule.Args.len(), MAX_ARGUMENTS)?;
    let mut json = Object::new();
    json.list("names", &rule.Names);
    json.put("action", rule.Action.as_str());
    if let Some(oci::linux_syscall::ErrnoRet::Errnoret(number)) = rule.ErrnoRet {
        json.put("errnoRet", errno(&place("ErrnoRet"), number)?);
    }
    let mut args = Vec::new();
    for arg in &rule.Args {
        if arg.Index >= ARGUMENTS {
            let place = place("Args");
            return Err(refused(format!("{place}: index {} is above 5", arg.Index)));
        }
        one_of(&place("Args"), &arg.Op, &OPERATORS)?;
        args.push(json!({
            "index": arg.Index, "value": arg.Value, "valueTwo": arg.ValueTwo, "op": arg.Op,
        }));
    }
    if !args.is_empty() {
        json.put("args", args);
    }
    Ok(json.done())
}

fn action(place: &str, name: &str) -> Result<(), GuestError> {
    if name == NOTIFY {
        let why = "nobody in the guest answers notifications";
        return Err(unimplemented(
            PHASE,
            format!("seccomp: {place}: {name}: {why}"),
        ));
    }
    one_of(place, name, &ACTIONS)
}

fn errno(place: &str, number: u32) -> Result<u32, GuestError> {
    if number <= MAX_ERRNO {
        return Ok(number);
    }
    Err(refused(format!("{place}: {number} is above {MAX_ERRNO}")))
}

fn one_of(place: &str, name: &str, known: &[&str]) -> Result<(), GuestError> {
    if known.contains(&name) {
        return Ok(());
    }
    Err(unknown(
        place,
        name,
        &format!("one of {}", known.join(", ")),
    ))
}

fn at_most(what: &str, count: usize, most: usize) -> Result<(), GuestError> {
    if count <= most {
        return Ok(());
    }
    Err(refused(format!("{count} {what}, of at most {most}")))
}

fn unknown(place: &str, name: &str, what: &str) -> GuestError {
    let shown: String = name.chars().take(MAX_NAME).collect();
    refused(format!("{place}: {shown:?} is not {what}"))
}

fn refused(why: impl Display) -> GuestError {
    invalid(PHASE, format!("seccomp: {why}"))
}

fn tell_skipped(profile: &oci::LinuxSeccomp) {
    let names = profile.Syscalls.iter().flat_map(|rule| &rule.Names);
    let skipped: Vec<&str> = names
        .map(String::as_str)
        .filter(|name| filter::number(name).is_none())
        .collect();
    if let Some(first) = skipped.first() {
        let count = skipped.len();
        tracing::info!(
            count,
            first,
            "seccomp: names of no known system call have no rule"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxSeccomp;

    fn arg(index: u64, op: &str) -> oci::LinuxSeccompArg {
        oci::LinuxSeccompArg {
            Index: index,
            Value: 7,
            ValueTwo: 1 << 40,
            Op: op.into(),
            ..Default::default()
        }
    }

    fn call(name: &str, action: &str) -> oci::LinuxSyscall {
        oci::LinuxSyscall {
            Names: vec![name.into()],
            Action: action.into(),
            ..Default::default()
        }
    }

    fn sample() -> oci::LinuxSeccomp {
        let mut denied = call("mkdir", "SCMP_ACT_ERRNO");
        denied.Names.push("from_the_future".into());
        denied.ErrnoRet = Some(oci::linux_syscall::ErrnoRet::Errnoret(0));
        denied.Args = vec![arg(5, "SCMP_CMP_MASKED_EQ")];
        oci::LinuxSeccomp {
            DefaultAction: "SCMP_ACT_ALLOW".into(),
            DefaultErrnoRet: Some(oci::linux_seccomp::DefaultErrnoRet::Defaulterrnoret(38)),
            Architectures: vec!["SCMP_ARCH_X86_64".into(), "SCMP_ARCH_X32".into()],
            Flags: vec!["SECCOMP_FILTER_FLAG_LOG".into()],
            Syscalls: vec![denied],
            ..Default::default()
        }
    }

    fn refusal(change: impl Fn(&mut oci::LinuxSeccomp)) -> String {
        let mut profile = sample();
        change(&mut profile);
        json(&profile).unwrap_err().to_string()
    }

    #[test]
    fn the_whole_profile_arrives() {
        let json = json(&sample()).unwrap();
        let expected = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{
                "names": ["mkdir", "from_the_future"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 0,
                "args": [{"index": 5, "value": 7, "valueTwo": 1u64 << 40, "op": "SCMP_CMP_MASKED_EQ"}],
            }],
        });
        assert_eq!(json, expected);
        let read: LinuxSeccomp = serde_json::from_value(json).unwrap();
        assert_eq!(read.syscalls().as_ref().unwrap()[0].errno_ret(), Some(0));
    }

    #[test]
    fn every_name_that_is_taken_is_one_of_ocis() {
        for name in ACTIONS {
            json(&oci::LinuxSeccomp {
                Syscalls: OPERATORS
                    .iter()
                    .map(|op| oci::LinuxSyscall {
                        Args: vec![arg(0, op)],
                        ..call("mkdir", name)
                    })
                    .collect(),
                Flags: FLAGS.map(str::to_owned).to_vec(),
                DefaultAction: name.into(),
                ..Default::default()
            })
            .map(|json| serde_json::from_value::<LinuxSeccomp>(json).unwrap())
            .unwrap();
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_its_name_and_place() {
        type Change = fn(&mut oci::LinuxSeccomp);
        let cases: [(&str, &str, Change); 8] = [
            ("DefaultAction", "\"SCMP_ACT_MAYBE\"", |p| {
                p.DefaultAction = "SCMP_ACT_MAYBE".into()
            }),
            ("DefaultAction", "\"\"", |p| p.DefaultAction.clear()),
            ("Syscalls (x): Action", "\"allow\"", |p| {
                p.Syscalls.push(call("x", "allow"))
            }),
            ("Architectures", "\"SCMP_ARCH_PDP11\"", |p| {
                p.Architectures.push("SCMP_ARCH_PDP11".into());
            }),
            ("Flags", "\"FAST\"", |p| p.Flags.push("FAST".into())),
            ("Args", "\"==\"", |p| p.Syscalls[0].Args[0].Op = "==".into()),
            ("Args", "index 6", |p| p.Syscalls[0].Args[0].Index = 6),
            ("Syscalls", "\"a b\"", |p| {
                p.Syscalls.push(call("a b", "SCMP_ACT_LOG"))
            }),
        ];
        for (place, name, change) in cases {
            let text = refusal(change);
            assert!(text.contains(place) && text.contains(name), "{text}");
            assert!(text.ends_with("[invalid-argument]"), "{text}");
        }
    }

    #[test]
    fn notifications_are_refused_with_the_reason() {
        for text in [
            refusal(|p| p.DefaultAction = NOTIFY.into()),
            refusal(|p| p.Syscalls.push(call("mount", NOTIFY))),
            refusal(|p| p.Flags.push(WAIT_KILLABLE.into())),
        ] {
            assert!(text.contains("nobody in the guest answers"), "{text}");
            assert!(text.ends_with("[unimplemented]"), "{text}");
        }
    }

    #[test]
    fn too_much_of_anything_is_refused() {
        let many = |count: usize| vec!["SCMP_ARCH_X86".to_owned(); count];
        assert!(refusal(|p| p.Architectures = many(33)).contains("33 architectures"));
        assert!(refusal(|p| p.Syscalls = vec![p.Syscalls[0].clone(); 1025]).contains("1025 rules"));
        assert!(refusal(|p| p.Syscalls[0].Names = many(8193)).contains("8193 names"));
        assert!(refusal(|p| p.Syscalls[0].Args = vec![arg(0, "SCMP_CMP_EQ"); 17]).contains("17"));
        assert!(refusal(|p| p.Syscalls[0].Names.clear()).contains("without names"));
        let number = oci::linux_syscall::ErrnoRet::Errnoret(4096);
        assert!(refusal(|p| p.Syscalls[0].ErrnoRet = Some(number.clone())).contains("4096"));
    }

    #[test]
    fn one_capability_is_lent_only_where_it_is_needed() {
        let kill = ["CAP_KILL".to_owned()];
        let both = ["CAP_KILL".to_owned(), SYS_ADMIN.to_owned()];
        assert_eq!(to_load(&kill, false), json!(["CAP_KILL"]));
        assert_eq!(to_load(&kill, true), json!(["CAP_KILL", "CAP_SYS_ADMIN"]));
        assert_eq!(to_load(&both, true), json!(["CAP_KILL", "CAP_SYS_ADMIN"]));
    }
}
