//! PID 1's way from the kernel to READY, in the order that the trust needs.
//!
//! ```text
//! boot ─► command line ─► first report ─► init-data: what the launch bound ─► policy ─► image store ─► listen ─► READY
//! ```
//!
//! Any failure is told to the host as FAIL and printed, and the VM powers off: no workload runs
//! in a guest that is not what its owner asked for.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError, HOST_KEY_BYTES, HostKey, Ready, ports};
use evidence::init_data::{InitData, disk};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::time::{ClockId, clock_gettime};

use crate::cmdline::Cmdline;
use crate::console::Console;
use crate::crypt::Crypt;
use crate::disk::Disks;
use crate::fault::OrFail;
use crate::gate::Gate;
use crate::host::{Events, HostPort, MirrorDial};
use crate::huge::Pages;
use crate::image::{Images, Launch};
use crate::proof::{Bound, Proof};
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::scratch::{Choice, ImageStore};
use crate::{boot, hotplug, power, server};

/// The kernel's own limit for its command line is 2048 to 4096 bytes.
const MAX_CMDLINE: u64 = 16 * 1024;
/// How long the init-data disk may take to appear.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
const DISK_POLL: Duration = Duration::from_millis(20);

/// Runs the guest. Returns only where the process may not end the VM.
pub fn run() -> ExitCode {
    let started = since_boot();
    end_vm_on_panic();
    let brought_up = boot::bring_up()
        .map_err(|e| GuestError::new(ErrorCode::Internal, "boot", e))
        .and_then(|modules| Ok((read_cmdline()?, modules)));
    let port = brought_up
        .as_ref()
        .map_or(ports::HOST, |(c, _)| c.host_port);
    let mut key = [0; HOST_KEY_BYTES];
    if SystemRandom::new().fill(&mut key).is_err() {
        eprintln!("cloister-agent: the kernel gives no random bytes");
        power::off()
    }
    let host = HostPort::new(port, HostKey::from_bytes(key));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cloister-agent: start threads: {error}");
            power::off()
        }
    };
    runtime.block_on(async {
        let result = match brought_up {
            Ok((cmdline, modules)) => serve(&cmdline, modules, host, started).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            eprintln!("cloister-agent: {error}");
            if let Err(error) = host.fail(error).await {
                eprintln!("cloister-agent: the host was not told: {error}");
            }
        }
    });
    power::off()
}

/// Sets everything up, says READY, and serves until the sandbox is destroyed.
async fn serve(
    cmdline: &Cmdline,
    modules: boot::Modules,
    host: HostPort,
    started: Duration,
) -> Result<(), GuestError> {
    let (events, waiting) = Events::channel();
    start_log(cmdline, events.clone());
    let reaper = Reaper::start().or_internal("boot", "watch child processes")?;
    let measured = cmdline.init_data.as_ref();
    let proof = cmdline
        .tee
        .map(|tee| Proof::open(tee, measured, host))
        .transpose()?;
    let bound = match &proof {
        Some(proof) => proof.bound().await?,
        None => Bound::told(measured),
    };
    let init_data = find_init_data(&bound).await?;
    let content = init_data.as_ref().map(InitData::content).transpose();
    let content = content
        .map_err(|e| GuestError::new(ErrorCode::InitDataInvalid, "init-data", e))?
        .unwrap_or_default();
    let gate = Gate::new(cmdline.tee, content.policy.as_deref())?;
    if let Some(proof) = &proof {
        let digest = init_data.as_ref().map(InitData::digest);
        proof
            .record_launch(digest.as_ref(), content.policy.as_deref())
            .await?;
    }
    let choice = Choice::make(content.image.store, cmdline.tee).await?;
    let store = ImageStore::begin(choice, modules.scratch)?;
    let launch = Launch {
        proof,
        init_data,
        content,
    };
    let mirror = Arc::new(MirrorDial(host));
    let images = Images::new(launch, store, Arc::new(host), events.clone())?.with_mirror(mirror);
    let disks = Disks::new(cmdline.tee.is_some(), modules.disks, modules.layers);
    let crypt = Crypt::new(modules.encryption);
    let pages = Pages::new(cmdline.tee.is_some());
    let sandbox = Sandbox::new(reaper, images, events).with_hardware(disks, crypt, pages);
    let sandbox = Arc::new(sandbox);
    hotplug::settle(cmdline.tee.is_some())?;
    let serving = server::start(gate, Arc::clone(&sandbox)).await?;
    let ready = Ready {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_ms: millis(started),
        agent_ms: millis(since_boot().saturating_sub(started)),
    };
    host.ready(ready, waiting).await.or_fail(
        ErrorCode::AgentUnreachable,
        "boot",
        "tell the host that the agent is ready",
    )?;
    hotplug::begin(cmdline.tee.is_some(), modules.balloon);
    sandbox.destroyed().await;
    serving.stop().await;
    Ok(())
}

