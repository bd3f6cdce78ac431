//! The filter of system calls of a container's process, and the workload that loads it.
//!
//! libcontainer can do it, but not as the profiles are meant: it runs further processes of a container
//! without a filter, takes the mask of a masked comparison for its value, and applies the filter before
//! its own last steps, so that a profile had to allow those. Here the filter is put together before
//! anything is forked, where a mistake is still told as the request's; and it is loaded as the last act
//! before execve(2), by the init process and by further ones alike.
//!
//! A call that the kernel has and the profile's author could not know must fail as if it were not there:
//! programs fall back on `ENOSYS`, and give up on `EPERM`. So calls with a number above the highest in a
//! profile that denies by default answer `ENOSYS`, as with runc, on the guest's own architecture.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall, Spec,
};
use libcontainer::workload::default::get_executor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use libseccomp::error::SeccompError;
use libseccomp::{RawSyscall, ScmpSyscall};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext};
use serde::Deserialize;

use super::identity::Ready;

/// Calls that are newer than the libseccomp of Debian 12; their numbers are the same everywhere.
const NEWER: [(&str, RawSyscall); 19] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];
/// The last number before those that only x32 has.
const LAST: RawSyscall = 511;

/// A profile does not become a filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    /// libseccomp refuses a part of it.
    #[error("seccomp: {0}: {1}")]
    Part(String, SeccompError),
    /// The action has no such number.
    #[error("seccomp: errnoRet {0} does not fit the action")]
    Number(u32),
    /// The runtime does not serve it.
    #[error("seccomp: {0} is not served")]
    Unserved(&'static str),
    /// The bundle's `config.json` cannot be read.
    #[error("read the bundle")]
    Read(#[source] std::io::Error),
    /// It is none.
    #[error("read the bundle")]
    Bundle(#[source] serde_json::Error),
}

type Result<T> = std::result::Result<T, FilterError>;

/// What of a bundle's `config.json` is looked at here; libcontainer reads the rest.
#[derive(Deserialize)]
struct Bundle {
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    seccomp: Option<LinuxSeccomp>,
}

/// The workload of a container: its program, behind its filter, in its user namespace.
#[derive(Clone, Debug)]
pub(super) struct Filtered {
    filter: Option<Rc<ScmpFilterContext>>,
    identity: Option<Ready>,
    is_first: bool,
}

impl Filtered {
    /// The filter that a bundle's profile asks for.
    pub(super) fn of_bundle(bundle: &Path) -> Result<Self> {
        let text = fs::read(bundle.join("config.json")).map_err(FilterError::Read)?;
        let bundle: Bundle = serde_json::from_slice(&text).map_err(FilterError::Bundle)?;
        let profile = bundle.linux.and_then(|linux| linux.seccomp);
        let filter = profile.as_ref().map(filter).transpose()?;
        Ok(Self {
            filter: filter.map(Rc::new),
            identity: None,
            is_first: false,
        })
    }

    /// The same for a process that becomes somebody else first: a container's first one, or a further one.
    pub(super) fn with(self, identity: Option<Ready>, is_first: bool) -> Self {
        Self {
            identity,
            is_first,
            ..self
        }
    }
}

impl Executor for Filtered {
    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        if let Some(identity) = &self.identity {
            let failed = |error| ExecutorError::Other(format!("enter the user namespace: {error}"));
            identity.assume(self.is_first).map_err(failed)?;
        }
        if let Some(filter) = &self.filter {
            let failed = |error| ExecutorError::Other(format!("load the seccomp filter: {error}"));
            filter.load().map_err(failed)?;
        }
        get_executor().exec(spec)
    }

    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        get_executor().validate(spec)
    }
}

/// The number of a system call on this architecture; negative where only others have it.
pub(crate) fn number(name: &str) -> Option<RawSyscall> {
    let newer = || {
        NEWER
            .iter()
            .find(|(newer, _)| *newer == name)
            .map(|(_, number)| *number)
    };
    ScmpSyscall::from_name(name).map_or_else(|_| newer(), |call| Some(call.as_raw_syscall()))
}

/// Puts a profile's filter together.
fn filter(profile: &LinuxSeccomp) -> Result<ScmpFilterContext> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let part = |what: &str| {
        let what = what.to_owned();
        |error| FilterError::Part(what, error)
    };
    let mut filter = ScmpFilterContext::new(default).map_err(part("defaultAction"))?;
    // It is the process's own; libseccomp would set it otherwise.
    filter.set_ctl_nnp(false).map_err(part("no_new_privs"))?;
    for flag in profile.flags().iter().flatten() {
        set_flag(&mut filter, *flag)?;
    }
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    // libseccomp translates numbers for other architectures through its names, so those that it has no
    // name for go to the guest's own alone, before there are others.
    add_newer(&mut filter, default, rules)?;
    for architecture in profile.architectures().iter().flatten() {
        let added = filter.add_arch(translate(*architecture));
        added.map_err(part(&format!("architecture {architecture:?}")))?;
    }
    for rule in rules {
        for name in rule.names() {
            if let Ok(call) = ScmpSyscall::from_name(name) {
                add(&mut filter, default, rule, name, call)?;
            }
        }
    }
    Ok(filter)
}

