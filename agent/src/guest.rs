//! What a request may read or set of the guest itself.

use std::fs;
use std::path::Path;

use agent_api::{GuestError, agent, csi};

use crate::fault::{OrFail, invalid};
use crate::gate::Allowed;
use crate::path;
use crate::storage;

const PHASE: &str = "guest";
/// Linux's own limit (uname(2)).
const MAX_HOSTNAME: usize = 64;
/// More name servers than any resolver asks.
const MAX_DNS_LINES: usize = 64;
const MAX_DNS_LINE: usize = 1024;
/// Random bytes that a request may add.
const MAX_SEED: usize = 4096;

/// Sets the host name.
///
/// # Errors
///
/// It is no host name.
pub fn set_hostname(name: &str) -> Result<(), GuestError> {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !plain || name.len() > MAX_HOSTNAME {
        return Err(invalid(
            PHASE,
            "the host name is no host name of at most 64 characters",
        ));
    }
    rustix::system::sethostname(name.as_bytes()).or_internal(PHASE, "set the host name")
}

/// Writes the pod's resolv.conf, which containers mount, and the guest's own.
///
/// # Errors
///
/// A line is not one, or the file cannot be written.
pub fn write_resolv_conf(lines: &[String]) -> Result<(), GuestError> {
    let plain = |line: &String| line.len() <= MAX_DNS_LINE && !line.contains(char::is_control);
    if lines.len() > MAX_DNS_LINES || !lines.iter().all(plain) {
        return Err(invalid(PHASE, "dns is not a list of lines for resolv.conf"));
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    for file in [
        format!("{}/resolv.conf", path::SANDBOX),
        "/etc/resolv.conf".to_owned(),
    ] {
        fs::write(&file, &text).or_internal(PHASE, &file)?;
    }
    Ok(())
}

/// What this agent is and can.
#[must_use]
pub fn details(request: &Allowed<agent::GuestDetailsRequest>) -> agent::GuestDetailsResponse {
    let roots = [&crate::image::DRIVER, &crate::image::STACK];
    let drivers = storage::DRIVERS.iter().chain(roots);
    let handlers = drivers.map(|&driver| driver.to_owned());
    let agent = agent::AgentDetails {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        init_daemon: true,
        storage_handlers: handlers.collect(),
        supports_seccomp: true,
        ..Default::default()
    };
    let mut response = agent::GuestDetailsResponse {
        agent_details: Some(agent).into(),
        ..Default::default()
    };
    let memory = Path::new("/sys/devices/system/memory");
    if request.mem_block_size {
        let text = fs::read_to_string(memory.join("block_size_bytes")).unwrap_or_default();
        response.mem_block_size_bytes = u64::from_str_radix(text.trim(), 16).unwrap_or(0);
    }
    if request.mem_hotplug_probe {
        response.support_mem_hotplug_probe = memory.join("probe").exists();
    }
    response
}

/// Counters of every network device but loopback.
#[must_use]
pub fn network_stats() -> Vec<agent::NetworkStats> {
    parse_net_dev(&fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

/// Use of a volume's file system.
///
/// # Errors
///
/// The path is not one of the pod's.
pub fn volume_stats(
    request: &Allowed<agent::VolumeStatsRequest>,
) -> Result<csi::VolumeStatsResponse, GuestError> {
    use csi::volume_usage::Unit;
    let volume = path::existing("volume", &request.volume_guest_path)?;
    let stat = rustix::fs::statvfs(&volume).or_internal("volume", volume.display())?;
    let usage = |unit: Unit, scale: u64, total: u64, free: u64, available: u64| csi::VolumeUsage {
        unit: unit.into(),
        total: total.saturating_mul(scale),
        used: total.saturating_sub(free).saturating_mul(scale),
        available: available.saturating_mul(scale),
        ..Default::default()
    };
    let condition = csi::VolumeCondition {
        abnormal: false,
        ..Default::default()
    };
    Ok(csi::VolumeStatsResponse {
        usage: vec![
            usage(
                Unit::BYTES,
                stat.f_frsize,
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
            ),
            usage(Unit::INODES, 1, stat.f_files, stat.f_ffree, stat.f_favail),
        ],
        volume_condition: Some(condition).into(),
        ..Default::default()
    })
}

/// Stirs bytes into the kernel's random pool. They are not trusted: the kernel credits none.
///
/// # Errors
///
/// There are too many.
pub fn reseed(request: &Allowed<agent::ReseedRandomDevRequest>) -> Result<(), GuestError> {
    if request.data.len() > MAX_SEED {
        return Err(invalid(PHASE, format!("more than {MAX_SEED} random bytes")));
    }
    fs::write("/dev/urandom", &request.data).or_internal(PHASE, "/dev/urandom")
}

/// Sets the clock.
///
/// # Errors
///
/// It is no time.
pub fn set_clock(request: &Allowed<agent::SetGuestDateTimeRequest>) -> Result<(), GuestError> {
    use rustix::time::{ClockId, Timespec, clock_settime};
    if !(0..1_000_000).contains(&request.Usec) {
        return Err(invalid(PHASE, "Usec is not below a million"));
    }
    let time = Timespec {
        tv_sec: request.Sec,
        tv_nsec: request.Usec * 1000,
    };
    clock_settime(ClockId::Realtime, time).or_internal(PHASE, "set the clock")
}

/// Two lines of headings, then `name: <8 of receiving> <8 of sending>`.
fn parse_net_dev(text: &str) -> Vec<agent::NetworkStats> {
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let n: Vec<u64> = counters
                .split_ascii_whitespace()
                .map_while(|word| word.parse().ok())
                .collect();
            let [
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = n[..]
            else {
                return None;
            };
            Some(agent::NetworkStats {
                name: name.trim().to_owned(),
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..Default::default()
            })
        })
        .filter(|device| device.name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_without_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
            eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\nbroken: 1\n";
        let stats = parse_net_dev(text);
        assert_eq!(stats.len(), 1);
        let eth0 = &stats[0];
        assert_eq!(
            (eth0.name.as_str(), eth0.rx_bytes, eth0.rx_dropped),
            ("eth0", 10, 4)
        );
        assert_eq!(
            (eth0.tx_bytes, eth0.tx_packets, eth0.tx_dropped),
            (20, 5, 7)
        );
    }

    #[test]
    fn names_and_lines_that_would_inject_are_refused() {
        assert!(set_hostname("a b").is_err());
        assert!(set_hostname(&"a".repeat(65)).is_err());
        assert!(write_resolv_conf(&["nameserver 1\nevil".into()]).is_err());
        assert!(write_resolv_conf(&vec![String::new(); 65]).is_err());
    }
}