fn read_cmdline() -> Result<Cmdline, GuestError> {
    let mut text = String::new();
    File::open("/proc/cmdline")
        .and_then(|file| file.take(MAX_CMDLINE).read_to_string(&mut text))
        .or_internal("boot", "/proc/cmdline")?;
    text.parse()
        .map_err(|e| GuestError::new(ErrorCode::InvalidArgument, "boot", e))
}

fn start_log(cmdline: &Cmdline, events: Events) {
    let console = tracing_subscriber::fmt()
        .with_max_level(cmdline.log)
        .with_writer(Console(events))
        .with_ansi(false)
        .without_time()
        .finish();
    // Fails only where there is a subscriber already, and there is none.
    let _ = tracing::subscriber::set_global_default(console);
}

/// The init-data that the launch bound. Where it bound none there must be no disk either: a document that
/// nothing vouches for is not read.
async fn find_init_data(bound: &Bound) -> Result<Option<InitData>, GuestError> {
    let refuse = |code, message: String| Err(GuestError::new(code, "init-data", message));
    if bound.is(None) {
        return match find_disk()? {
            None => Ok(None),
            Some(_) => refuse(
                ErrorCode::InitDataInvalid,
                "there is an init-data disk, and the launch bound none".into(),
            ),
        };
    }
    let Some(found) = wait_for_disk().await? else {
        let message = "the launch bound init-data, and there is no init-data disk".into();
        return refuse(ErrorCode::InitDataInvalid, message);
    };
    let found = disk::decode(found)
        .map_err(|e| GuestError::new(ErrorCode::InitDataInvalid, "init-data", e))?;
    let digest = found.digest();
    if !bound.is(Some(&digest)) {
        let bound = bound.hex();
        let message = format!("the document has the digest {digest}, and the launch bound {bound}");
        return refuse(ErrorCode::InitDataMismatch, message);
    }
    Ok(Some(found))
}

async fn wait_for_disk() -> Result<Option<File>, GuestError> {
    let deadline = tokio::time::Instant::now() + DISK_TIMEOUT;
    loop {
        let disk = find_disk()?;
        if disk.is_some() || tokio::time::Instant::now() > deadline {
            return Ok(disk);
        }
        tokio::time::sleep(DISK_POLL).await;
    }
}

/// The first virtio disk that opens with the magic bytes, at its start.
fn find_disk() -> Result<Option<File>, GuestError> {
    let entries = fs::read_dir("/dev").or_internal("init-data", "/dev")?;
    let mut disks: Vec<_> = entries
        .flatten()
        .filter(|entry| is_disk_name(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    disks.sort();
    for path in disks {
        let mut head = [0; disk::MAGIC.len()];
        let read = File::open(&path).and_then(|mut file| {
            file.read_exact(&mut head)?;
            file.rewind()?;
            Ok(file)
        });
        match read {
            Ok(file) if disk::is_init_data(&head) => return Ok(Some(file)),
            Ok(_) => {}
            // An empty disk is not ours.
            Err(error) => tracing::debug!(path = %path.display(), %error, "not read"),
        }
    }
    Ok(None)
}

/// `vda` to `vdzz`: whole disks, not their partitions.
fn is_disk_name(name: &str) -> bool {
    let letters = name.strip_prefix("vd").unwrap_or_default();
    (1..=2).contains(&letters.len()) && letters.bytes().all(|b| b.is_ascii_lowercase())
}

fn end_vm_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        power::off();
    }));
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_virtio_disks_are_looked_at() {
        for name in ["vda", "vdb", "vdaa"] {
            assert!(is_disk_name(name), "{name}");
        }
        for name in ["vd", "vda1", "sda", "vdabc", "xvda", "vdA"] {
            assert!(!is_disk_name(name), "{name}");
        }
    }
}