fn add_newer(
    filter: &mut ScmpFilterContext,
    default: ScmpAction,
    rules: &[LinuxSyscall],
) -> Result<()> {
    let mut named = HashSet::new();
    for rule in rules {
        for name in rule.names() {
            let Some(number) = number(name) else { continue };
            if ScmpSyscall::from_name(name).is_err() {
                add(filter, default, rule, name, ScmpSyscall::from(number))?;
            }
            // One that only other architectures have is negative, and says nothing of age.
            if number >= 0 {
                named.insert(number);
            }
        }
    }
    let lets_through = matches!(default, ScmpAction::Allow | ScmpAction::Log);
    let absent = ScmpAction::Errno(libc::ENOSYS);
    let Some(highest) = named
        .iter()
        .max()
        .filter(|_| !lets_through && default != absent)
    else {
        return Ok(());
    };
    for number in highest + 1..=LAST {
        let added = filter.add_rule(absent, ScmpSyscall::from(number));
        added.map_err(|error| FilterError::Part(format!("system call {number}"), error))?;
    }
    Ok(())
}

/// Adds a rule for one of its names. One that says the default is there already; libseccomp refuses it.
fn add(
    filter: &mut ScmpFilterContext,
    default: ScmpAction,
    rule: &LinuxSyscall,
    name: &str,
    call: ScmpSyscall,
) -> Result<()> {
    let action = action(rule.action(), rule.errno_ret())?;
    if action == default {
        return Ok(());
    }
    let args = rule.args().as_deref().unwrap_or_default();
    let comparisons: Vec<ScmpArgCompare> = args.iter().map(comparison).collect::<Result<_>>()?;
    let arguments: HashSet<usize> = args.iter().map(LinuxSeccompArg::index).collect();
    let mut add = |comparisons: &[ScmpArgCompare]| {
        let added = filter.add_rule_conditional(action, call, comparisons);
        added
            .map(drop)
            .map_err(|error| FilterError::Part(format!("rule of {name}"), error))
    };
    if arguments.len() == args.len() {
        return add(&comparisons);
    }
    // A rule compares an argument once. Where a profile does it twice, each holds alone, as with runc.
    comparisons.chunks(1).try_for_each(add)
}

fn comparison(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
    use LinuxSeccompOperator as Op;
    let (op, value) = match arg.op() {
        Op::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Op::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Op::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Op::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Op::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Op::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // OCI's value is the mask here, and its second value what is left of the argument.
        Op::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    let index = u32::try_from(arg.index()).map_err(|_| FilterError::Number(u32::MAX))?;
    Ok(ScmpArgCompare::new(index, op, value))
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    use LinuxSeccompAction as Act;
    let number = errno.unwrap_or(libc::EPERM.unsigned_abs());
    let too_much = |_| FilterError::Number(number);
    Ok(match action {
        Act::ScmpActKill | Act::ScmpActKillThread => ScmpAction::KillThread,
        Act::ScmpActKillProcess => ScmpAction::KillProcess,
        Act::ScmpActTrap => ScmpAction::Trap,
        Act::ScmpActErrno => ScmpAction::Errno(i32::try_from(number).map_err(too_much)?),
        Act::ScmpActTrace => ScmpAction::Trace(u16::try_from(number).map_err(too_much)?),
        Act::ScmpActAllow => ScmpAction::Allow,
        Act::ScmpActLog => ScmpAction::Log,
        Act::ScmpActNotify => return Err(FilterError::Unserved("SCMP_ACT_NOTIFY")),
    })
}

fn set_flag(filter: &mut ScmpFilterContext, flag: LinuxSeccompFilterFlag) -> Result<()> {
    use LinuxSeccompFilterFlag as Flag;
    let set = match flag {
        Flag::SeccompFilterFlagTsync => filter.set_ctl_tsync(true),
        Flag::SeccompFilterFlagLog => filter.set_ctl_log(true),
        Flag::SeccompFilterFlagSpecAllow => filter.set_ctl_ssb(true),
        Flag::SeccompFilterFlagWaitKillableRecv => {
            return Err(FilterError::Unserved("WAIT_KILLABLE_RECV"));
        }
    };
    set.map(drop)
        .map_err(|error| FilterError::Part(format!("flag {flag:?}"), error))
}

fn translate(architecture: Arch) -> ScmpArch {
    match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests;
